"""Scores of generated parts by judges that know no codes, calibrated on real images."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.core import stopping
from partcraft_lit.core.images import clamp_aspect, read_image
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.store import Store
from partcraft_lit.core.store.cached import cached_values
from partcraft_lit.core.types import ABSENT, BACKGROUND, ImageSource
from partcraft_lit.evaluation.calibration import PartCalibration, area_under_curve, calibration_of, draw_pairs
from partcraft_lit.evaluation.image_scores import Row
from partcraft_lit.judges.judge import Comparison, PartJudge, PartView
from partcraft_lit.metrics.composition import Targets
from partcraft_lit.parts.dictionary import PartDictionary

Progress = Callable[[str, int, int], None]

#: Before the name of a score of a judge, in files.
PREFIX = "judge/"
#: "Protocols" of what is not a protocol's alone.
REAL_IMAGES, ALL_IMAGES = "real images", "all images"
#: Raise by one when equal images would be calibrated otherwise.
_VERSION = 1
#: Questions whose images are in memory at once.
_AT_ONCE = 64
#: Real images that are kept, for they come again.
_KEPT = 256


@dataclass(frozen=True)
class JudgeScores:
    """What one protocol gave, by names as in ``scores.json``, without prefix and protocol.

    Attributes:
        metrics: means over images.
        rows: one per image.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)


