from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from discovery import discover
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.store import Store
from partcraft_lit.core.store.packs import packs, records
from partcraft_lit.core.types import ABSENT
from partcraft_lit.parts.color import ColorFeatures
from partcraft_lit.parts.discovery import read_parts
from partcraft_lit.parts.predictor import KMeansPartPredictor
from partcraft_lit.parts.quality import score_parts


def equal(first, second) -> bool:
    return (
        first.dictionary.hash == second.dictionary.hash
        and all(torch.equal(a, b) for a, b in zip(first.label_maps, second.label_maps, strict=True))
        and torch.equal(first.codes, second.codes)
        and torch.equal(first.part_features, second.part_features)
    )


def test_finds_the_parts_and_their_species(found, found_source):
    quality = score_parts(found_source, found.label_maps, found.codes)
    assert quality.match == {"head": 1, "body": 2}  # numbered from the top of the image down
    assert quality.foreground_iou > 0.8  # not 1: cells are coarser than pixels
    assert quality.mean_part_iou > 0.75
    assert quality.mean_nmi == pytest.approx(1.0)
    assert found.report.foreground["confidence"] > 0.6


def test_works_on_colours_alone(creatures):
    source = creatures(60)
    found = discover(source, ColorFeatures(), M=2, K=6)
    quality = score_parts(source, found.label_maps, found.codes)
    assert quality.foreground_iou > 0.8


def test_label_maps_partition_images_of_any_shape(found, found_source):
    for index, label_map in enumerate(found.label_maps):
        height, width = found_source.image(index).shape[1:]
        assert label_map.dtype == torch.uint8
        assert int(label_map.max()) <= 2
        assert min(label_map.shape) == 16
        assert label_map.shape[0] / label_map.shape[1] == pytest.approx(height / width, rel=0.05)


def test_an_absent_part_is_absent(found, found_source):
    for index in range(len(found_source)):
        shown = torch.bincount(found.label_maps[index].flatten().long(), minlength=3) > 0
        assert torch.equal(found.codes[index] != ABSENT, shown)
        assert bool((found.part_features[index][~shown] == 0).all())
        assert bool(shown[1]) == found_source.has_head(index)
    assert bool(torch.isfinite(found.part_features).all())


def test_no_code_of_the_dictionary_is_dead_and_code_0_is_the_commonest(found):
    for part in range(3):
        codes = found.codes[:, part]
        counts = torch.bincount(codes[codes != ABSENT], minlength=found.dictionary.num_codes(part))
        assert bool((counts > 0).all())
        assert counts.tolist() == sorted(counts.tolist(), reverse=True)


def test_is_deterministic_for_a_seed(creatures, meaningful, found):
    source = creatures(42, sizes=((64, 64), (64, 96), (110, 64)))
    again = discover(source, meaningful(), M=2, K=3, names=("head", "body"))
    assert equal(found, again)


def test_batch_size_and_cache_change_nothing(creatures):
    source = creatures(20)
    one = discover(source, ColorFeatures(), M=2, K=3, batch_size=32)
    other = discover(source, ColorFeatures(), M=2, K=3, batch_size=3, cache_bytes=30_000)
    assert equal(one, other)


def test_cached_features_are_not_computed_twice(creatures, meaningful):
    features = meaningful()
    discover(creatures(10), features, M=2, K=2)
    assert features.calls == 10
    features = meaningful()
    discover(creatures(10), features, M=2, K=2, cache_bytes=0)
    assert features.calls == 20


def test_a_process_alone_waits_for_nobody(tmp_path, creatures, monkeypatch):
    """Although it does first what it has cached, which is not all."""
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("nobody else is at work"))
    discover(creatures(20), ColorFeatures(), M=2, K=3, batch_size=3, cache_bytes=30_000, store=Store(tmp_path))


def test_the_predictor_agrees_with_discovery(found, found_source, meaningful):
    predictor = KMeansPartPredictor(found.dictionary, meaningful())
    prediction = predictor.predict([found_source.image(index) for index in range(42)])
    assert torch.equal(prediction.codes, found.codes)
    assert all(torch.equal(a, b) for a, b in zip(prediction.label_maps, found.label_maps, strict=True))
    assert_close(prediction.part_features, found.part_features)


def test_a_sample_smaller_than_the_images_still_finds_the_parts(creatures, meaningful):
    source = creatures(120)
    found = discover(source, meaningful(), M=2, K=3, max_patches=200, nredo=2)
    assert found.report.num_patches == 120
    assert len(found.label_maps) == 120
    assert score_parts(source, found.label_maps, found.codes).mean_part_iou > 0.7


