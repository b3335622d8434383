"""Parts beyond their category: what is asked for, and that the truth is found and other drawings are not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from partcraft_lit.core.types import ABSENT
from partcraft_lit.core.visualization import save_png
from partcraft_lit.evaluation.transfer import NEGATIVE, TRANSFERS, TWO_TOKENS, TransferScorer, nearest
from partcraft_lit.metrics.features import PixelFeatures
from partcraft_lit.tokens.captions import CaptionBuilder
from partcraft_lit.tokens.grammar import PartVocabulary, parse
from partcraft_lit.world.creatures import Creatures

NAMES = ("background", "head", "wing", "body", "tail", "legs")
MATCH = {name: NAMES.index(name) for name in ("head", "body", "wing", "tail", "legs")}
VOCABULARY = PartVocabulary(NAMES, (4,) * 6)


class Reader:
    """Reads from a list what an image shows."""

    dictionary = SimpleNamespace(names=NAMES)

    def __init__(self) -> None:
        self.codes: list[list[int]] = []

    def predict(self, images) -> SimpleNamespace:
        return SimpleNamespace(codes=torch.tensor(self.codes))


class Drawer:
    """Stands for a module: draws what it is given, in order, and remembers the negative prompts."""

    def __init__(self) -> None:
        self.sampling = SimpleNamespace
        self.method = SimpleNamespace(plain_caption=CaptionBuilder(VOCABULARY).plain)
        self.images: list[torch.Tensor] = []
        self.negatives: list[str] = []

        from partcraft_lit.backbones.settings import SampleSettings

        self.sampling = SampleSettings("dpm++", 2, 1.0, "", 4)

    def use_sampling(self, sampling) -> None:
        self.sampling = sampling

    def draw(self, module, prompts, seeds, folder, protocol, progress=None, store=None):
        paths = []
        for index, _ in enumerate(prompts):
            self.negatives.append(self.sampling.negative_prompt)
            paths.append(folder / f"{index:05d}.png")
            save_png(paths[-1], self.images.pop(0))
        return paths


@pytest.fixture
def source() -> Creatures:
    return Creatures(species=4, images_per_species=2, seed=3)


@pytest.fixture
def scorer(source) -> TransferScorer:
    labels = torch.tensor([source.label(index) for index in range(len(source))])
    codes = labels[:, None].expand(-1, 6).clone()  # the code of a part is its species
    metadata = {"quality": {"match": MATCH}}
    return TransferScorer.of(source, metadata, Reader(), codes, labels, [PixelFeatures(32)], samples=6, seed=0)


def test_a_request_names_the_host_and_has_the_tokens_of_its_guests(scorer, source) -> None:
    for protocol, parts in TRANSFERS.items():
        for number, one in enumerate(scorer.asked(protocol, Drawer())):
            request = source.transfers.request(number, parts, list(MATCH))
            assert one.prompt.startswith("a photo of a beast with ") and len(request.guests) == parts
            tokens = [token for token in parse(one.prompt, VOCABULARY) if not isinstance(token, str)]
            assert {(NAMES[token.part], token.code) for token in tokens} == set(request.guests.items())
            if "head" in request.guests:
                assert "muzzle" not in one.prompt and "ears" not in one.prompt
    assert scorer.asked("transfer of 1", Drawer()) == scorer.asked("transfer of 1", Drawer())


@pytest.mark.parametrize("family", ["bird", "beast"])
def test_the_truth_is_found_and_another_species_is_not(family, tmp_path) -> None:
    source = Creatures(species=4, images_per_species=2, seed=3, family=family)
    labels = torch.tensor([source.label(index) for index in range(len(source))])
    match = {name: 1 + place for place, name in enumerate(source.part_names)}
    reader = Reader()
    reader.dictionary = SimpleNamespace(names=("background", *source.part_names))
    codes = labels[:, None].expand(-1, 6).clone()
    metadata = {"quality": {"match": match}}
    scorer = TransferScorer.of(source, metadata, reader, codes, labels, [PixelFeatures(32)], samples=3, seed=0)
    right, wrong = Drawer(), Drawer()
    for number in range(3):
        guests = source.transfers.request(number, 1, list(match)).guests
        ((part, species),) = guests.items()
        right.images += [*source.transfers.truths(number, guests, [0])]
        wrong.images += [*source.transfers.truths(number, {part: (species + 1) % 4}, [0])]
    rows, found = scorer.score(right, "transfer of 1", tmp_path / "right", draw=right.draw)
    _, other = scorer.score(wrong, "transfer of 1", tmp_path / "wrong", draw=wrong.draw)
    assert found["part@pixels-32"] > 0.6 and found["host@pixels-32"] == 1.0
    assert other["part@pixels-32"] == 0.0
    if family == "bird":
        assert (found["part@oracle"], found["truth_part@oracle"], other["part@oracle"]) == (1.0, 1.0, 0.0)
    else:
        assert found["host@oracle"] > 0.7 and "part@oracle" not in found
    assert 0.0 <= found["truth_part@pixels-32"] <= 1.0
    assert rows[0]["image"] == "transfer_of_1/00000.png" and rows[0]["protocol"] == "transfer of 1"


def test_a_negative_part_is_asked_away_and_the_others_stay(scorer, tmp_path) -> None:
    drawer, reader = Drawer(), scorer._predictor
    asked = scorer.asked(NEGATIVE, drawer)
    drawer.images = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * 6
    for place, one in enumerate(asked):
        read = list(one.codes)
        if place < 3:
            read[one.part] = ABSENT
        if place == 0:
            read[1 + one.part % 5] = 3 - one.codes[1 + one.part % 5]  # another part is wrong
        reader.codes.append(read)
    rows, found = scorer.score(drawer, NEGATIVE, tmp_path, draw=drawer.draw)
    assert found == {"removed": 0.5, "kept": pytest.approx((0.75 + 5) / 6)}
    assert drawer.negatives == [f"a photo of a <{NAMES[one.part]}:{one.codes[one.part]}>" for one in asked]
    assert drawer.sampling.negative_prompt == "", "the run's own settings are back"
    assert len({row["image"] for row in rows}) == 6


def test_two_tokens_of_a_part_show_either(scorer, tmp_path) -> None:
    drawer, reader = Drawer(), scorer._predictor
    asked = scorer.asked(TWO_TOKENS, drawer)
    drawer.images = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * 6
    for place, one in enumerate(asked):
        read = list(one.codes)
        read[one.part] = [one.code, one.codes[one.part], ABSENT][place % 3]
        reader.codes.append(read)
        tokens = [token for token in parse(one.prompt, VOCABULARY) if not isinstance(token, str)]
        assert [t.code for t in tokens if t.part == one.part] == [one.codes[one.part], one.code]
    _, found = scorer.score(drawer, TWO_TOKENS, tmp_path, draw=drawer.draw)
    assert found == {"either": pytest.approx(4 / 6), "kept": 1.0}


def test_nearest_subtracts_what_all_have_in_common() -> None:
    """Four grey drawings that differ in one pixel; the image has that of the third, and is much darker."""
    candidates = torch.full((4, 1, 3, 2, 2), 100, dtype=torch.uint8)
    for number in range(4):
        candidates[number, 0, :, number // 2, number % 2] = 200
    image = torch.full((3, 2, 2), 60, dtype=torch.uint8)
    image[:, 1, 0] = 110
    assert nearest(PixelFeatures(2), [image, image.flip(-1)], candidates) == [2, 3]


def test_nothing_is_asked_without_a_wish_or_a_truth(source) -> None:
    labels, codes = torch.arange(8) // 2, torch.zeros(8, 6, dtype=torch.long)
    features, metadata = [PixelFeatures(8)], {"quality": {"match": MATCH}}
    assert TransferScorer.of(source, metadata, Reader(), codes, labels, features, 0, 0) is None
    assert TransferScorer.of(source, metadata, Reader(), codes, labels, [], 4, 0) is None
    assert TransferScorer.of(source, {}, Reader(), codes, labels, features, 4, 0) is None
    assert TransferScorer.of(SimpleNamespace(), metadata, Reader(), codes, labels, features, 4, 0) is None
