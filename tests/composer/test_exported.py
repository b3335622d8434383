"""An export, opened again."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

import partcraft_lit as pc
from partcraft_lit.core.errors import UserError

PARTS = {"part1": 1, "part2": 0}


@pytest.fixture(scope="module")
def folder(tiny_run, workshop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "birds"
    quick = ("parts=[part1,part2:0]", "to=[diffusers]", "sample.steps=2", "thumbnails=1", "name=birds")
    ended = workshop("export", *quick, f"run={tiny_run}", f"output_dir={folder}")
    assert ended.code == 0, ended.out
    return folder


@pytest.fixture(scope="module")
def exported(folder, tiny_sd_folder):
    return pc.open_run(folder, device="cpu", base=tiny_sd_folder)


@pytest.fixture
def damaged(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "birds")
    return tmp_path / "birds"


def test_an_export_draws_what_the_run_draws(exported, run):
    assert exported.sample.steps == 2 and exported.name == run.name
    composition = exported.compose(PARTS, negative={"part1": 0})
    assert composition == run.compose(PARTS, negative={"part1": 0})
    (theirs,), (ours,) = (one.draw(composition, [4], steps=2) for one in (exported, run))
    # Its own names, where the run can only say the usual ones.
    words, usual = theirs.infotext.split("\n")[0], f"partcraft-{run.name.rpartition('-')[2]}"
    assert "birds-part1-" in words and words.endswith(" <lora:birds:1>")
    assert words.replace("birds", usual) == ours.infotext.split("\n")[0]
    assert (theirs.tensor.int() - ours.tensor.int()).abs().max() <= 1
    maps = theirs.attention()
    assert list(maps) == list(PARTS) and maps["part1"].max() == pytest.approx(ours.attention()["part1"].max(), abs=1e-3)


def test_its_parts_are_those_that_were_exported(exported):
    assert [(part.name, [v.code for v in part.variants]) for part in exported.parts] == [
        ("background", []),
        ("part1", [0, 1, 2]),
        ("part2", [0]),
    ]
    part = exported.part("part1")
    assert part.counts == (None,) * 3 and all(variant.trained for variant in part.variants) and part.color == "#e69f00"
    assert part[0].thumbnail.size == (32, 32) and part[1].thumbnail is None  # one thumbnail was asked for
    with pytest.raises(UserError, match="no code 0; its codes here are none"):
        exported.compose({"background": 0})
    with pytest.raises(UserError, match="no code 2; its codes here are 0"):
        exported.compose({"part2": 2})
    with pytest.raises(UserError, match="export has 1 of 3"):
        exported.compose({"part2": (0, 1.5)})
    assert exported.compose({"part1": (0, 1.5)}).prompt == "a photo of a <part1:0>*1.5"


def test_what_an_export_does_not_know(exported, run):
    (result,) = exported.draw(exported.compose(PARTS), steps=1)
    asks = [exported.images, lambda: exported.image(0), lambda: exported.read(run.image(0).pixels), result.read]
    for ask in [*asks, lambda: exported.part(1)[0].images]:
        with pytest.raises(UserError, match="knows no images, and has no part predictor"):
            ask()
    assert not exported.has_images and exported.class_names == ()


def test_the_base_model_has_to_be_named_where_it_is_on_another_machine(folder):
    exported = pc.open_run(folder, device="cpu")
    with pytest.raises(UserError, match=r"base=FOLDER"):
        exported.load()


def test_a_damaged_file_is_told(damaged, tiny_sd_folder):
    path = next((damaged / "diffusers" / "text_encoder").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged or of another model"):
        pc.open_run(damaged, device="cpu", base=tiny_sd_folder).load()
    Image.new("RGB", (9, 9)).save(next((damaged / "thumbnails").glob("*.png")), "JPEG")
    assert pc.open_run(damaged).part(1)[0].thumbnail is None
    shutil.rmtree(damaged / "diffusers")
    with pytest.raises(UserError, match="no files for diffusers"):
        pc.open_run(damaged)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocabulary": {"names": ["background", "a"], "num_codes": [1, 10**12]}}, "cannot be"),
        ({"vocabulary": {"names": ["background"], "num_codes": []}}, "cannot be"),
        ({"parts": [{"part": 1, "code": 0, "file": "../../secret"}]}, "none of its parts"),
        ({"parts": [{"part": 7, "code": 0, "file": "a"}]}, "none of its parts"),
        ({"parts": []}, "no files for diffusers"),
        ({"sample": None}, "sample"),
        ({"base": {}}, "base.model"),
    ],
)
def test_an_export_of_a_stranger_is_checked(damaged, change, message):
    path = damaged / "export.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        pc.open_run(damaged)
    for text in ("", "[]", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(UserError, match="export the run again"):
            pc.open_run(damaged)
