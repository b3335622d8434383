"""Whether the parts of a hybrid are as requested: by an oracle where the truth is known, else by the nearest code."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from torch import Tensor

from partcraft_lit.commands.train.context import RunContext
from partcraft_lit.core.types import ABSENT, BACKGROUND, PartPrediction
from partcraft_lit.evaluation.truth import Truth, truth_of
from partcraft_lit.metrics.composition import Targets
from partcraft_lit.parts.isolated import IsolatedCodes, isolated_feature

#: What the marks of a report say.
BY_TRUTH = "✓ and ✗ say whether an oracle that training never sees reads the part as of the requested species."
BY_CODE = "✓ and ✗ say whether the requested code is the nearest to the part, its context masked out."


def marks_of(run: RunContext, images: Tensor, targets: Targets) -> tuple[list[list[bool | None]], str]:
    """Whether each part of each hybrid is the requested one, and who says so.

    The nearest code hardly tells the wrong parts of good hybrids from the right ones (experiments/agreement), so it is
    asked only where nobody knows the truth.

    Args:
        run: whose parts and truth.
        images: (I, 3, height, width) uint8 hybrids.
        targets: what was asked for.

    Returns:
        Per hybrid and part, the background first, True or False, or None where there is no saying; and a sentence.
    """
    truth = truth_of(run.source, run.metadata)
    if truth is not None:
        return marks_by_truth(truth, run.metadata["quality"]["match"], images, targets), BY_TRUTH
    predicted, isolated = run.predictor.predict(list(images)), _isolated_codes(run)
    return [marks_by_code(isolated, image, predicted, row, targets) for row, image in enumerate(images)], BY_CODE


def marks_by_truth(
    truth: Truth, match: Mapping[str, int | None], images: Tensor, targets: Targets
) -> list[list[bool | None]]:
    """What a judge reads off each part; None for parts that it does not know or that were not requested.

    Args:
        truth: the judge.
        match: true part -> discovered part, None for a part without a match.
        images: (I, 3, height, width) uint8.
        targets: of I images with M + 1 parts.
    """
    names = {part: name for name, part in match.items() if part is not None}
    marks = []
    for scores in truth.tally().update(images, truth.requested(targets)):
        values = [scores.get(f"part_accuracy/{names.get(part)}") for part in range(targets.codes.shape[1])]
        # NaN where nothing was requested
        marks.append([None if value is None or math.isnan(value) else value == 1 for value in values])
    return marks


def marks_by_code(
    isolated: IsolatedCodes, image: Tensor, predicted: PartPrediction, row: int, targets: Targets
) -> list[bool | None]:
    """Per part, whether the requested code is the nearest, with the context of the part masked out."""
    labelled, features = (image, predicted.label_maps[row]), predicted.part_features[row]
    found: list[bool | None] = []
    for part, code in enumerate(targets.codes[row].tolist()):
        present = part != BACKGROUND and code != ABSENT and int(predicted.codes[row, part]) != ABSENT
        cosines = isolated.cosines(labelled, features[part], part, (code,)) if present else {}
        found.append(bool(cosines) and max(cosines, key=lambda one: cosines[one]) == code)
    return found


def _isolated_codes(run: RunContext) -> IsolatedCodes:
    segmenter, discovery = run.discovery.dictionary.base_segmenter, run.discovery
    return IsolatedCodes(
        discovery.dictionary,
        discovery.codes,
        lambda index: (run.source.image(index), discovery.label_maps[index]),
        functools.partial(isolated_feature, segmenter, run.features),
    )
