from __future__ import annotations

import torch

from partcraft_lit.commands.train.marks import marks_by_code, marks_by_truth
from partcraft_lit.core.types import ABSENT, PartPrediction
from partcraft_lit.metrics.composition import Targets


class Isolated:
    """Knows the cosines of parts with their context masked out."""

    def __init__(self, cosines):
        self.known = cosines

    def cosines(self, labelled, part_feature, part, asked):
        assert asked[0] != ABSENT
        return self.known[part]


def test_a_mark_says_whether_the_requested_code_is_nearest_without_context():
    """Whatever the predictor reads in context; without an exemplar, or without the part, there is nothing to match."""
    targets = Targets(torch.tensor([[0, 3, 3, 3, 3, ABSENT]]), torch.zeros(1, 6, dtype=torch.long), (0,))
    in_context = torch.tensor([[0, 1, 3, 3, ABSENT, 3]])
    predicted = PartPrediction(in_context, [torch.zeros(2, 2)], torch.zeros(1, 6, 4))
    isolated = Isolated({1: {3: 0.9, 1: 0.8}, 2: {3: 0.7, 2: 0.8}, 3: {}})
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert marks_by_code(isolated, image, predicted, 0, targets) == [False, True, False, False, False, False]


class Oracle:
    """Has its verdicts at hand."""

    def __init__(self, rows):
        self.rows = rows

    def tally(self):
        return self

    def requested(self, targets):
        return targets.codes

    def update(self, images, requested):
        assert len(images) == len(requested)
        return self.rows


def test_where_the_truth_is_known_an_oracle_says_what_came_out():
    """Part 2 has no true part, part 3 was not requested, and the tail was never discovered."""
    targets = Targets(torch.tensor([[0, 3, 3, 3, 3]]), torch.zeros(1, 5, dtype=torch.long), (0,))
    match = {"head": 1, "wing": 4, "body": 3, "tail": None}
    verdicts = {"all": 0.5, "head": 1.0, "wing": 0.0, "body": float("nan"), "tail": float("nan")}
    oracle = Oracle([{f"part_accuracy/{name}": value for name, value in verdicts.items()}])
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert marks_by_truth(oracle, match, images, targets) == [[None, True, None, None, False]]
