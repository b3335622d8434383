"""A tiny trained run through the Python API."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import partcraft_lit as pc
from partcraft_lit.backbones.infotext import infotext
from partcraft_lit.backbones.pipelines import pipeline_seed
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import read_image

PARTS = {"part1": 1, "part2": 0}


@pytest.fixture(scope="module")
def rows(tiny_run):
    with (tiny_run / "parts" / "codes.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def moved(tiny_run, tmp_path):
    """The run behind a link, and its images gone."""
    shutil.copytree(tiny_run, tmp_path / "disk" / "run", ignore=shutil.ignore_patterns("evaluation", "samples"))
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    return pc.open_run(tmp_path / "link" / "run", device="cpu", dataset_dir=tmp_path / "gone")


def test_importing_the_package_loads_nothing():
    code = "import sys, partcraft_lit; assert not {'torch', 'hydra', 'PIL', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Parts and images.


def test_parts_and_their_variants(run, rows):
    assert [part.name for part in run.parts] == ["background", "part1", "part2"]
    part = run.part("part1")
    assert part is run.part(1) and part.color == "#e69f00" and part.num_codes == len(part.variants) == 3
    expected = [sum(row["part1"] == str(code) for row in rows) for code in range(3)]
    assert list(part.counts) == expected and sum(expected) > 0
    for variant in part.variants:
        assert variant.trained == (variant.count > 0)
        assert len(variant.images) == variant.count
        assert all(info.codes["part1"] == variant.code for info in variant.images)
    assert part[1].token == "<part1:1>" and part[1].choice(1.2) == pc.PartChoice("part1", 1, 1.2)
    with pytest.raises(UserError, match="no code 3; its codes here are 0, 1, 2"):
        part[3]
    with pytest.raises(UserError, match=r"part7.*Did you mean"):
        run.part("part7")


def test_thumbnails_are_those_of_the_atlas(run):
    shown = next(variant for variant in run.part("part1").variants if variant.count)
    tile = shown.thumbnail
    assert tile.size == (104, 104)
    with Image.open(run.folder / "parts" / "atlas_part1.png") as sheet:
        pixels, wanted = np.array(sheet.convert("RGB")), np.array(tile)
    found = [
        (top, left)
        for top in range(pixels.shape[0] - 103)
        for left in (20, 468, 916)
        if (pixels[top, left : left + 104] == wanted[0]).all()
        and (pixels[top : top + 104, left : left + 104] == wanted).all()
    ]
    assert found and not (pixels[found[0][0] - 2, found[0][1] : found[0][1] + 104] == wanted[0]).all()


def test_images_are_listed_and_searched(run, rows):
    images = run.images()
    assert [info.name for info in images] == [row["image"] for row in rows] and len(images) == 9
    assert images[2:4][0] == images[2] and images[-1].index == 8
    assert images[0].class_name == "species 0" and run.class_names == ("species 0", "species 1", "species 2")
    assert {info.class_name for info in run.images(class_name="species 1")} == {"species 1"}
    assert len(run.images(text="SPECIES 2/")) == 3 and len(run.images(text="nothing")) == 0
    both = run.images(class_name="species 1", part="part1", code=[0, 1])
    assert all(info.codes["part1"] in (0, 1) and info.class_name == "species 1" for info in both)
    with pytest.raises(UserError, match=r"species 9.*no such class"):
        run.images(class_name="species 9")
    with pytest.raises(UserError, match="needs the part"):
        run.images(code=1)


def test_an_image_has_the_parts_of_the_discovery(run, rows):
    for index in (0, 1, 8):
        view = run.image(index)
        assert view.codes == {
            name: int(rows[index][name]) for name in ("background", "part1", "part2") if rows[index][name]
        }
        assert view.name == rows[index]["image"] and view.size in ((48, 48), (64, 48))
        again = run.read(view.pixels)  # the predictor reads the same
        assert again.codes == view.codes and (again.label_map == view.label_map).all()
        assert again.cosines == pytest.approx(view.cosines, abs=1e-5)
    with pytest.raises(UserError, match="no image 9; this run has 9"):
        run.image(9)
    assert max(run.thumbnail(1, 32).size) == 32


def test_a_new_image_in_any_form(run, tmp_path):
    pixels = run.image(1).pixels  # 64 x 48
    array = np.array(pixels)
    forms = [array, torch.from_numpy(array).permute(2, 0, 1)]
    for form in forms:
        assert (run.read(form).tensor == run.image(1).tensor).all()
    turned = pixels.transpose(Image.Transpose.ROTATE_90)  # stored lying, with the note that it is to be turned
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as stored:
        assert stored.size == (48, 64)
        upright = run.read(stored)
        assert upright.size == ImageOps.exif_transpose(stored).size == (64, 48)
    assert (upright.tensor == run.read(tmp_path / "turned.png").tensor).all()
    assert (upright.tensor == run.image(1).tensor).all()
    choice = run.read(tmp_path / "turned.png", name="mine").choices[0]
    assert (choice.image, choice.image_name) == (None, "mine")


@pytest.mark.parametrize(
    "wrong, message",
    [
        (np.zeros((4, 4, 3), dtype=np.uint8), "at least 8 x 8"),
        (np.zeros((20, 20), dtype=np.uint8), r"\(20, 20\) of uint8"),
        (np.zeros((20, 20, 3)), "float64"),
        ("nowhere.jpg", "nowhere.jpg cannot be used"),
    ],
)
def test_what_is_no_image(run, wrong, message):
    with pytest.raises(UserError, match=message):
        run.read(wrong)


@pytest.mark.slow
def test_parts_and_codes_that_the_data_set_gives(new_workshop, plain, tmp_path):
    """Masks as parts, with a noun behind each token; and classes as codes."""
    words = ("method.captions.class_noun=each", "method.captions.separator= and ", "parts.names=[bird,dog]")
    pair = ("dataset=creatures_pair", "dataset.image_size=32", "dataset.images=4", "parts.source=masks", "parts.K=1")
    workshop = new_workshop()
    workshop.arguments = tuple(text for text in workshop.arguments if not text.startswith("dataset"))
    run = pc.open_run(workshop.train(*pair, *words, *plain, "trainer.max_steps=1"), device="cpu")
    view = run.image(0)
    assert view.label_map.shape == (32, 32)  # the mask itself
    place = np.argwhere(view.label_map == 2)[0]
    assert view.part_at(*place[::-1]).part == "dog" and view.part_at(*place[::-1]).cosine is None
    composition = run.compose({"bird": 0, "dog": 0})
    assert composition.prompt == "a photo of a <bird:0> bird and <dog:0> dog"
    assert len(run.draw(composition, steps=1)[0].read()) == 2
    workshop = new_workshop()
    run = pc.open_run(workshop.train("parts.codes=class", *plain, "trainer.max_steps=1"), device="cpu")
    assert run.part(1).variants[2].class_name == "species 2" and run.part(0).variants[0].class_name is None


# Compositions.


def test_choices_in_every_form(run):
    choice = run.image(0).choice("part1")
    composition = run.compose({"part1": choice, "part2": [1, (2, 0.5)]}, after=" bird ", background=0)
    code = choice.code
    assert composition.prompt == f"a photo of a <background:0> <part1:{code}> <part2:1> <part2:2>*0.5 bird"
    assert composition.choices[1] is not None and composition.choices[1].image == 0
    same = run.compose([("background", 0), choice, (2, 1), ("part2", 2, 0.5)], after="bird")
    assert same == composition and same.run == run.name
    avoided = run.compose({"part1": 1}, negative={"part2": 0}, negative_prompt="dark", between="and")
    assert avoided.negative_prompt == "dark <part2:0>" and avoided.between == ()


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"part9": 0}, "no part called 'part9'"),
        ({"part1": 7}, "has no code 7"),
        ({"part1": "x"}, "code of part1"),
        ({"part1": (1, 9.0)}, "weight 9 is out of range"),
        ({"part1": pc.PartChoice("part2", 0)}, "of another part"),
        (["part1"], "wanted a choice"),
    ],
)
def test_a_wrong_choice(run, parts, message):
    with pytest.raises(UserError, match=message):
        run.compose(parts)


# Drawing.


def test_an_image_is_the_same_whatever_is_drawn_with_it(run):
    one, other = run.compose(PARTS), run.compose({"part1": 0}, negative_prompt="blurry")
    many = run.draw([one, other], seeds=[0, 1, 2], steps=2)
    assert [(result.composition, result.seed) for result in many] == [(c, s) for c in (one, other) for s in range(3)]
    for result in (many[1], many[5]):
        (alone,) = run.draw(result.composition, [result.seed], steps=2)
        assert (alone.tensor.int() - result.tensor.int()).abs().max() <= 1  # rounding of another batch size
    assert not torch.equal(many[0].tensor, many[3].tensor)


def test_threads_take_turns(run):
    compositions = [run.compose({"part1": code % 3}) for code in range(4)]
    alone = [run.draw(composition, [5], steps=2)[0] for composition in compositions]
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(lambda composition: run.draw(composition, [5], steps=2)[0], compositions * 2))
    for result, expected in zip(drawn, alone * 2, strict=True):
        assert torch.equal(result.tensor, expected.tensor) and result.composition == expected.composition


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("[enforce fail] can't allocate memory: 9 TB")]
)
def test_too_little_memory_is_a_message(run, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(run._drawer._module, "generate", fail)
    with pytest.raises(UserError, match="not enough memory to draw 2 images"):
        run.draw(run.compose(PARTS), [0, 1])
    error.args = ("shapes differ",)
    if type(error) is RuntimeError:  # a bug stays one
        with pytest.raises(RuntimeError, match="shapes differ"):
            run.draw(run.compose(PARTS))


def test_previews_take_few_steps(run):
    (preview,) = run.draw(run.compose(PARTS), preview=True, steps=None)
    assert preview.preview and preview.sample.scheduler == "dpm++_trailing" and preview.sample.steps <= 4
    assert preview.sample.guidance_scale == run.sample.guidance_scale


@pytest.mark.parametrize(
    "given, message",
    [
        ({"seeds": [-1]}, "whole numbers"),
        ({"seeds": [0.5]}, "whole numbers"),
        ({"steps": 0}, "draw.steps"),
        ({"scheduler": "eular"}, "draw.scheduler.*euler"),
        ({"guidance_scale": -1.0}, "draw.guidance_scale"),
    ],
)
def test_settings_out_of_range(run, given, message):
    with pytest.raises(UserError, match=message):
        run.draw(run.compose(PARTS), **given)
    with pytest.raises(UserError, match="no part called"):
        run.draw("a <hed:0>")


def test_what_came_out_is_read_back(run):
    (result,) = run.draw(run.compose({"part1": [0, 1], "part2": 2}), [3], steps=2)
    readings = {reading.part: reading for reading in result.read()}
    assert list(readings) == ["part1", "part2"] and readings["part1"].asked == (0, 1)
    predicted = run.read(result.image)
    for part, reading in readings.items():
        assert reading.matches == (reading.found in reading.asked)
        assert (reading.found is None) == (part not in predicted.codes)
        if reading.found is not None:
            index, labelled = run.part(part).index, (predicted.tensor, torch.from_numpy(predicted.label_map))
            cosines = run.stored.isolated.cosines(labelled, predicted.part_feature(part), index, reading.asked)
            assert reading.found == max(cosines, key=cosines.get)
            assert reading.cosine == max(cosines[code] for code in reading.asked)
        assert str(reading).startswith("✓" if reading.matches else "✗")


def test_without_the_images_what_came_out_is_what_the_predictor_reads(run, monkeypatch):
    (result,) = run.draw(run.compose({"part1": [0, 1], "part2": 2}), [3], steps=2)
    monkeypatch.setattr(run.stored, "isolated", None)
    predicted = run.read(result.image)
    for reading in result.read():
        assert reading.found == predicted.codes.get(reading.part)
        if reading.found is not None:
            index = run.part(reading.part).index
            tables = run.dictionary.code_centroids[index]
            cosines = torch.cosine_similarity(predicted.part_features[index][None], tables[list(reading.asked)])
            assert reading.cosine == pytest.approx(float(cosines.max()), abs=1e-6)


def test_attention_is_shared_among_the_words(run):
    (result,) = run.draw(run.compose({"part1": [0, 1], "part2": 2}), [3], steps=2)
    maps = result.attention()
    assert list(maps) == ["part1", "part2"] and maps["part1"].dtype == np.float32
    assert maps["part1"].ndim == 2 and all((heat >= 0).all() for heat in maps.values())
    assert 0 < sum(maps.values()).max() < 1  # the other words have the rest
    assert result.attention_overlay("part1", side=64).size == (64, 64)
    with pytest.raises(UserError, match="'background' is not in this composition"):
        result.attention_overlay("background")


# Recipes.


def test_a_saved_image_gives_its_composition_back(run, tmp_path):
    composition = run.compose({"part1": run.image(0).choice("part1"), "part2": (2, 0.5)}, negative_prompt="dark")
    (result,) = run.draw(composition, [3], steps=2)
    path = result.save(tmp_path / "deep" / "one.png")
    assert pc.Composition.from_png(path) == composition
    with Image.open(path) as image:
        assert image.info["prompt"] == composition.prompt and image.info["seed"] == "3" and image.info["steps"] == "2"
    (other,) = run.draw(dataclasses.replace(composition, run="another"), [3], steps=1)
    assert other.recipe["run"] == run.name and other.composition.choices[0].image is None
    with pytest.raises(UserError, match=r"ends in \.png"):
        result.save(tmp_path / "one.jpg")


def infotext_of(path):
    """Prompt, negative prompt and fields of a PNG, read as A1111 documents its format, by no code of ours."""
    with Image.open(path) as image:
        *lines, last = image.info["parameters"].strip().split("\n")
    found = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    fields = {name: json.loads(value) if value.startswith('"') else value for name, value in found}
    assert len(found) == len(fields) >= 3  # fewer, and the line is taken for a part of the prompt
    start = next((number for number, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    negative = "\n".join(lines[start:]).removeprefix("Negative prompt:").strip()
    return "\n".join(lines[:start]).strip(), negative, fields


def test_a_saved_image_has_generation_parameters_in_a1111s_words(run, tiny_sd_folder, tmp_path):
    name = f"partcraft-{run.name.rpartition('-')[2]}"
    composition = run.composition("a photo (no drawing) of a <part1:1> <2:0>, [birds]", "<part1:2>, a \\ blur")
    (result,) = run.draw(composition, [3], steps=2, guidance_scale=3.5, scheduler="euler")
    prompt, negative, fields = infotext_of(result.save(tmp_path / "one.png"))
    words = rf"a photo \(no drawing\) of a {name}-part1-1 {name}-part2-0, \[birds\]"
    assert prompt == f"{words} <lora:{name}:1>"
    assert negative == rf"{name}-part1-2, a \\ blur"
    given = {"Steps": "2", "Sampler": "Euler", "CFG scale": "3.5", "Seed": str(pipeline_seed(3)), "Size": "32x32"}
    assert fields.items() >= given.items() and fields["Model"] == tiny_sd_folder.name
    assert pc.Composition.from_png(tmp_path / "one.png").prompt == composition.prompt  # ours is there as well


@pytest.mark.parametrize("model, written", [("a/b-c", "b-c"), ("x, y: z", '"x, y: z"'), ("", "partcraft-lit mini")])
def test_names_of_models_are_one_field(model, written, run):
    text = infotext("a", "", run.sample, 0, (32, 48), model)
    assert f"Size: 32x48, Model: {written}, RNG" in text and "Negative" not in text


def test_what_a1111_has_no_words_for_is_left_out(run, tmp_path, monkeypatch):
    """A weight moves the token itself; a run that trained more than an adapter cannot be exported."""
    (weighted,) = run.draw("a <part1:1>*1.3", steps=1)
    with Image.open(weighted.save(tmp_path / "one.png")) as image:
        assert "parameters" not in image.info and image.info["prompt"] == "a <part1:1>*1.3"
    other = pc.open_run(run.folder, device="cpu")
    other._drawer.ask(lambda module: next(module.backbone.unet.conv_in.parameters()).requires_grad_(True))
    (result,) = other.draw("a <part1:1>", steps=1)
    assert result.infotext is None


def test_the_command_and_the_code_draw_the_same_image(run, workshop, tmp_path, monkeypatch):
    composition = run.compose({"part1": 1, "part2": [0, (2, 1.5)]}, after="bird", negative_prompt="dark")
    (result,) = run.draw(composition, [7], steps=2)
    words = shlex.split(composition.command([7], run=run.folder, steps=2))
    assert words[:2] == ["partcraft", "generate"]
    ended = workshop("generate", *words[2:], f"output_dir={tmp_path}")
    assert ended.code == 0, ended.out
    drawn = read_image(tmp_path / "000007.png").int()
    assert (drawn - result.tensor.int()).abs().max() <= 1
    assert pc.Composition.from_png(tmp_path / "000007.png").prompt == composition.prompt
    monkeypatch.chdir(tmp_path)
    (tmp_path / "000007.png").unlink()
    exec(composition.python([7], run=run.folder, steps=2), {})
    assert (read_image(tmp_path / "000007.png").int() - result.tensor.int()).abs().max() <= 1


# Corrections.


def test_parts_are_corrected_and_taken_back(tiny_run, tmp_path, run):
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation", "samples"))
    before = pc.open_run(tmp_path / "run", device="cpu")
    assert before.corrections == pc.Corrections() and not before.can_undo
    wanted = before.corrections.renamed("part1", "head").divided("part2", 2)
    effect = before.preview_corrections(wanted)
    assert any("was part1" in line for line in effect.lines()) and not (tmp_path / "run" / "parts.yaml").exists()
    with pytest.raises(UserError, match="part7"):
        before.preview_corrections(pc.Corrections().dropped("part7"))
    after = before.correct(wanted)
    assert after.corrections == wanted and [part.name for part in after.parts[:3]] == ["background", "head", "part2"]
    assert after.part("head").counts == run.part("part1").counts
    split_off = after.parts[3]
    assert split_off.variants and not any(variant.trained for variant in split_off.variants)
    assert all(variant.trained == (variant.count > 0) for variant in after.part("head").variants)
    for index in range(9):
        view = after.image(index)
        assert view.codes == after.images()[index].codes
    assert len(after.draw(after.compose({"head": 0, split_off.name: 0}), steps=1)) == 1
    back = after.undo()
    assert back.corrections == pc.Corrections() and not back.can_undo
    assert [info.codes for info in back.images()] == [info.codes for info in run.images()]
    again = back.correct(pc.Corrections().as_background("part2"))
    assert again.part(2).variants == () and again.parts[2].index == 2
    with pytest.raises(UserError, match="is gone"):
        again.compose({"part2": 0})


# Runs that have moved, and those of strangers.


def test_a_run_whose_images_are_gone(moved, run, rows):
    assert not moved.has_images and moved.class_names == ()
    assert [info.name for info in moved.images()] == [row["image"] for row in rows]
    assert moved.images()[0].class_name is None
    assert moved.parts[1].counts == run.parts[1].counts
    shown = next(variant for variant in run.part("part1").variants if variant.count)
    assert (np.array(moved.part("part1")[shown.code].thumbnail) == np.array(shown.thumbnail)).all()
    for ask in (lambda: moved.image(0), lambda: moved.thumbnail(0)):
        with pytest.raises(UserError, match="images of this run are not to be had"):
            ask()
    assert moved.read(run.image(0).pixels).codes == run.image(0).codes  # the predictor needs no data set


def test_images_that_have_moved_are_named(tiny_run, pictures, tmp_path, rows):
    shutil.copytree(pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / rows[1]["image"]).unlink()
    run = pc.open_run(tiny_run, device="cpu", dataset_dir=tmp_path / "pictures")
    assert run.image(0).codes == pc.open_run(tiny_run, device="cpu").image(0).codes
    with pytest.raises(UserError, match="no longer in the data set"):
        run.image(1)


def test_thumbnails_without_an_atlas(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation", "samples", "atlas*"))
    part = pc.open_run(tmp_path / "run", device="cpu").part("part1")
    shown = next(variant for variant in part.variants if variant.count)
    assert shown.thumbnail.size == (160, 160)


def test_a_run_that_says_nothing_of_its_images(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation", "samples", "codes.csv"))
    run = pc.open_run(tmp_path / "run", device="cpu")
    assert run.part("part1").counts == (None,) * 3 and run.part("part1")[0].thumbnail is not None
    with pytest.raises(UserError, match="does not say which images"):
        run.images()
    for text in ("image,a\nx,1\n", "image,background,part1,part2\nx,1,y,2\n", ""):
        (tmp_path / "run" / "parts" / "codes.csv").write_text(text)
        with pytest.raises(UserError, match="cannot be read"):
            pc.open_run(tmp_path / "run", device="cpu").images()


def test_a_configuration_of_a_stranger(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation", "samples"))
    path = tmp_path / "run" / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("partcraft_lit.data.folder.ImageFolder", "os.system"))
    with pytest.raises(UserError, match="somebody's own"):
        pc.open_run(tmp_path / "run")


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="no such run"):
        pc.open_run(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a run"):
        pc.open_run(tmp_path)
    (tmp_path / "discovered" / ".hydra").mkdir(parents=True)
    (tmp_path / "discovered" / ".hydra" / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match="nothing was trained"):
        pc.open_run(tmp_path / "discovered")
    with pytest.raises(UserError, match="device='gpu0'"):
        pc.open_run(tmp_path, device="gpu0")
