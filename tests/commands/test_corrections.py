"""``parts.yaml`` through the commands: beside a run and beside a data set."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from partcraft_lit.core.visualization import to_pil
from partcraft_lit.metrics.emr import ExactMatchingRate
from partcraft_lit.parts.corrections_file import CorrectionsFile
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.predictor import KMeansPartPredictor
from partcraft_lit.runs.assembly import trained_codes
from partcraft_lit.world.creatures import Creatures


def codes_of(run: Path) -> dict[str, dict[str, str]]:
    with (run / "parts" / "codes.csv").open(encoding="utf-8") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def corrected_place(new_workshop: Callable, pictures: Path, tmp_path_factory: pytest.TempPathFactory):
    """A workshop with a data set of its own, which tests may add to."""
    place, folder = new_workshop(), tmp_path_factory.mktemp("data") / "pictures"
    shutil.copytree(pictures, folder)
    others = [argument for argument in place.arguments if not argument.startswith("dataset.dir=")]
    place.arguments = (*others, f"dataset.dir={folder}", "parts.M=3")
    return place, folder


@pytest.mark.slow
def test_corrections_and_new_images_leave_other_parts_of_a_trained_run(corrected_place, plain):
    """Merge, rename and 30 new images: the others keep codes, tokens and EMR."""
    place, data = corrected_place
    run = place.train()
    before, images = codes_of(run), sorted((run / "evaluation" / "reconstruction").glob("*.png"))
    base = PartDictionary.load(run / "parts")
    (run / "parts.yaml").write_text("merge: [[2, 3]]\nrename: {1: head, 2: body}\n", encoding="utf-8")
    zoo = Creatures(species=3, images_per_species=10, image_size=48, seed=9)
    for index in range(len(zoo)):
        to_pil(zoo.image(index)).save(data / f"species {zoo.label(index)}" / f"new{index}.png")

    ended = place("discover", f"run={run}")
    assert ended.code == 0, ended.out
    assert "part 3 (part3): it was merged into part 2 (body)" in ended.out
    after = codes_of(run)
    assert len(after) == len(before) + 30
    assert all(after[name]["background"] == row["background"] for name, row in before.items())
    assert all(after[name]["head"] == row["part1"] for name, row in before.items())

    corrected = PartDictionary.load(run / "parts")
    assert corrected.names[:3] == ("background", "head", "body")
    from partcraft_lit.core.images import read_image
    from partcraft_lit.parts.color import ColorFeatures

    features = ColorFeatures(grid=8)
    assert features.hash == base.features_hash
    asked = torch.tensor([[int(row[name] or -1) for name in base.names] for row in before.values()])[: len(images)]
    scores = []
    for dictionary in (base, corrected):
        metric = ExactMatchingRate(KMeansPartPredictor(dictionary, features), dictionary.names)
        metric.update([read_image(path) for path in images], asked)
        scores.append(metric.compute())
    assert scores[0]["part/background"] == scores[1]["part/background"]
    assert scores[0]["part/part1"] == scores[1]["part/head"]
    assert "part/part3" not in scores[1]

    drawn = place("generate", f"run={run}", "prompt=a photo of a <HEAD:0> <body:1> bird", "num_images=1")
    assert drawn.code == 0, drawn.out
    gone = place("generate", f"run={run}", "prompt=a <part3:0>", "num_images=1")
    assert gone.code == 2
    assert "Part 'part3' is gone: it was merged into part 2 (body)" in gone.out
    assert place("evaluate", f"run={run}").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["partcraft", "partcraft_features"])
def test_split_parts_are_untrained_until_the_run_goes_on(corrected_place, plain, method):
    place, _ = corrected_place
    plain = (*plain, f"method={method}")
    run = place.train(*plain, "seed=3")
    trained = trained_codes(run)
    (run / "parts.yaml").write_text("split: {1: 2}\n", encoding="utf-8")
    ended = place("discover", f"run={run}")
    assert ended.code == 0, ended.out
    assert "untrained: <part1_2:0>" in ended.out
    assert trained_codes(run) == trained
    drawn = place("generate", f"run={run}", "prompt=a <part1_2:0> and a <part1:0>", "num_images=1")
    assert drawn.code == 0, drawn.out
    assert "<part1_2:0> is untrained" in drawn.out
    refused = place("export", f"run={run}", "parts=[part1_2:0]", "thumbnails=0")
    assert refused.code == 2
    assert "<part1_2:0> is untrained" in refused.out

    ended = place("train", *plain, "seed=3", f"ckpt_path={run}", "trainer.max_steps=6")
    assert ended.code == 0, ended.out
    dictionary = PartDictionary.load(run / "parts")
    assert dictionary.names[4] == "part1_2"
    assert trained_codes(run) == dictionary.codes_per_part
    assert "untrained" not in place("generate", f"run={run}", "prompt=a <part1_2:0>", "num_images=1").out

    # Undone, the row of the piece stays, and nothing else is where it was not.
    file = CorrectionsFile(run / "parts.yaml")
    file.path.unlink()
    ended = place("discover", f"run={run}")
    assert ended.code == 0, ended.out
    assert place("generate", f"run={run}", "prompt=a <part1:0>", "num_images=1").code == 0


@pytest.mark.slow
def test_a_file_beside_the_data_set_is_applied_and_is_part_of_the_run(corrected_place, plain):
    place, data = corrected_place
    uncorrected = place.train(*plain, "seed=4")
    (data / "parts.yaml").write_text("drop: [3]\nrename: {1: head}\nsplit: {2: 2}\n", encoding="utf-8")
    run = place.train("seed=4")  # with samples, scores and report
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    assert "eval/emr_part/part2_2@reconstruction" in scores
    assert not any("part3" in key for key in scores)
    assert run.name.rpartition("-")[2] != uncorrected.name.rpartition("-")[2]
    dictionary = PartDictionary.load(run / "parts")
    assert (dictionary.names[1], dictionary.names[4], dictionary.retired) == ("head", "part2_2", (3,))
    assert trained_codes(run) == dictionary.codes_per_part
    assert (data / ".parts" / "base" / "dictionary.json").is_file()
    assert (run / "parts.yaml").is_file()
    report = json.loads((run / "parts" / "discovery.json").read_text(encoding="utf-8"))
    assert "Part 3 (part3): it was dropped." in report["notes"]
    without = place.train(*plain, "seed=4", "parts.corrections=null")
    assert PartDictionary.load(without / "parts").hash == PartDictionary.load(uncorrected / "parts").hash

    to_pil(Creatures(species=1, images_per_species=1, image_size=48, seed=11).image(0)).save(
        data / "species 0" / "x.png"
    )
    again = place.train(*plain, "seed=4")
    assert PartDictionary.load(again / "parts").hash == dictionary.hash
    old = codes_of(run)
    assert {name: row for name, row in codes_of(again).items() if name in old} == old

    (data / "parts.yaml").write_text("drop: [7]\n", encoding="utf-8")
    ended = place("train", *plain, "seed=4")
    assert ended.code == 2
    assert "drop names part 7, and there is none" in ended.out
    (data / "parts.yaml").unlink()
