"""What a run scored: by protocol, as numbers for logs and files, and as lines on the console."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.progress import Stages
from partcraft_lit.evaluation.image_scores import Row
from partcraft_lit.evaluation.judging import PREFIX, REAL_IMAGES, unreadable
from partcraft_lit.metrics.composition import PartScores

#: Images of the same classes that were not trained on.
HELD_OUT = "held-out reconstruction"
#: Before the name of a protocol: the same images as a perfect model would give them.
CEILING = "ceiling "


@dataclass
class Scores:
    """Everything that was scored.

    Attributes:
        protocols: "reconstruction", "2 species", ... -> scores of the trained model.
        untrained: the same for the model before training, for protocols where it was measured.
        ceilings: real images read twice: "vae_round_trip", "mirrored", "recropped".
        truth: scores against the truth, by protocol; empty where it is not known.
        pictures: metrics of whole images of the trained model, by protocol; behind ``CEILING`` those of images
            that a perfect model would draw.
        judges: scores of parts by judges, by protocol; of real images their calibration, of all images their agreement
            with the truth.
        rows: one per image of the trained model.
        codes: name -> effective number of codes, of the parts that have fewer than K.
    """

    protocols: dict[str, PartScores] = field(default_factory=dict)
    untrained: dict[str, PartScores] = field(default_factory=dict)
    ceilings: dict[str, PartScores] = field(default_factory=dict)
    truth: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: dict[str, dict[str, float]] = field(default_factory=dict)
    judges: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """One number per key, for logs and files."""
        scores: dict[str, float] = {}
        for prefix, group in (("eval", self.protocols), ("untrained", self.untrained), ("ceiling", self.ceilings)):
            for protocol, of_parts in group.items():
                scores.update(of_parts.flat(protocol.replace(" ", "_"), prefix))
        groups = (("truth/", self.truth), ("pictures/", self.pictures), (PREFIX, self.judges))
        for kind, group_of in groups:
            for protocol, values in group_of.items():
                scores.update({f"{kind}{key}@{protocol.replace(' ', '_')}": value for key, value in values.items()})
        return scores | {f"codes/{name}": float(number) for name, number in self.codes.items()}


@dataclass(frozen=True)
class ProtocolScores:
    """What one protocol gave.

    Attributes:
        scores: means over images.
        truth: scores against the truth; empty where it is not known.
        rows: one per image, see ``image_scores``.
        label_maps: where the part predictor has seen the parts, one per image.
    """

    scores: PartScores
    truth: dict[str, float]
    rows: list[Row]
    label_maps: list[Tensor]


def annotation_scores(metadata: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What discovery's report says of boxes and keypoints, as the "protocol" of the real images; empty without them."""
    annotations = metadata.get("annotations", {})
    metrics = {key: value for key, value in annotations.items() if isinstance(value, float) and value == value}
    return {"real images": metrics} if metrics else {}


def write_scores(scores: Scores, folder: Path) -> dict[str, float]:
    """``scores.json`` with one number per key; returns them."""
    flat = scores.flat()
    atomic_write(folder / "scores.json", json.dumps(_finite(flat), indent=1) + "\n")
    return flat


def _finite(scores: Mapping[str, float]) -> dict[str, Any]:
    return {key: value if value == value else None for key, value in scores.items()}


def log_scores(scores: Scores, stages: Stages) -> None:
    """A line per protocol."""
    for kind, group in (("", scores.protocols), ("untrained ", scores.untrained), ("ceiling ", scores.ceilings)):
        for protocol, values in group.items():
            stages.log(
                f"  {kind}{protocol}: EMR {values.emr['all']:.3f} (without background "
                f"{values.emr['without_background']:.3f}), CoSim {values.cosim['all']:.3f}, n = {values.num_images}"
            )
    for protocol, metrics in scores.truth.items():
        shown = ", ".join(f"{key} {value:.3f}" for key, value in metrics.items())
        stages.log(f"  against the truth, {protocol}: {shown}")
    for protocol, metrics in scores.pictures.items():
        stages.log(f"  whole images, {protocol}: " + ", ".join(f"{key} {v:.4g}" for key, v in metrics.items()))
    _log_judges(scores.judges, stages)


def _log_judges(judges: Mapping[str, Mapping[str, float]], stages: Stages) -> None:
    """What each judge can read, then its calibrated scores."""
    for name, parts in unreadable(judges.get(REAL_IMAGES, {})).items():
        listed = ", ".join(f"{part} (AUC {auc:.2f})" for part, auc in parts.items())
        stages.log(f"  judge {name} cannot tell codes of {listed} apart on real images: its means leave them out")
    for protocol, metrics in judges.items():
        shown = {
            key: value for key, value in metrics.items() if key.split("/")[1] in ("calibrated", "auc", "agreement")
        }
        stages.log(f"  judges, {protocol}: " + ", ".join(f"{key} {value:.3f}" for key, value in shown.items()))


def scores_as_values(scores: Mapping[str, PartScores]) -> dict[str, Any]:
    return {name: asdict(of_parts) for name, of_parts in scores.items()}


def scores_of_values(values: Mapping[str, Any]) -> dict[str, PartScores]:
    return {name: PartScores(**of_parts) for name, of_parts in values.items()}