def test_class_codes_are_the_labels(creatures, meaningful):
    source = creatures(21)
    found = discover(source, meaningful(), M=2, K=4, codes="class")
    labels = torch.tensor([source.label(index) for index in range(21)])
    for part in (1, 2):
        shown = found.codes[:, part] != ABSENT
        assert torch.equal(found.codes[shown, part], labels[shown])
    assert found.dictionary.class_names == source.class_names
    assert found.dictionary.codes_per_part == (4, 3, 3)
    prediction = KMeansPartPredictor(found.dictionary, meaningful()).predict([source.image(4)])
    assert prediction.codes[0, 2] == labels[4]


def test_a_class_that_nobody_shows_is_never_predicted(creatures, meaningful):
    source = creatures(12)
    source.class_names = (*source.class_names, "unseen")
    found = discover(source, meaningful(), M=2, K=2, codes="class")
    assert bool((found.dictionary.code_centroids[1][3] == 0).all())
    prediction = KMeansPartPredictor(found.dictionary, meaningful()).predict([source.image(0)])
    assert int(prediction.codes.max()) < 3


def test_labels_are_needed_for_class_codes(creatures, meaningful):
    source = creatures(6, labelled=False)
    features = meaningful()
    with pytest.raises(UserError, match=r"parts\.codes=class needs a class .* one folder per class"):
        discover(source, features, M=2, K=2, codes="class")
    assert features.calls == 0


def test_fewer_images_than_codes_lowers_k_and_says_so(creatures, meaningful):
    found = discover(creatures(8), meaningful(), M=2, K=50)
    assert max(found.dictionary.codes_per_part) <= 8
    codes = dict(zip(found.dictionary.names, found.dictionary.codes_per_part, strict=True))
    assert [note for note in found.report.notes if "codes" in note or "K" in note] == [
        "Fewer codes than parts.K=50, as too few images show these parts: "
        f"part1 {codes['part1']}, part2 {codes['part2']}."
    ], "once"
    assert found.report.lowered_codes == {"part1": codes["part1"], "part2": codes["part2"]}
    assert discover(creatures(8), meaningful(), M=2, K=2).report.lowered_codes == {}


def test_fewer_images_than_codes_stops_before_any_work(creatures, meaningful):
    source, features = creatures(8), meaningful()
    with pytest.raises(UserError, match=r"parts\.K=50 .* 8 images.* parts\.on_too_few=lower"):
        discover(source, features, M=2, K=50, on_too_few="stop")
    assert source.reads == features.calls == 0


def test_more_parts_than_kinds_of_patches():
    source = _Squares(6)
    found = discover(source, _TwoKinds(), M=4, K=1)
    assert found.dictionary.num_parts == 1
    assert any("M is lowered" in note for note in found.report.notes)
    with pytest.raises(UserError, match=r"parts\.M=4, but 1 parts were found.*parts\.M=1"):
        discover(source, _TwoKinds(), M=4, K=1, on_too_few="stop")


def test_images_that_are_all_one_colour_are_refused():
    with pytest.raises(UserError, match="look the same"):
        discover(_Squares(4, side=0), _TwoKinds(), M=2, K=1)


def test_an_image_without_foreground_or_background_is_no_problem():
    source = _Squares(9, odd={7: 0, 8: 64})  # nothing in image 7, nothing else in image 8
    found = discover(source, _TwoKinds(), M=1, K=2)
    assert found.codes[7].tolist() == [0, ABSENT]
    assert found.codes[8].tolist() == [ABSENT, 0]
    assert bool(torch.isfinite(found.part_features).all())


def test_broken_features_are_named(creatures):
    class Broken(_TwoKinds):
        def __call__(self, images):
            return [grid * float("nan") for grid in super().__call__(images)]

    with pytest.raises(UserError, match="'two' hold NaN"):
        discover(creatures(3), Broken(), M=1, K=1)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"M": 0}, r"parts\.M=0: wanted a whole number from 1 to 254"),
        ({"K": 0}, r"parts\.K=0: wanted a whole number of at least 1"),
        ({"M": 300}, "from 1 to 254"),
        ({"codes": "clas"}, r"parts\.codes='clas'.* Did you mean 'class'\?"),
        ({"on_too_few": "halt"}, r"parts\.on_too_few='halt'"),
        ({"foreground_clusters": 1}, r"parts\.foreground_clusters=1: wanted"),
        ({"foreground_clusters": "many"}, "'?auto'?"),
        ({"M": 2, "max_patches": 150}, "max_patches=150 is too few to find 2 parts"),
        ({"names": ["head"]}, r"parts\.names has 1 names for parts\.M=2"),
        ({"names": ["head", "background"]}, "'background' is taken twice"),
        ({"names": ["head", "2nd"]}, "'2nd' cannot name a part"),
    ],
)
def test_settings_that_cannot_work(creatures, meaningful, settings, message):
    with pytest.raises(UserError, match=message):
        discover(creatures(4), meaningful(), **({"M": 2, "K": 2} | settings))


def test_no_images(creatures, meaningful):
    with pytest.raises(UserError, match="no images"):
        discover(creatures(0), meaningful(), M=2, K=2)


