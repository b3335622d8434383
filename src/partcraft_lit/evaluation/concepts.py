"""Scores of an image's concepts: each asked for by its own prompt, all together by one, compared with the truth."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from partcraft_lit.core.images import read_image
from partcraft_lit.core.randomness import image_seed
from partcraft_lit.core.types import ImageSource
from partcraft_lit.data.concept_prompts import COMBINED, ConceptSet
from partcraft_lit.evaluation.image_scores import Row, rows_of_images
from partcraft_lit.evaluation.sampling import Draw, draw_missing
from partcraft_lit.metrics.clip import ClipEncoder, ClipScore
from partcraft_lit.metrics.features import ImageFeatures, unit_float64
from partcraft_lit.module import PersonalizationModule

#: Drawn images of the truth with which an image is compared.
_REFERENCES = 16
_PLACEHOLDER = re.compile(r"<([^<>]*)>")


@runtime_checkable
class DrawsConcepts(Protocol):
    """A source that can draw its concepts again, together or one by itself.

    Attributes:
        part_names: nouns of the concepts.
    """

    part_names: Sequence[str]

    def another(self, number: int, creature: int | None = None) -> Tensor: ...

    def color_judge(self, creature: int) -> Callable[[Sequence[Tensor]], Tensor] | None: ...


@runtime_checkable
class HasConcepts(Protocol):
    """A source of photographs that come with prompts and reference images."""

    def concepts(self, index: int) -> ConceptSet: ...


@dataclass(frozen=True)
class ConceptRequest:
    """What is asked for, and what it should look like.

    Attributes:
        protocol: "combined", "concept1", "concept2", ...
        prompts: in the prompt grammar.
        texts: the same without tokens, as CLIP reads them.
        references: (3, height, width) uint8 images of the truth.
        right_colors: images -> (I,) share of the parts in the right colour, where one creature that can be judged so is
            asked for.
    """

    protocol: str
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    references: tuple[Tensor, ...]
    right_colors: Callable[[Sequence[Tensor]], Tensor] | None = None


class ConceptScorer:
    """Image and text alignment of images that are asked for by concept prompts.

    Args:
        name: of the set of concepts; decides seeds.
        requests: what is asked for.
        features: networks that describe images; one that reads texts too gives text alignment.
        samples: images per prompt.
        seed: of the images.

    Source: DisenDiff (arXiv 2403.18551), section 4.1, where the network is CLIP ViT-B/32, with 16 images per prompt.
    """

    def __init__(
        self,
        name: str,
        requests: Sequence[ConceptRequest],
        features: Sequence[ImageFeatures],
        samples: int,
        seed: int,
    ) -> None:
        self._name, self._seed, self._samples = name, seed, samples
        self._features = tuple(features)
        self.requests = {request.protocol: request for request in requests}

    @classmethod
    def of(
        cls, source: ImageSource, names: Sequence[str], features: Sequence[ImageFeatures], samples: int, seed: int
    ) -> ConceptScorer | None:
        """For one pair of drawn creatures, and for one photograph with its prompts; None for all others.

        Args:
            source: the images that were trained on.
            names: of all M + 1 parts of the dictionary, the background first.
            features: as in the class; without any there is nothing to measure.
            samples: images per prompt; none: nothing is scored.
            seed: of the images.
        """
        if not (samples and features):
            return None
        if isinstance(source, DrawsConcepts) and len(names) == len(source.part_names) + 1:
            return cls("creatures", _drawn(source, names), features, samples, seed)
        if isinstance(source, HasConcepts) and len(source.class_names) == 1:
            concepts = source.concepts(0)
            if len(names) == len(concepts.nouns) + 1:
                return cls(concepts.name, _photographed(concepts, names), features, samples, seed)
        return None

    def score(
        self,
        module: PersonalizationModule,
        protocol: str,
        folder: Path,
        progress: Callable[[int, int], None] | None = None,
        draw: Draw = draw_missing,
    ) -> tuple[list[Row], dict[str, float]]:
        """Draws the images of one protocol, as far as they are missing, and reads them.

        Returns:
            A line per image, and the metrics of the protocol as ``metrics`` gives them.
        """
        prompts, seeds = self._asked(protocol)
        paths = draw(module, prompts, seeds, folder / protocol, protocol, progress)
        rows = self.read(protocol, paths, folder)
        return rows, self.metrics(protocol, rows)

    def read(self, protocol: str, paths: Sequence[Path], folder: Path) -> list[Row]:
        """A line per image that stands, in the order in which they were asked for.

        Scores are ``image@<id>``, the mean cosine of an image and the references; with a network that reads texts
        ``text@<id>``, CLIPScore of the prompt without tokens; and, where a drawn bird is alone, ``color_accuracy``, the
        share of its parts that are there in the right colour.
        """
        request = self.requests[protocol]
        prompts, seeds = self._asked(protocol)
        images = [read_image(path) for path in paths]
        rows = rows_of_images(protocol, prompts, seeds, paths, folder)
        for network in self._features:
            vectors = _described(network, images)
            likeness = (vectors @ _described(network, request.references).T).mean(dim=1)  # (I,)
            _add(rows, f"image@{network.id}", likeness)
            if isinstance(network, ClipEncoder):
                texts = [request.texts[index // self._samples] for index in range(len(images))]
                _add(rows, f"text@{network.id}", ClipScore(network).scores(vectors, texts))
        if request.right_colors is not None and images:
            _add(rows, "color_accuracy", request.right_colors(images))
        return rows

    def metrics(self, protocol: str, rows: Sequence[Row]) -> dict[str, float]:
        """Means of the lines, and ``truth_image@<id>``: what images of the truth have, compared with each other.

        No generated image can be expected to score higher than the truth.
        """
        scores = [key for key in rows[0] if "@" in key or key == "color_accuracy"] if rows else []
        metrics = {key: sum(row[key] for row in rows) / len(rows) for key in scores}
        references = self.requests[protocol].references
        for network in self._features if len(references) > 1 else ():
            vectors = _described(network, references)
            others = (vectors @ vectors.T).sum() - len(references)  # without the cosine of each with itself
            metrics[f"truth_image@{network.id}"] = float(others / (len(references) * (len(references) - 1)))
        return metrics

    def _asked(self, protocol: str) -> tuple[list[str], list[int]]:
        """Prompt and seed of each image; a seed depends on the place of the prompt, whatever the model."""
        prompts = self.requests[protocol].prompts
        each = [(place, sample) for place in range(len(prompts)) for sample in range(self._samples)]
        seeds = [image_seed(self._seed, "alignment", self._name, protocol, place, sample) for place, sample in each]
        return [prompts[place] for place, _ in each], seeds


def grammar_prompt(prompt: str, nouns: Sequence[str], names: Sequence[str]) -> str:
    """A published prompt with our tokens in place of its placeholders.

    ``<new2>`` becomes the token of the second concept, whatever the word before the number; ``<chair>``, where that is
    a noun of the set, its token and the noun.

    Args:
        prompt: "photo of a <new1> cat".
        nouns: of the concepts.
        names: of all M + 1 parts; a concept is the part that is called by its noun, else the one in its place.
    """
    tokens = {noun.lower(): f"<{_part(place, noun, names)}:0>" for place, noun in enumerate(nouns)}

    def token(match: re.Match[str]) -> str:
        word = match[1].strip().lower()
        if word in tokens:
            return f"{tokens[word]} {word}"
        number = re.search(r"(\d+)$", word)
        place = int(number[1]) - 1 if number else -1
        return list(tokens.values())[place] if 0 <= place < len(tokens) else ""

    return " ".join(_PLACEHOLDER.sub(token, prompt).split())


def _part(place: int, noun: str, names: Sequence[str]) -> str:
    """Name of the part that a concept is."""
    lower = [name.lower() for name in names]
    return names[lower.index(noun.lower())] if noun.lower() in lower else names[place + 1]


def _photographed(concepts: ConceptSet, names: Sequence[str]) -> list[ConceptRequest]:
    return [
        ConceptRequest(
            protocol,
            tuple(grammar_prompt(prompt, concepts.nouns, names) for prompt in subset.prompts),
            subset.texts,
            (subset.reference,),
        )
        for protocol, subset in concepts.subsets.items()
    ]


def _drawn(source: DrawsConcepts, names: Sequence[str]) -> list[ConceptRequest]:
    """ "a photo of <bird:0> bird and <beast:0> beast" for the pair, and one such prompt for each by itself."""
    nouns = tuple(source.part_names)
    phrases = [f"<{_part(place, noun, names)}:0> {noun}" for place, noun in enumerate(nouns)]
    requests = [_drawn_request(source, COMBINED, " and ".join(phrases), " and ".join(nouns), None)]
    for place, noun in enumerate(nouns):
        requests.append(_drawn_request(source, f"concept{place + 1}", phrases[place], noun, place))
    return requests


def _drawn_request(
    source: DrawsConcepts, protocol: str, phrase: str, text: str, creature: int | None
) -> ConceptRequest:
    return ConceptRequest(
        protocol,
        (f"a photo of {phrase}",),
        (f"a photo of {text}",),
        tuple(source.another(number, creature) for number in range(_REFERENCES)),
        None if creature is None else source.color_judge(creature),
    )


def _described(network: ImageFeatures, images: Sequence[Tensor]) -> Tensor:
    """(I, D) float64 directions; images of one size go through the network together."""
    if len({image.shape for image in images}) == 1:
        return unit_float64(network(torch.stack(list(images))))
    return torch.cat([unit_float64(network(image[None])) for image in images])


def _add(rows: Sequence[dict[str, Any]], key: str, values: Tensor) -> None:
    for row, value in zip(rows, values.tolist(), strict=True):
        row[key] = value
