"""What a second start finds in the store is what the first computed."""

from __future__ import annotations

import json
import math

import torch

from partcraft_lit.core.store import Store, stable_hash
from partcraft_lit.core.store.cached import cached_file, cached_values
from partcraft_lit.evaluation.scores import scores_as_values, scores_of_values
from partcraft_lit.metrics.composition import PartScores

SCORES = {"mirrored": PartScores({"all": 0.5, "head": math.nan}, {"all": 1 / 3}, 7)}


def test_values_are_computed_once_for_all_that_decides_them(tmp_path):
    computed = []

    def compute(number: int) -> dict:
        computed.append(number)
        return scores_as_values(SCORES)

    found = [cached_values(Store(tmp_path), "scores", ["about", n], lambda n=n: compute(n)) for n in (1, 1, 2)]
    assert computed == [1, 2]
    assert json.dumps(found[1]) == json.dumps(found[0]) == json.dumps(scores_as_values(SCORES))
    (back,) = scores_of_values(found[1]).values()
    assert back.cosim == {"all": 1 / 3} and back.num_images == 7 and math.isnan(back.emr["head"])


def test_values_that_cannot_be_read_are_computed_again(tmp_path):
    store = Store(tmp_path)
    store.put("scores", stable_hash("scores", 1), {"json": torch.tensor([1, 2], dtype=torch.uint8)})
    assert cached_values(store, "scores", 1, lambda: {"a": 1}) == {"a": 1}
    assert cached_values(store, "scores", 1, lambda: {"a": 2}) == {"a": 1}


def test_a_file_is_drawn_once(tmp_path):
    drawn = []

    def draw(path) -> None:
        drawn.append(path.name)
        path.write_bytes(b"picture")

    for about, name in ((1, "first.png"), (1, "again.png"), (2, "other.png")):
        path = tmp_path / name
        cached_file(Store(tmp_path / "store"), "atlas", about, path, lambda path=path: draw(path))
        assert path.read_bytes() == b"picture"
    assert drawn == ["first.png", "other.png"]
