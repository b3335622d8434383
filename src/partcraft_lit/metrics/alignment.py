"""Image and text alignment of pictures that hold several learned concepts, as DisenDiff measures them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.images import read_image
from partcraft_lit.core.randomness import derive_seed
from partcraft_lit.metrics.clip import ClipEncoder, ClipScore
from partcraft_lit.metrics.features import Shared, unit

#: Subset for prompts with all concepts at once.
COMBINED = "combined"
_PLACEHOLDER = re.compile(r"<([^<>]*)>")


@dataclass(frozen=True)
class ConceptSubset:
    """What is asked for, and what it should look like.

    Attributes:
        prompts: with placeholders, as they are given to a model.
        texts: the same without placeholders, as CLIP reads them.
        reference: (3, height, width) uint8: the training picture, or the cut-out of one concept.
    """

    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    reference: Tensor


@dataclass(frozen=True)
class ConceptSet:
    """One picture with several concepts.

    Attributes:
        name: of its folder.
        nouns: class of each concept.
        subsets: "combined", "concept1", "concept2", ...
    """

    name: str
    nouns: tuple[str, ...]
    subsets: dict[str, ConceptSubset]


class ConceptAlignment(Metric):
    """Image and text alignment for the prompts of a :class:`ConceptSet`, apart for all concepts together and for each.

    Image alignment is the mean cosine of generated pictures and the reference in CLIP's space; a picture that was asked
    for one concept is compared with the cut-out of that concept. Text alignment is CLIPScore of the prompt without its
    placeholders. Both are means over a prompt's pictures, then over the prompts that have any.

    Args:
        concepts: what is asked for.
        encoder: the published numbers are CLIP ViT-B/32's; shared by copies.

    Source: DisenDiff (arXiv 2403.18551), section 4.1, and its evaluation scripts. Differs: placeholders other than
    ``<new1>``, ``<new2>`` are cleaned too, which its scripts leave in the text (``<mew2>`` in ``cow_bird``, ``<chair>``
    in ``chair_lamp``), and the pictures go to CLIP without a stop at 512 pixels.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, concepts: ConceptSet, encoder: ClipEncoder, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.concepts = concepts
        self._encoder = Shared(encoder)
        self._score = Shared(ClipScore(encoder))
        self._references = {
            name: unit(encoder(subset.reference[None])[0].double()).cpu() for name, subset in concepts.subsets.items()
        }
        for name, subset in concepts.subsets.items():
            for kind in ("image", "text", "count"):
                zeros = torch.zeros(len(subset.prompts), dtype=torch.float64)
                self.add_state(f"{kind}_{name}", zeros, dist_reduce_fx="sum")

    def update(self, images: Tensor, subset: str, prompt: int) -> None:
        """Adds pictures of one prompt.

        Args:
            images: uint8 (B, 3, H, W).
            subset: "combined", "concept1", ...
            prompt: index into the subset's prompts.

        Raises:
            ValueError: if there is no such subset or prompt.
        """
        known = self.concepts.subsets
        if subset not in known or not 0 <= prompt < len(known[subset].prompts):
            numbers = ", ".join(f"{name} 0...{len(part.prompts) - 1}" for name, part in known.items())
            raise ValueError(f"There is no prompt {prompt} of {subset!r} in {self.concepts.name}: it has {numbers}.")
        features = self._encoder.value(images)
        likeness = unit(features.double().cpu()) @ self._references[subset]
        scores = self._score.value.scores(features, [known[subset].texts[prompt]] * len(images))
        for kind, value in (("image", likeness.sum()), ("text", scores.sum()), ("count", len(images))):
            getattr(self, f"{kind}_{subset}")[prompt] += value

    def compute(self) -> dict[str, Tensor]:
        """``image/combined``, ``image/concept1``, ..., ``image/mean`` over these, and ``text/...``, float64.

        NaN for a subset without pictures, and then for the mean.
        """
        result: dict[str, Tensor] = {}
        for kind in ("image", "text"):
            values = {}
            for name in self.concepts.subsets:
                count = getattr(self, f"count_{name}")
                values[name] = (getattr(self, f"{kind}_{name}") / count)[count > 0].mean()
            result |= {f"{kind}/{name}": value for name, value in values.items()}
            result[f"{kind}/mean"] = torch.stack(list(values.values())).mean()
        return result


def score_concepts(
    metric: ConceptAlignment,
    generate: Callable[[str, Sequence[int]], Tensor],
    samples: int = 16,
    seed: int = 0,
    batch_size: int = 4,
) -> dict[str, float]:
    """Generates for every prompt and scores; 16 pictures a prompt, as published.

    Args:
        metric: new or reset.
        generate: prompt with placeholders, B seeds -> (B, 3, H, W) uint8.
        samples: pictures per prompt.
        seed: picture j of a prompt has a seed of (this, subset, prompt, j) alone, whatever the model.
        batch_size: pictures at a time.
    """
    for name, subset in metric.concepts.subsets.items():
        for index, prompt in enumerate(subset.prompts):
            seeds = [derive_seed(seed, "alignment", metric.concepts.name, name, index, j) for j in range(samples)]
            for start in range(0, samples, batch_size):
                metric.update(generate(prompt, seeds[start : start + batch_size]), name, index)
    return {key: float(value) for key, value in metric.compute().items()}


def read_concepts(folder: str | Path) -> ConceptSet:
    """Reads a folder such as ``cat_dog/``.

    It holds ``prompts_global.txt`` and ``eval_global.jpg`` for all concepts together, and for each concept i from 1
    ``prompts_subject<i>.txt`` and ``eval_subject<i>.jpg``; pictures may have any format. The folder's name gives the
    nouns, joined by "_".

    Raises:
        UserError: if something is missing, unreadable or empty.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"There is no folder {folder}. {did_you_mean(folder.name, siblings)}".rstrip())
    nouns = tuple(folder.resolve().name.split("_"))
    names = {COMBINED: "global"} | {f"concept{i}": f"subject{i}" for i in range(1, len(nouns) + 1)}
    return ConceptSet(
        folder.resolve().name, nouns, {name: _read_subset(folder, suffix, nouns) for name, suffix in names.items()}
    )


def plain_text(prompt: str, nouns: Sequence[str] = ()) -> str:
    """A prompt without placeholders: ``<new1>`` goes, ``<chair>`` becomes "chair" where that is a noun of the set."""
    known = {noun.lower() for noun in nouns}
    text = _PLACEHOLDER.sub(lambda found: f" {found[1]} " if found[1].lower() in known else " ", prompt)
    return " ".join(text.split())


def _read_subset(folder: Path, suffix: str, nouns: Sequence[str]) -> ConceptSubset:
    path = folder / f"prompts_{suffix}.txt"
    pictures = sorted(folder.glob(f"eval_{suffix}.*"))
    if not path.is_file() or len(pictures) != 1:
        lacking = path.name if not path.is_file() else f"one picture eval_{suffix}.* (there are {len(pictures)})"
        raise UserError(
            f"{folder} is no complete set of {len(nouns)} concepts ({', '.join(nouns)}): it lacks {lacking}."
        )
    prompts = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not prompts:
        raise UserError(f"{path} holds no prompts: one a line is wanted.")
    return ConceptSubset(prompts, tuple(plain_text(prompt, nouns) for prompt in prompts), read_image(pictures[0]))
