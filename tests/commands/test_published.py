"""Published data sets in small, through the whole command line."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from miniatures import write_cub
from partcraft_lit.core.visualization import to_pil
from partcraft_lit.world.creatures import Creatures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cub(tmp_path_factory):
    return write_cub(tmp_path_factory.mktemp("published"), per_species=6)


def test_discovery_is_compared_with_boxes_and_keypoints(new_workshop, small, cub):
    workshop = new_workshop()
    parts = [text for text in small if text.startswith(("parts.", "features."))]
    store = f"paths.store={workshop.root / 'store'}"
    ended = workshop("discover", store, "dataset=cub", f"dataset.dir={cub}", "dataset.split=all", *parts)
    assert ended.code == 0, ended.out
    assert "against the annotations: box IoU" in ended.out and "holds: " in ended.out
    (folder,) = (workshop.root / "logs" / "discover" / "runs").glob("*")
    facts = json.loads((folder / "parts" / "discovery.json").read_text())
    found = facts["annotations"]
    assert found["images"] == 18 and 0 < found["box_iou"] <= 1
    assert set(found["part_of"]) >= {"beak", "tail", "left wing"}
    assert found["keypoint_accuracy"] <= found["keypoint_in_foreground"] <= 1
    assert facts["parts"][0]["name"] == "background"  # part 0 for every data set: nothing to look up by eye


def test_training_and_evaluation_on_cub(new_workshop, small, plain, cub):
    """The preset as it is, K and all, on a few images."""
    workshop = new_workshop()
    steps = [text for text in small if text.startswith(("data.", "trainer", "logger", "mapper", "eval.", "sample."))]
    workshop.arguments = ("dataset=cub", f"dataset.dir={cub}", "backbone=mini", "parts.nredo=1", *steps)
    workshop.arguments += (f"paths.store={workshop.root / 'store'}", *plain)
    run = workshop.train()
    facts = json.loads((run / "parts" / "discovery.json").read_text())
    assert facts["parts"][0]["name"] == "background"
    assert any("parts.K=256" in note for note in facts["notes"])
    assert "keypoint_accuracy" in facts["annotations"]
    ended = workshop("evaluate", f"run={run}", "eval.reconstructions=1", "eval.compositions=0", "eval.ceiling_images=0")
    assert ended.code == 0, ended.out
    (scores,) = run.glob("evaluation/*/scores.json")
    numbers = json.loads(scores.read_text())
    assert numbers["truth/box_iou@real_images"] == pytest.approx(facts["annotations"]["box_iou"])


def test_parts_from_mask_files(new_workshop, small, tmp_path):
    """A folder of photographs with a folder of masks: the given parts are trained, and the truth of the report."""
    zoo = Creatures(species=2, images_per_species=3, image_size=48, seed=6)
    for index in range(len(zoo)):
        mask = (zoo.truth(index).label_map == 1) * 1 + (zoo.truth(index).label_map > 1) * 2
        for folder, picture in (("images", to_pil(zoo.image(index))), ("masks", Image.fromarray(mask.byte().numpy()))):
            (tmp_path / folder).mkdir(exist_ok=True)
            picture.save(tmp_path / folder / f"{index}.png")
    (tmp_path / "masks" / "parts.txt").write_text("head\nrest\n")
    workshop = new_workshop()
    given = (f"dataset.dir={tmp_path / 'images'}", f"dataset.masks={tmp_path / 'masks'}", "parts.source=masks")
    run = workshop.train(
        *given, "eval.enabled=false", "~callbacks.samples", "~callbacks.attention_maps", "eval.hybrids=1"
    )
    facts = json.loads((run / "parts" / "discovery.json").read_text())
    assert [part["name"] for part in facts["parts"]] == ["background", "head", "rest"]
    assert facts["quality"]["foreground_iou"] == 1.0
