"""CUB-200-2011 in its published layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from miniatures import CUB_PARTS, CUB_SPECIES, write_cub
from partcraft_lit.config import compose as config
from partcraft_lit.config import factories
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import AnnotatedSource, GroundTruthSource
from partcraft_lit.data.cub import Cub


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cub(tmp_path_factory.mktemp("cub"))


@pytest.fixture
def broken(published: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(published, tmp_path / "CUB_200_2011"))


def test_splits_are_the_published_ones_and_cover_all(published: Path) -> None:
    names = {
        split: {s.name(i) for i in range(len(s))} for split in ("train", "test", "all") for s in [Cub(published, split)]
    }
    assert len(names["train"]) == len(names["test"]) == 6 and not names["train"] & names["test"]
    assert names["train"] | names["test"] == names["all"]
    assert all(int(name.rsplit("_", 2)[1]) % 2 for name in names["train"])  # written so: odd images train


@pytest.mark.parametrize("above", [False, True])
def test_every_label_names_the_folder_of_its_image(published: Path, above: bool) -> None:
    source = Cub(published.parent if above else published, "all")
    assert source.class_names == ["Black footed Albatross", "Laysan Albatross", "Blue Jay"]
    for index in range(len(source)):
        assert CUB_SPECIES[source.label(index)] in source.name(index)
    assert {source.label(index) for index in range(len(source))} == {0, 1, 2}  # no shift: the first class has images


def test_classes_are_chosen_by_name_and_counted_anew(published: Path) -> None:
    source = Cub(published, "all", classes=("blue_jay", "Black-footed albatross"))
    assert source.class_names == ["Black footed Albatross", "Blue Jay"]
    assert [source.label(index) for index in range(len(source))] == [0] * 4 + [1] * 4
    assert len(Cub(published, "train", classes=("Blue Jay",))) == 2
    with pytest.raises(UserError, match=r"there is no class 'Blue Jey'\. Did you mean 'blue jay'"):
        Cub(published, classes=("Blue Jey",))


def test_boxes_and_keypoints_are_those_of_the_tables(published: Path) -> None:
    source = Cub(published, "test")
    assert isinstance(source, AnnotatedSource) and not isinstance(source, GroundTruthSource)
    assert source.keypoint_names == list(CUB_PARTS)
    annotation = source.annotation(1)
    key = next(
        line.split()[0] for line in (published / "images.txt").read_text().splitlines() if source.name(1)[7:] in line
    )
    left, top, width, height = _row(published / "bounding_boxes.txt", key)
    assert annotation.size == tuple(source.image(1).shape[1:]) == (48, 48)
    assert annotation.boxes.tolist() == [[left, top, left + width, top + height]]
    part, x, y, visible = _row(published / "parts/part_locs.txt", key)
    assert part == 1 and annotation.keypoints[0].tolist() == pytest.approx([x, y])
    assert bool(annotation.visible[0]) == bool(visible)
    inside = annotation.keypoints[annotation.visible] - annotation.boxes[0, :2]
    assert bool((inside >= 0).all()) and bool((inside <= torch.tensor([width, height])).all())


def _row(path: Path, key: str) -> list[float]:
    return next(
        [float(v) for v in line.split()[1:]]
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.split()[0] == key
    )


def test_a_picture_that_cannot_be_decoded_is_left_out_with_its_annotation(broken: Path) -> None:
    whole = Cub(broken, "all")
    expected = whole.annotation(1)
    (broken / whole.name(0)).write_bytes(b"no picture")
    source = Cub(broken, "all")
    assert len(source) == len(whole) - 1 and [one.path for one in source.rejected] == [whole.name(0)]
    assert torch.equal(source.annotation(0).keypoints, expected.keypoints) and source.label(0) == whole.label(1)


@pytest.mark.parametrize(
    "name",
    ["train_test_split.txt", "image_class_labels.txt", "bounding_boxes.txt", "parts/part_locs.txt", "classes.txt"],
)
def test_a_missing_table_is_named(broken: Path, name: str) -> None:
    (broken / name).unlink()
    with pytest.raises(UserError, match=f"is incomplete: {name} is missing.*partcraft fetch dataset=cub"):
        Cub(broken)


def test_what_is_no_cub_says_how_to_get_it(broken: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*nowhere\. 'partcraft fetch dataset=cub' gets it"):
        Cub(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.md").touch()
    with pytest.raises(UserError, match=r"holds no images\.txt, but notes\.md\. 'partcraft fetch"):
        Cub(tmp_path / "other")
    with pytest.raises(UserError, match=r"dataset\.split='tran': Did you mean 'train'"):
        Cub(broken, "tran")  # type: ignore[arg-type]


def test_tables_that_were_cut_off(broken: Path) -> None:
    lines = (broken / "train_test_split.txt").read_text().splitlines()
    (broken / "train_test_split.txt").write_text("\n".join(lines[:-2]))
    with pytest.raises(UserError, match=r"train_test_split\.txt lacks 2 images"):
        Cub(broken)
    shutil.copy(broken / "parts/part_locs.txt", broken / "whole.txt")
    (broken / "parts/part_locs.txt").write_text("\n".join((broken / "whole.txt").read_text().splitlines()[:-1]))
    (broken / "train_test_split.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"part_locs\.txt has 179 places instead of 15 for each of 12 images"):
        Cub(broken)
    (broken / "train_test_split.txt").write_text("\n".join([*lines[:-1], lines[-1].split()[0]]))
    with pytest.raises(UserError, match=r"train_test_split\.txt, line 12: wanted 2 columns, got '12'"):
        Cub(broken)


def test_missing_images_are_counted_before_anything_starts(broken: Path) -> None:
    shutil.rmtree(broken / "images" / CUB_SPECIES[1])
    with pytest.raises(UserError, match=r"2 of 6 images that images\.txt names are missing"):
        Cub(broken)


def test_the_preset_sets_parts_and_the_user_wins(published: Path, tmp_path: Path) -> None:
    given = ["dataset=cub", f"dataset.dir={published}", f"paths.store={tmp_path}"]
    for verb in ("train", "discover"):
        preset = config.plain(config.compose(verb, given))["parts"]
        assert (preset["M"], preset["K"]) == (5, 256)
        assert preset["names"] == ["head", "breast", "wing", "tail", "leg"]
        assert preset["nredo"] == config.plain(config.compose(verb))["parts"]["nredo"]  # the rest is the default
        own = config.plain(config.compose(verb, [*given, "parts.M=3", "parts.K=9"]))["parts"]
        assert (own["M"], own["K"], own["names"]) == (3, 9, [])  # five names for three parts would be an error
    source = factories.make_source(config.plain(config.compose("train", [*given, "dataset.classes=[Blue Jay]"])))
    assert len(source) == 2 and source.class_noun == "bird"


def test_an_experiment_comes_after_the_preset() -> None:
    values = config.plain(config.compose("train", ["dataset=cub", "experiment=arena"]))
    assert values["parts"]["names"] == ["head", "wing", "body", "tail", "legs"] and values["parts"]["K"] == 8


def test_held_out_images_are_those_of_the_test_split(published: Path) -> None:
    test, held_out = Cub(published, "test"), Cub(published).held_out(2)
    assert [held_out.name(i) for i in range(len(held_out))] == [test.name(i) for i in range(len(test))]
    with pytest.raises(UserError, match=r"eval\.held_out=2: .*dataset\.split=all"):
        Cub(published, "all").held_out(2)
