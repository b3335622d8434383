"""Images and scores from a run that has ended."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pytest
from omegaconf import OmegaConf
from PIL import Image

from partcraft_lit.commands.generate.generate import generate
from partcraft_lit.commands.generate.settings import GenerateSettings
from partcraft_lit.composer.run import Run
from partcraft_lit.config import compose as config
from partcraft_lit.config import factories
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import read_image
from partcraft_lit.core.randomness import derive_seed
from partcraft_lit.core.visualization import save_png
from partcraft_lit.evaluation.image_scores import differences, read_rows, write_rows
from partcraft_lit.runs import stored


@pytest.fixture
def settings(tmp_path):
    values = config.plain(config.compose("generate", ["prompt=x", "num_images=2", "sample.steps=2"]))
    kept = {key: value for key, value in values.items() if key != "paths"}
    return factories.settings_of(GenerateSettings, kept)


def test_a_picture_can_be_made_again_alone(tiny_run, workshop, tmp_path):
    prompt = "prompt=a photo of a <part1:1>, <part2:0> bird"  # commas and all, without quotes
    some = ("trainer=cpu", "sample.steps=2", f"run={tiny_run.name}")
    ended = workshop("generate", prompt, "num_images=3", f"output_dir={tmp_path / 'three'}", *some)
    assert ended.code == 0, ended.out
    names = sorted(path.name for path in (tmp_path / "three").glob("*.png"))
    assert names == ["000000.png", "000001.png", "000002.png", "sheet.png"]
    assert workshop("generate", prompt, "num_images=1", "seed=2", f"output_dir={tmp_path / 'one'}", *some).code == 0
    one, three = (read_image(tmp_path / name / "000002.png").int() for name in ("one", "three"))
    assert (one - three).abs().max() <= 1  # the batch size may change the last bit
    with Image.open(tmp_path / "one" / "000002.png") as image:
        assert image.info["prompt"] == "a photo of a <part1:1>, <part2:0> bird"
        assert (image.info["seed"], image.info["run"], image.info["steps"]) == ("2", tiny_run.name, "2")


def test_the_trained_weights_draw(tiny_run, workshop, settings, tmp_path):
    """Other codes give other images, and the run's own samples can be drawn again."""
    with Image.open(tiny_run / "evaluation" / "reconstruction" / "00000.png") as image:
        recipe = dict(image.info)
    again = (f"prompt={recipe['prompt']}", "num_images=1", f"seed={recipe['seed']}", "sample.steps=1")
    assert workshop("generate", *again, f"output_dir={tmp_path}", f"run={tiny_run}").code == 0
    drawn = read_image(tmp_path / f"{int(recipe['seed']):06d}.png").int()
    original = read_image(tiny_run / "evaluation" / "reconstruction" / "00000.png").int()
    assert (drawn - original).abs().max() <= 1


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("a <hed:0> bird", r"hed.*Parts are 0 background, 1 part1, 2 part2"),
        ("a <part1:99> bird", r"part1.*99"),
        ("a <part1:x> bird", r"part1:x"),
    ],
)
def test_a_mistake_in_the_prompt_is_told_before_a_model_is_loaded(
    tiny_run, settings, tmp_path, monkeypatch, prompt, message
):
    def load(self):
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr(Run, "_load_module", load)
    wrong = dataclasses.replace(settings, prompt=prompt)
    with pytest.raises(UserError, match=message):
        generate(wrong, tmp_path / "out", Run(tiny_run, stored.values_of_run(tiny_run)))
    assert not (tmp_path / "out").exists()


def test_the_command_says_it_without_a_traceback(tiny_run, workshop):
    ended = workshop("generate", "prompt=a <part7:0> bird")
    assert ended.code == 2 and "part7" in ended.out and "Did you mean" in ended.out and "Traceback" not in ended.out


def test_evaluating_with_other_settings_has_a_folder_of_its_own(tiny_run, new_workshop):
    workshop = new_workshop()
    run = workshop.copy(tiny_run)
    before = (run / "evaluation" / "scores.csv").read_bytes()
    report = run / "parts" / "discovery.json"
    report.write_text(json.dumps(json.loads(report.read_text()) | {"lowered_codes": {"part1": 2}}))
    ended = workshop("evaluate", "eval.species=[2]", f"run={run}")
    assert ended.code == 0, ended.out
    (folder,) = (path.parent for path in (run / "evaluation").glob("*/scores.csv"))
    assert {row["protocol"] for row in read_rows(folder / "scores.csv")} == {"reconstruction", "2 species"}
    assert (run / "evaluation" / "scores.csv").read_bytes() == before
    found, expected = (json.loads((path / "scores.json").read_text()) for path in (folder, tiny_run))
    kept = {key: value for key, value in expected.items() if not key.startswith("untrained") and "1_spec" not in key}
    assert found == pytest.approx(kept | {"codes/part1": 2}, nan_ok=True)


