"""Seeds are functions of their keys, and those that people read survive a browser."""

from __future__ import annotations

import json

from partcraft_lit.core.randomness import derive_seed, image_seed


def test_an_image_s_seed_is_a_whole_number_to_a_browser_too():
    seeds = [image_seed(0, "composition picture", index) for index in range(100)]
    assert [int(json.loads(json.dumps(float(seed)))) for seed in seeds] == seeds
    assert len(set(seeds)) == 100 and max(seeds) < 2**53
    assert seeds[3] == derive_seed(0, "composition picture", 3) >> 10
