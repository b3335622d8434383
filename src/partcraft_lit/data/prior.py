"""Prior preservation images: samples of the class by the frozen model, or a folder of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from partcraft_lit.backbones.sampling import sample
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.store import Entry, Store, stable_hash
from partcraft_lit.core.types import Backbone, ImageSource
from partcraft_lit.data.folder import ImageFolder
from partcraft_lit.data.settings import PriorSettings

KIND = "prior"


class DrawnImages:
    """Images sampled by a model and cached in the store: an image source."""

    class_names: Sequence[str] = ()

    def __init__(self, store: Store, keys: Sequence[str], class_noun: str = "") -> None:
        self.class_noun = class_noun
        self._store = store
        self._keys = list(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def image(self, index: int) -> Tensor:
        """(3, side, side) uint8."""
        entry = self._store.get(KIND, self._keys[index])
        if entry is None:
            raise UserError(
                f"Prior image {index} is missing from {self._store.root} or damaged. Start again: missing images are "
                "sampled at the start."
            )
        return entry["image"]

    def name(self, index: int) -> str:
        return f"prior {index}"

    def content_hash(self, index: int) -> str:
        return self._keys[index]

    def label(self, index: int) -> int | None:
        return None


def prior_prompt(settings: PriorSettings, class_noun: str) -> str:
    """The prompt of the prior images.

    Raises:
        UserError: for ``prompt="auto"`` and a dataset without a class noun.
    """
    if settings.prompt != "auto":
        return settings.prompt
    if not class_noun:
        raise UserError(
            "prior.prompt=auto is 'a photo of a' with the noun of the dataset, and this one has none: set "
            "dataset.class_noun, for instance dataset.class_noun=bird, or prior.prompt='a photo of a bird'."
        )
    return f"a photo of {'an' if class_noun[0].lower() in 'aeiou' else 'a'} {class_noun}"


def prior_source(
    settings: PriorSettings,
    backbone: Backbone,
    store: Store,
    class_noun: str,
    progress: Callable[[int, int], None] | None = None,
) -> ImageSource:
    """Prior images from a folder, or sampled by the untrained backbone and cached.

    Args:
        settings: number of images, prompt and sampling settings.
        backbone: untrained.
        store: cache of the samples, keyed by the backbone's hash, prompt, seed and sampling settings.
        class_noun: of the dataset.
        progress: called with (images ready, images).
    """
    if settings.dir is not None:
        return cast(ImageSource, ImageFolder(settings.dir, store=store.root, labels="none"))
    prompt = prior_prompt(settings, class_noun)
    drawing = (settings.steps, settings.guidance_scale, settings.scheduler, backbone.resolution)
    seeds = [settings.seed + index for index in range(settings.images)]
    keys = [stable_hash(KIND, backbone.hash, prompt, seed, *drawing) for seed in seeds]

    def compute(indices: list[int]) -> Iterator[Entry]:
        images = sample(
            backbone,
            backbone.plain_tokens([prompt] * len(indices)),
            None,
            seeds=[seeds[index] for index in indices],
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            scheduler=settings.scheduler,
        )
        yield from ({"image": image} for image in images)

    store.fill(KIND, keys, compute, settings.batch_size, progress)
    return DrawnImages(store, keys, class_noun)


class FixedCaption:
    """One caption for every image; picklable, for loader workers."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt

    def __call__(self, codes: Tensor, generator: torch.Generator) -> str:
        return self.prompt