def test_evaluating_draws_only_what_is_missing(tiny_run, new_workshop, monkeypatch):
    workshop = new_workshop()
    run = workshop.copy(tiny_run)
    pictures = sorted((run / "evaluation").glob("[r2]*/*.png"))
    times = {path: path.stat().st_mtime_ns for path in pictures}
    table = read_rows(run / "evaluation" / "scores.csv")
    gone, half, other = pictures[:3]
    gone.unlink()
    half.write_bytes(half.read_bytes()[:-40])
    save_png(other, read_image(other), {"recipe": "{}"})
    (run / "evaluation" / "scores.csv").unlink()
    ended = workshop("evaluate", f"run={run}")
    assert ended.code == 0, ended.out
    drawn = {path for path in pictures if path.stat().st_mtime_ns != times[path]}
    assert drawn == {gone, half, other}
    assert differences(table, read_rows(run / "evaluation" / "scores.csv")) == []  # cosines end in rounding


def test_verifying_recomputes_the_table_from_the_pictures(tiny_run, new_workshop):
    workshop = new_workshop()
    run = workshop.copy(tiny_run)
    ended = workshop("evaluate", "verify=true", f"run={run}")
    assert ended.code == 0 and "6 images read again: every number" in ended.out, ended.out
    table = run / "evaluation" / "scores.csv"
    rows = read_rows(table)
    rows[0]["emr/all"] += 0.25
    write_rows(table, rows)
    ended = workshop("evaluate", "verify=true", f"run={run}")
    assert ended.code == 2 and "1 numbers of" in ended.out, ended.out
    assert "reconstruction, image 0: emr/all is" in ended.out
    rows[0]["emr/all"] -= 0.25
    write_rows(table, rows)
    numbers = json.loads((run / "scores.json").read_text())
    numbers["pictures/nearest@pixels-32@2_species"] *= 1.01
    (run / "scores.json").write_text(json.dumps(numbers))
    ended = workshop("evaluate", "verify=true", f"run={run}")
    assert ended.code == 2 and "pictures/nearest@pixels-32@2_species is" in ended.out, ended.out
    numbers["pictures/nearest@pixels-32@2_species"] /= 1.01
    (run / "scores.json").write_text(json.dumps(numbers))
    (run / "evaluation" / rows[1]["image"]).unlink()
    ended = workshop("evaluate", "verify=true", f"run={run}")
    assert ended.code == 2 and "1 images of" in ended.out and "draws them again" in ended.out
    table.unlink()
    ended = workshop("evaluate", "verify=true", f"run={run}")
    assert ended.code == 2 and "score the run first" in ended.out


@pytest.fixture(scope="module")
def verified(tiny_run, new_workshop):
    """A workshop with a copy of the shared run, which every test below changes and mends."""
    workshop = new_workshop()
    return workshop, workshop.copy(tiny_run)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("seed", "123"),
        ("prompt", "a photo of a <part1:0>"),
        ("asked", "0 0 0"),
        ("found", "9 9 9"),
        ("image", "untrained/2_species/00000.png"),
        ("clip-t@nobody", 0.5),
    ],
)
def test_verifying_takes_nothing_from_the_table(verified, column, value):
    workshop, run = verified
    table = run / "evaluation" / "scores.csv"
    whole = table.read_bytes()
    rows = read_rows(table)
    rows[0][column] = value
    write_rows(table, rows)
    ended = workshop("evaluate", "verify=true", f"run={run}")
    table.write_bytes(whole)
    assert ended.code == 2 and f"reconstruction, image 0: {column} is" in ended.out, ended.out


def test_verifying_misses_lines_and_numbers(verified):
    workshop, run = verified
    table, scores = run / "evaluation" / "scores.csv", run / "scores.json"
    whole, numbers = table.read_bytes(), scores.read_text()
    write_rows(table, read_rows(table)[1:])
    ended = workshop("evaluate", "verify=true", f"run={run}")
    table.write_bytes(whole)
    assert ended.code == 2 and "reconstruction, image 0 is not in the table" in ended.out, ended.out
    changed = json.loads(numbers)
    keys = [next(key for key in changed if key.startswith(kind)) for kind in ("untrained/", "ceiling/", "pictures/")]
    changed |= {key: changed[key] + 0.1 for key in keys} | {"eval/nothing": 1.0}
    scores.write_text(json.dumps(changed))
    ended = workshop("evaluate", "verify=true", f"run={run}")
    scores.write_text(numbers)
    assert ended.code == 2 and all(f"{key} is " in ended.out for key in [*keys, "eval/nothing"]), ended.out


def test_verifying_knows_images_of_other_weights(verified, tiny_run):
    workshop, run = verified
    image = run / "evaluation" / "2_species" / "00000.png"
    whole = image.read_bytes()
    image.write_bytes((run / "evaluation" / "untrained" / "2_species" / "00000.png").read_bytes())
    ended = workshop("evaluate", "verify=true", f"run={run}")
    image.write_bytes(whole)
    assert ended.code == 2 and "1 images of" in ended.out and "the first is 00000.png" in ended.out, ended.out


