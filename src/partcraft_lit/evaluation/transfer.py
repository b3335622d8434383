"""Parts beyond their own category: on creatures of another one, in the negative prompt, and two of a kind.

PartCraft's authors show a teddy bear with a bird's wing and call this "still in its infancy". Here the true drawing is
known, so it can be counted: an image has a part where, of drawings that differ in this part alone, those of the
requested species are the nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.images import read_image
from partcraft_lit.core.randomness import image_seed, torch_generator
from partcraft_lit.core.types import ABSENT, BACKGROUND, ImageSource
from partcraft_lit.evaluation.image_scores import Row, rows_of_images
from partcraft_lit.evaluation.sampling import Draw, draw_missing
from partcraft_lit.metrics.features import ImageFeatures
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.parts.predictor import KMeansPartPredictor

#: True part -> species that it is of.
Guests = Mapping[str, int]

#: Protocols, and how many guest parts those of transfer have.
TRANSFERS: Mapping[str, int] = {"transfer of 1": 1, "transfer of 2": 2}
NEGATIVE, TWO_TOKENS = "negative part", "two tokens"
#: Poses in which the truth is drawn, and the pose of the drawing that is scored as the ceiling.
_POSES = range(3)
_CEILING_POSE = 100


@dataclass(frozen=True)
class TransferRequest:
    """A creature of another category with parts of this one.

    Attributes:
        template: prompt with a slot {name} for the token of each guest part.
        guests: true part -> species.
    """

    template: str
    guests: Guests


class Transfers(Protocol):
    """Draws what is asked for, as it truly looks."""

    num_species: int

    def request(self, number: int, parts: int, names: Sequence[str]) -> TransferRequest:
        """Request ``number`` with so many guest parts out of ``names``."""
        ...

    def truths(self, number: int, guests: Guests, poses: Sequence[int]) -> Tensor:
        """(P, 3, H, W) uint8."""
        ...

    def other_species(self, number: int, guests: Guests, part: str, poses: Sequence[int]) -> Tensor:
        """(S, P, 3, H, W): the part of every species."""
        ...

    def other_hosts(self, number: int, guests: Guests, poses: Sequence[int]) -> Tensor:
        """(hosts, P, 3, H, W): the asked host first."""
        ...

    def read(self, number: int, guests: Guests, images: Tensor) -> list[dict[str, float]]:
        """What a judge that knows ground truth reads in (B, 3, H, W) images of a request; nothing without one."""
        ...


@runtime_checkable
class HasTransfers(Protocol):
    """A data set whose parts can be drawn on creatures of another category."""

    part_names: Sequence[str]

    @property
    def transfers(self) -> Transfers: ...


@dataclass(frozen=True)
class Asked:
    """One image of a protocol.

    Attributes:
        prompt: in the prompt grammar.
        seed: of the image.
        negative: negative prompt, or "" for the run's own.
        codes: (M + 1,) codes that a negative part or a second token is about; empty of a transfer.
        part: that part; -1 of a transfer.
        code: its code.
    """

    prompt: str
    seed: int
    negative: str = ""
    codes: tuple[int, ...] = ()
    part: int = -1
    code: int = ABSENT


class TransferScorer:
    """Draws and scores the four protocols.

    Args:
        source: the data set.
        match: true part -> discovered part, None without one.
        predictor: reads parts off images of the data set's own category.
        codes: (N, M + 1) codes of the real images.
        labels: (N,) species.
        features: networks that compare images with drawings.
        samples: images per protocol.
        seed: of everything drawn.
    """

    def __init__(
        self,
        source: HasTransfers,
        match: Mapping[str, int | None],
        predictor: KMeansPartPredictor,
        codes: Tensor,
        labels: Tensor,
        features: Sequence[ImageFeatures],
        samples: int,
        seed: int,
    ) -> None:
        self._drawings = source.transfers
        self._match = {name: part for name in source.part_names if (part := match.get(name)) is not None}
        self._predictor, self._codes, self._labels = predictor, codes, labels
        self._features, self._samples, self._seed = tuple(features), samples, seed

    @classmethod
    def of(
        cls,
        source: ImageSource,
        metadata: Mapping[str, Any],
        predictor: KMeansPartPredictor,
        codes: Tensor,
        labels: Tensor | None,
        features: Sequence[ImageFeatures],
        samples: int,
        seed: int,
    ) -> TransferScorer | None:
        """None for a data set whose parts nobody can draw elsewhere, or if nothing is wanted."""
        if not (samples and features and labels is not None and isinstance(source, HasTransfers)):
            return None
        match = metadata.get("quality", {}).get("match", {})
        if sum(match.get(name) is not None for name in source.part_names) < max(TRANSFERS.values()):
            return None
        return cls(source, match, predictor, codes, labels, features, samples, seed)

    @property
    def protocols(self) -> tuple[str, ...]:
        return (*TRANSFERS, NEGATIVE, TWO_TOKENS)

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
            A line per image, and their means; of transfers also ``truth_part@<id>`` and so on, the scores of true
            drawings in another pose.
        """
        asked = self.asked(protocol, module)
        place = folder / protocol.replace(" ", "_")
        paths = self._draw(module, asked, place, protocol, progress, draw)
        rows = rows_of_images(protocol, [one.prompt for one in asked], [one.seed for one in asked], paths, folder)
        images = [read_image(path) for path in paths]
        if protocol in TRANSFERS:
            found = [self._transferred(protocol, number, image) for number, image in enumerate(images)]
        else:
            found = self._own(protocol, asked, images)
        for row, scores in zip(rows, found, strict=True):
            row.update({key: value for key, value in scores.items() if not key.startswith("truth_")})
        return rows, _means(found)

    def asked(self, protocol: str, module: PersonalizationModule) -> list[Asked]:
        """What is drawn, the same for every model that has these parts."""
        ask = {NEGATIVE: self._negative, TWO_TOKENS: self._two_tokens}.get(protocol)
        if ask is not None:
            return [ask(number, module) for number in range(self._samples)]
        return [self._transfer(protocol, number) for number in range(self._samples)]

    def _transfer(self, protocol: str, number: int) -> Asked:
        request = self._request(protocol, number)
        tokens = {name: self._token(name, species, number) for name, species in request.guests.items()}
        return Asked(request.template.format(**tokens), self._image_seed(protocol, number))

    def _negative(self, number: int, module: PersonalizationModule) -> Asked:
        """A real image's parts, one of them also in the negative prompt."""
        codes, part, _ = self._own_parts(NEGATIVE, number)
        prompt = module.method.plain_caption(torch.tensor(codes))
        token = self._written(part, codes[part])
        return Asked(prompt, self._image_seed(NEGATIVE, number), f"a photo of a {token}", tuple(codes), part)

    def _two_tokens(self, number: int, module: PersonalizationModule) -> Asked:
        """A real image's parts, and a second token of one of them."""
        codes, part, other = self._own_parts(TWO_TOKENS, number)
        first, second = self._written(part, codes[part]), self._written(part, other)
        prompt = module.method.plain_caption(torch.tensor(codes)).replace(first, f"{first} {second}")
        return Asked(prompt, self._image_seed(TWO_TOKENS, number), "", tuple(codes), part, other)

    def _own_parts(self, protocol: str, number: int) -> tuple[list[int], int, int]:
        """Codes of a random image, one of its foreground parts, and another code of that part."""
        generator = torch_generator(self._seed, protocol, number)
        for image in torch.randperm(len(self._codes), generator=generator).tolist():
            codes = [int(code) for code in self._codes[image]]
            shown = [part for part in self._match.values() if codes[part] != ABSENT]
            if not shown:
                continue
            part = shown[int(torch.randint(len(shown), (), generator=generator))]
            others = sorted({int(code) for code in self._codes[:, part]} - {ABSENT, codes[part]})
            if others:
                return codes, part, others[int(torch.randint(len(others), (), generator=generator))]
        raise RuntimeError("No image shows a part of which there are two codes.")

    def _own(self, protocol: str, asked: Sequence[Asked], images: Sequence[Tensor]) -> list[dict[str, float]]:
        """``kept``: share of the other foreground parts that are read as asked.

        A negative part is ``removed`` where it is read as another code or not at all; of two tokens the part shows
        ``either`` where one of them is read.
        """
        found = self._predictor.predict(images).codes
        scores = []
        for one, read in zip(asked, found.tolist(), strict=True):
            others = [p for p in range(BACKGROUND + 1, len(read)) if p != one.part and one.codes[p] != ABSENT]
            kept = sum(read[p] == one.codes[p] for p in others) / len(others) if others else float("nan")
            own = read[one.part] == one.codes[one.part]
            if protocol == NEGATIVE:
                scores.append({"removed": float(not own), "kept": kept})
            else:
                scores.append({"either": float(own or read[one.part] == one.code), "kept": kept})
        return scores

    def _transferred(self, protocol: str, number: int, image: Tensor) -> dict[str, float]:
        """``part``: share of guest parts that look like those of their species; ``host``: whether the creature does.

        Behind ``truth_`` the same of the true drawing in another pose.
        """
        guests, poses = self._request(protocol, number).guests, list(_POSES)
        truth = self._drawings.truths(number, guests, [_CEILING_POSE + number])[0]
        species = {part: self._drawings.other_species(number, guests, part, poses) for part in guests}
        hosts = self._drawings.other_hosts(number, guests, poses)
        read = self._drawings.read(number, guests, torch.stack([image, truth]))
        scores = {f"{prefix}{key}": v for prefix, found in zip(("", "truth_"), read) for key, v in found.items()}
        for network in self._features:
            right = torch.tensor(
                [
                    [found == guests[part] for found in nearest(network, [image, truth], drawn)]
                    for part, drawn in species.items()
                ]
            )
            host = [found == 0 for found in nearest(network, [image, truth], hosts)]
            for prefix, place in (("", 0), ("truth_", 1)):
                scores[f"{prefix}part@{network.id}"] = float(right[:, place].double().mean())
                scores[f"{prefix}host@{network.id}"] = float(host[place])
        return scores

    def _request(self, protocol: str, number: int) -> TransferRequest:
        return self._drawings.request(number, TRANSFERS[protocol], list(self._match))

    def _token(self, name: str, species: int, number: int) -> str:
        """The token of a species' part: the code of one of its images."""
        part = self._match[name]
        images = ((self._labels == species) & (self._codes[:, part] != ABSENT)).nonzero().flatten()
        if len(images) == 0:
            return ""
        generator = torch_generator(self._seed, "token", name, species, number)
        image = int(images[int(torch.randint(len(images), (), generator=generator))])
        return self._written(part, int(self._codes[image, part]))

    def _written(self, part: int, code: int) -> str:
        return f"<{self._predictor.dictionary.names[part]}:{code}>"

    def _image_seed(self, protocol: str, number: int) -> int:
        return image_seed(self._seed, "transfer picture", protocol, number)

    def _draw(
        self,
        module: PersonalizationModule,
        asked: Sequence[Asked],
        place: Path,
        protocol: str,
        progress: Callable[[int, int], None] | None,
        draw: Draw,
    ) -> list[Path]:
        """The images; those with a negative prompt one by one, since it belongs to the settings of sampling."""
        if not any(one.negative for one in asked):
            return draw(module, [one.prompt for one in asked], [one.seed for one in asked], place, protocol, progress)
        own, paths = module.sampling, []
        try:
            for index, one in enumerate(asked):
                module.use_sampling(replace(own, negative_prompt=one.negative))
                paths += draw(module, [one.prompt], [one.seed], place / f"{index:05d}", protocol)
                if progress is not None:
                    progress(index + 1, len(asked))
        finally:
            module.use_sampling(own)
        return paths


def nearest(network: ImageFeatures, images: Sequence[Tensor], candidates: Tensor) -> list[int]:
    """The candidate that each image looks most like.

    What all candidates have in common is subtracted first: they differ in little, and an image of a model differs
    from all of them in much.

    Args:
        network: describes images.
        images: (3, H, W) uint8.
        candidates: (N, P, 3, H, W) uint8, P drawings of each.
    """
    described = network(candidates.flatten(0, 1)).double().cpu()  # (N P, D)
    common = described.mean(dim=0)
    likeness = F.normalize(described - common, dim=-1).unflatten(0, candidates.shape[:2]).mean(dim=1)
    own = network(torch.stack(list(images))).double().cpu() - common
    nearest_ones: list[int] = (own @ F.normalize(likeness, dim=-1).T).argmax(dim=1).tolist()
    return nearest_ones


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the lines that have a value."""
    means = {}
    for key in rows[0] if rows else ():
        values = [row[key] for row in rows if row[key] == row[key]]
        means[key] = sum(values) / len(values) if values else float("nan")
    return means