def test_the_store_answers_an_equal_question(tmp_path, creatures, meaningful):
    store = Store(tmp_path)
    first = discover(creatures(15), meaningful(), M=2, K=3, store=store)
    source, features = creatures(15), meaningful()
    second = discover(source, features, M=2, K=3, store=store, names=("head", "body"))
    assert equal(first, second)
    assert second.dictionary.names == ("background", "head", "body")
    assert second.report.from_store
    assert second.report.foreground == first.report.foreground
    assert source.reads == features.calls == 0


def test_the_store_remembers_class_codes(tmp_path, creatures, meaningful):
    store = Store(tmp_path)
    first = discover(creatures(15), meaningful(), M=2, K=3, codes="class", store=store)
    second = discover(creatures(15), meaningful(), M=2, K=3, codes="class", store=store)
    assert equal(first, second)


@pytest.mark.parametrize("change", [{"seed": 1}, {"K": 2}, {"min_component_size": 3}])
def test_the_store_does_not_answer_another_question(tmp_path, creatures, meaningful, change):
    store = Store(tmp_path)
    discover(creatures(9), meaningful(), M=2, K=3, store=store)
    other = discover(creatures(9), meaningful(), **({"M": 2, "K": 3, "store": store} | change))
    assert not other.report.from_store


def test_damaged_store_entries_are_computed_again(tmp_path, creatures, meaningful):
    store = Store(tmp_path)
    first = discover(creatures(9), meaningful(), M=2, K=3, store=store)
    damaged = sorted(tmp_path.rglob("*.pack"))
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-7])
    assert damaged
    assert equal(first, discover(creatures(9), meaningful(), M=2, K=3, store=store))


def test_interrupted_and_started_again_gives_the_same(tmp_path, creatures, meaningful):
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "label images" and done >= 6:
            raise KeyboardInterrupt

    arguments = {"M": 2, "K": 3, "batch_size": 4}
    never_stopped = discover(creatures(14), meaningful(), **arguments)
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        discover(creatures(14), meaningful(), store=store, progress=interrupt, **arguments)
    assert 0 < sum(1 for path in packs(tmp_path / "parts") for _ in records(path)) < 14
    assert equal(never_stopped, discover(creatures(14), meaningful(), store=store, **arguments))


def test_adding_images_reads_only_the_new_ones(tmp_path, creatures, meaningful):
    store = Store(tmp_path)
    found = discover(creatures(12), meaningful(), M=2, K=3, store=store)
    features = meaningful()
    label_maps, codes, part_features = read_parts(creatures(15), features, found.dictionary, store=store)
    assert features.calls == 3
    assert torch.equal(codes[:12], found.codes)
    assert torch.equal(part_features[:12], found.part_features)
    assert len(label_maps) == 15


def test_progress_reaches_the_end_of_every_stage(creatures, meaningful):
    last: dict[str, tuple[int, int]] = {}
    discover(
        creatures(10),
        meaningful(),
        M=2,
        K=2,
        batch_size=4,
        progress=lambda stage, done, total: last.update({stage: (done, total)}),
    )
    assert last == {"sample patches": (10, 10), "label images": (10, 10), "fit codes": (3, 3)}


def test_the_report_is_plain_json_and_adds_up(found):
    import json

    report = json.loads(json.dumps(found.report.as_dict()))
    assert [part["name"] for part in report["parts"]] == ["background", "head", "body"]
    assert sum(part["share"] for part in report["parts"]) == pytest.approx(1.0, abs=1e-3)
    assert report["parts"][1]["images"] == 36
    assert dataclasses.asdict(found.report) == found.report.as_dict()


class _Squares:
    """White squares in the middle of black images; ``odd`` overrides the side of single images."""

    class_noun = ""
    class_names = ()

    def __init__(self, number: int, side: int = 30, odd: dict[int, int] | None = None) -> None:
        self.sides = [(odd or {}).get(index, side) for index in range(number)]

    def __len__(self) -> int:
        return len(self.sides)

    def image(self, index: int) -> torch.Tensor:
        image = torch.zeros(3, 64, 64, dtype=torch.uint8)
        low, high = 32 - self.sides[index] // 2, 32 + self.sides[index] // 2
        image[:, low:high, low:high] = 255
        return image

    def name(self, index: int) -> str:
        return f"{index}.png"

    def content_hash(self, index: int) -> str:
        return f"{index:064x}"

    def label(self, index: int) -> None:
        return None


class _TwoKinds:
    """(1, 0) where a patch is bright, else (0, 1)."""

    id = "two"
    hash = "two-v1"
    dim = 2

    def __call__(self, images):
        bright = [image.float().mean(dim=0).unfold(0, 8, 8).unfold(1, 8, 8).mean(dim=(2, 3)) > 127 for image in images]
        return [torch.stack([grid, ~grid], dim=-1).float() for grid in bright]