def test_scores_of_pictures_average_to_the_scores_of_the_run(tiny_run):
    rows = read_rows(tiny_run / "evaluation" / "scores.csv")
    numbers = json.loads((tiny_run / "scores.json").read_text())
    of_two = [row for row in rows if row["protocol"] == "2 species"]
    assert len(of_two) == 2
    for key, name in (("emr/all", "emr"), ("emr/part1", "emr_part/part1"), ("cosim/without_background", None)):
        name = name or "cosim_without_background"
        mean = sum(row[key] for row in of_two) / len(of_two)
        assert mean == pytest.approx(numbers[f"eval/{name}@2_species"], abs=1e-5)


def test_a_run_without_checkpoint(new_workshop, tiny_run):
    workshop = new_workshop()
    shutil.rmtree(workshop.copy(tiny_run) / "checkpoints")
    for verb, more in (("generate", ("prompt=<part1:0>",)), ("evaluate", ())):
        ended = workshop(verb, *more)
        assert ended.code == 2 and "has no checkpoint that can be read" in ended.out, ended.out


def test_a_missing_network_is_told_before_anything_is_drawn(new_workshop, tiny_run, tmp_path):
    workshop = new_workshop()
    run = workshop.copy(tiny_run)
    shutil.rmtree(run / "evaluation")
    for given, message in (
        (("eval.pictures=[inception]",), "metrics.inception.source has to be given"),
        (("eval.pictures=[inception]", f"metrics.inception.source={tmp_path}/x.pth"), "No Inception weights at"),
        (("eval.pictures=[clip_base32]", f"metrics.clip_base32.source={tmp_path}"), "Give a folder with a CLIP model"),
    ):
        ended = workshop("evaluate", f"run={run}", *given)
        assert ended.code == 2 and message in ended.out, ended.out
    assert not list(run.glob("evaluation/**/*.png"))


def test_a_run_that_is_older_than_a_setting_has_the_default(tiny_run, new_workshop):
    run = new_workshop().copy(tiny_run)
    path = run / ".hydra" / "config.yaml"
    values = OmegaConf.load(path)
    before = stored.values_of_run(run)
    values["hardware"].pop("compile")
    values["eval"].pop("neighbours")
    OmegaConf.save(values, path)
    assert stored.values_of_run(run) == before


def test_prompts_from_a_file(tiny_run, workshop, tmp_path):
    """A row of images per line, the same as if each were asked for alone; weights, two of a part, a part to avoid."""
    prompts = ["a <part1:0> bird", "a <part1:0>*1.5 <part1:1>*0.5 bird"]
    (tmp_path / "prompts.txt").write_text(f"# birds\n{prompts[0]}\n\n  {prompts[1]}\n", encoding="utf-8")
    some = ("sample.steps=2", "sample.negative_prompt=a <part2:1>*2, blurry", f"run={tiny_run.name}")
    command = ("num_images=2", f"prompts_file={tmp_path / 'prompts.txt'}", f"output_dir={tmp_path / 'all'}")
    ended = workshop("generate", *command, *some)
    assert ended.code == 0, ended.out
    names = ["000_000000.png", "000_000001.png", "001_000000.png", "001_000001.png", "sheet.png"]
    assert sorted(path.name for path in (tmp_path / "all").glob("*.png")) == names
    alone = (f"prompt={prompts[1]}", "num_images=1", "seed=1", f"output_dir={tmp_path / 'one'}")
    assert workshop("generate", *alone, *some).code == 0
    one, same, other = (read_image(tmp_path / name).int() for name in
                        ("one/000001.png", "all/001_000001.png", "all/000_000001.png"))  # fmt: skip
    assert (one - same).abs().max() <= 1 < (one - other).abs().max()
    with Image.open(tmp_path / "all" / "001_000001.png") as image:
        assert image.info["prompt"] == prompts[1] and image.info["negative_prompt"] == "a <part2:1>*2, blurry"
        assert image.info["diffusers_seed"] == str(derive_seed(1, "sample"))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ((), "either a prompt"),
        (("prompt=x", "prompts_file=y"), "either a prompt"),
        (("prompts_file=/nowhere/prompts.txt",), "there is no such file"),
        (("prompts_file={empty}",), "holds no text; write one per line"),
        (("prompts_file={wrong}",), r"'<hed:0>' in prompt \d, 'a <hed:0> bird': There is no part called 'hed'"),
        (("prompt=a bird", "sample.negative_prompt=<hed:1>"), "no part called 'hed'"),
    ],
)
def test_mistakes_with_prompts(tiny_run, workshop, tmp_path, overrides, message):
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    (tmp_path / "wrong.txt").write_text("a <part1:0> bird\na <hed:0> bird\n")
    files = {"empty": tmp_path / "empty.txt", "wrong": tmp_path / "wrong.txt"}
    ended = workshop("generate", *(text.format(**files) for text in overrides), f"run={tiny_run}")
    assert ended.code == 2 and re.search(message, ended.out) and "Traceback" not in ended.out, ended.out