@dataclass(eq=False)
class JudgeScorer:
    """Asks judges about generated images, and says what their answers are worth.

    Attributes:
        judges: by name.
        source: the real images.
        label_maps: one per real image.
        codes: (N, M + 1) codes of the real images.
        dictionary: of the parts.
        pairs: of real images, for each part and kind of pair.
        seed: for the pairs.
        match: true part -> discovered part, where the truth is known.
        store: keeps calibrations.
    """

    judges: Mapping[str, PartJudge]
    source: ImageSource
    label_maps: Sequence[Tensor]
    codes: Tensor
    dictionary: PartDictionary
    pairs: int
    seed: int
    match: Mapping[str, int | None]
    store: Store

    @functools.cached_property
    def live(self) -> list[int]:
        """Parts that count, the background first."""
        return [part for part in range(self.codes.shape[1]) if part not in self.dictionary.retired]

    def calibrate(self, progress: Progress) -> dict[str, dict[int, PartCalibration]]:
        """Judge -> part -> calibration; measured once for all runs with these images, parts and judges."""
        return {name: self._calibration(name, judge, progress) for name, judge in self.judges.items()}

    def score(
        self,
        calibrations: Mapping[str, Mapping[int, PartCalibration]],
        targets: Targets,
        paths: Sequence[Path],
        label_maps: Sequence[Tensor],
        progress: Progress,
    ) -> JudgeScores:
        """Scores of one protocol.

        Args:
            calibrations: as ``calibrate`` gives them.
            targets: what was asked for.
            paths: one image per target.
            label_maps: one per image.
            progress: called with the judge's name, and how many questions it has answered of how many.

        Returns:
            Per judge ``<judge>/<part>``, its answer, where it could see the part; ``<judge>/calibrated/<part>``, the
            same on the scale of real pairs, with 0 for a part that the image was to show and does not;
            ``<judge>/calibrated/all`` and ``without_background``, the mean over parts that the judge can read; and
            ``<judge>/seen``, the share of the parts asked for that it could see.
        """
        scores = JudgeScores(rows=[{} for _ in paths])
        for name, judge in self.judges.items():
            questions = [(row, part) for row in range(len(targets)) for part in self._asked(targets, row)]
            generated = functools.lru_cache(1)(lambda row: _view(read_image(paths[row]), label_maps[row]))
            views = (self._comparison(part, int(targets.sources[row, part]), generated(row)) for row, part in questions)
            answers = _answers(judge, views, len(questions), functools.partial(progress, name))
            raw = torch.full(targets.codes.shape, torch.nan, dtype=torch.float64)
            asked = torch.zeros(targets.codes.shape, dtype=torch.bool)
            for (row, part), answer in zip(questions, answers.tolist(), strict=True):
                raw[row, part], asked[row, part] = answer, True
            self._add(scores, name, raw, asked, calibrations[name])
        return scores

    def agreement(self, rows: Sequence[Row]) -> dict[str, float]:
        """``<judge>/agreement/<part>``: AUC of the answers against the oracle's verdicts on the same images.

        ``<judge>/agreement/all`` is of the calibrated answers on all parts that the judge can read. Empty where the
        truth is not known.
        """
        found: dict[str, float] = {}
        for name in self.judges:
            pooled: list[tuple[float, float]] = []
            for true_part, part in self.match.items():
                if part is None or part not in self.live:
                    continue
                own, verdict = self.dictionary.names[part], f"part_accuracy/{true_part}"
                judged = [row for row in rows if f"{PREFIX}{name}/{own}" in row and verdict in row]
                pairs = [(row[f"{PREFIX}{name}/{own}"], row[verdict]) for row in judged]
                if pairs:
                    found[f"{name}/agreement/{own}"] = _agreement(pairs)
                pooled += [(row[f"{PREFIX}{name}/calibrated/{own}"], row[verdict]) for row in judged]
            if pooled:
                found[f"{name}/agreement/all"] = _agreement(pooled)
        return found

    def calibration_metrics(self, calibrations: Mapping[str, Mapping[int, PartCalibration]]) -> dict[str, float]:
        """``<judge>/auc/<part>``, ``same``, ``different``, and ``readable``, which is 1 or 0."""
        metrics: dict[str, float] = {}
        for name, of_parts in calibrations.items():
            for part, known in of_parts.items():
                values = {"auc": known.auc, "same": known.same, "different": known.different}
                values["readable"] = float(known.readable)
                metrics.update({f"{name}/{key}/{self.dictionary.names[part]}": v for key, v in values.items()})
        return metrics

    def _calibration(self, name: str, judge: PartJudge, progress: Progress) -> dict[int, PartCalibration]:
        hashes = [self.source.content_hash(index) for index in range(len(self.source))]
        words = [list(self.dictionary.names), self.source.class_noun]
        about = [_VERSION, judge.hash, hashes, self._parts_hash, words, self.pairs, self.seed]

        def measure() -> dict[str, Any]:
            return {str(part): asdict(known) for part, known in self._measured(name, judge, progress).items()}

        values = cached_values(self.store, "judges", about, measure)
        return {int(part): PartCalibration(**known) for part, known in values.items()}

    @functools.cached_property
    def _parts_hash(self) -> str:
        """Of where the parts of the real images are, and of their codes."""
        digest = hashlib.blake2b(repr(self.codes.tolist()).encode(), digest_size=16)
        for label_map in self.label_maps:
            digest.update(repr(tuple(label_map.shape)).encode())
            digest.update(label_map.to(torch.uint8).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _measured(self, name: str, judge: PartJudge, progress: Progress) -> dict[int, PartCalibration]:
        drawn = {
            part: draw_pairs(self.codes[:, part], self.pairs, torch_generator(self.seed, "judge", part))
            for part in self.live
        }
        pairs = [(part, pair) for part, (same, different) in drawn.items() for pair in (*same, *different)]
        questions = (self._comparison(part, one, self._real(other)) for part, (one, other) in pairs)
        answers = _answers(judge, questions, len(pairs), functools.partial(progress, f"{name}, {REAL_IMAGES}"))
        found, start = {}, 0
        for part, (same, different) in drawn.items():
            of_part = answers[start : start + len(same) + len(different)]
            found[part] = calibration_of(of_part[: len(same)], of_part[len(same) :])
            start += len(of_part)
        return found

    def _asked(self, targets: Targets, row: int) -> list[int]:
        """Parts that an image was to show, and that its source shows."""
        return [
            part
            for part in self.live
            if targets.codes[row, part] != ABSENT
            and bool((self.label_maps[int(targets.sources[row, part])] == part).any())
        ]

    def _comparison(self, part: int, source: int, generated: PartView) -> Comparison:
        noun = self.source.class_noun or "object"
        return Comparison(part, self.dictionary.names[part], noun, self._real(source), generated)

    @functools.cached_property
    def _real(self) -> Callable[[int], PartView]:
        return functools.lru_cache(_KEPT)(lambda index: _view(self.source.image(index), self.label_maps[index]))

    def _add(
        self,
        scores: JudgeScores,
        name: str,
        raw: Tensor,
        asked: Tensor,
        calibrations: Mapping[int, PartCalibration],
    ) -> None:
        """Scores of one judge.

        Args:
            scores: what they are added to.
            name: of the judge.
            raw: (I, M + 1) answers, NaN where there is none.
            asked: (I, M + 1) whether there was a question.
            calibrations: by part.
        """
        calibrated = torch.full_like(raw, torch.nan)
        for part, known in calibrations.items():
            values = known.calibrated(raw[:, part])
            if known.readable:  # else a part that is missing would be no worse than one that was not asked for
                values = torch.where(asked[:, part] & raw[:, part].isnan(), 0.0, values)
            calibrated[:, part] = values
        columns = {f"{name}/{self.dictionary.names[part]}": raw[:, part] for part in self.live}
        columns |= {f"{name}/calibrated/{self.dictionary.names[part]}": calibrated[:, part] for part in self.live}
        columns[f"{name}/calibrated/all"] = calibrated[:, self.live].nanmean(dim=1)
        foreground = [part for part in self.live if part != BACKGROUND]
        columns[f"{name}/calibrated/without_background"] = calibrated[:, foreground].nanmean(dim=1)
        for key, values in columns.items():
            scores.metrics[key] = float(values.nanmean())
            for row, value in zip(scores.rows, values.tolist(), strict=True):
                row[PREFIX + key] = value
        scores.metrics[f"{name}/seen"] = float((~raw[asked].isnan()).double().mean())


def unreadable(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Judge -> part that it cannot read -> its AUC.

    Args:
        metrics: as ``JudgeScorer.calibration_metrics`` gives them.
    """
    found: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        name, _, rest = key.partition("/")
        kind, _, part = rest.partition("/")
        if kind == "readable" and not value:
            found.setdefault(name, {})[part] = metrics[f"{name}/auc/{part}"]
    return found


def _view(image: Tensor, label_map: Tensor) -> PartView:
    return PartView(clamp_aspect(image), label_map)  # label maps are of what is left then


def _agreement(pairs: Sequence[tuple[float, float]]) -> float:
    """AUC of (score, verdict 1 or 0); what is NaN does not count."""
    table = torch.tensor(pairs, dtype=torch.float64)
    table = table[~table.isnan().any(dim=1)]
    return area_under_curve(table[table[:, 1] == 1, 0], table[table[:, 1] == 0, 0])


def _answers(
    judge: PartJudge, questions: Iterator[Comparison], count: int, progress: Callable[[int, int], None]
) -> Tensor:
    """(count,) float64, a few questions at a time."""
    answers: list[Tensor] = []
    done = 0
    while some := list(islice(questions, _AT_ONCE)):
        stopping.check()
        answers.append(judge(some).double().cpu())
        done += len(some)
        progress(done, count)
    return torch.cat(answers) if answers else torch.zeros(0, dtype=torch.float64)
