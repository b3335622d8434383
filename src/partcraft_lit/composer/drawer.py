"""The trained model of a run, loaded when the first image is drawn, one drawing at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from partcraft_lit.backbones.settings import SampleSettings, Scheduler
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import TokenizedPrompts

if TYPE_CHECKING:  # Lightning takes seconds, and is needed to draw alone
    from partcraft_lit.module import PersonalizationModule

#: The preview: so many steps at most, by a sampler that starts from pure noise, which matters with few of them.
_PREVIEW_STEPS = 4
_PREVIEW_SCHEDULER: Scheduler = "dpm++_trailing"
T = TypeVar("T")
#: What torch says when the memory of a CPU is not enough: a plain RuntimeError.
_NO_MEMORY = ("not enough memory", "can't allocate memory")


def preview_of(sample: SampleSettings) -> SampleSettings:
    """Settings of a preview: few steps, everything else as it is."""
    return replace(sample, steps=min(sample.steps, _PREVIEW_STEPS), scheduler=_PREVIEW_SCHEDULER)


class Drawer:
    """Draws images, for any number of threads: they take turns.

    Args:
        load: loads the model with its trained weights; called once.
    """

    def __init__(self, load: Callable[[], PersonalizationModule]) -> None:
        self._load = load
        self._lock = threading.RLock()

    @cached_property
    def _module(self) -> PersonalizationModule:
        return self._load()

    def load(self) -> None:
        """Loads the model now, so that the first image does not wait for it."""
        with self._lock:
            _ = self._module

    def ask(self, question: Callable[[PersonalizationModule], T]) -> T:
        """What a function says of the model."""
        with self._lock:
            return question(self._module)

    def draw(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], seeds: Sequence[int], sample: SampleSettings
    ) -> list[Tensor]:
        """One (3, H, W) uint8 image per prompt; each depends on its own prompts and seed alone, up to rounding.

        Raises:
            UserError: for a prompt that is too long, or if the device has not enough memory.
        """
        images: dict[int, Tensor] = {}
        with self._lock:
            self._module.method.tokenize(list(prompts))  # raises for long prompts before sampling
            for negative in dict.fromkeys(negative_prompts):
                places = [place for place, other in enumerate(negative_prompts) if other == negative]
                self._module.use_sampling(replace(sample, negative_prompt=negative))
                with _memory_or_error(len(places)):
                    drawn = self._module.generate(
                        [prompts[place] for place in places], [seeds[place] for place in places]
                    )
                images.update(zip(places, drawn, strict=True))
        return [images[place] for place in range(len(prompts))]

    def attention(self, image: Tensor, prompt: str, seed: int) -> tuple[Tensor, TokenizedPrompts]:
        """(T, s, s) attention of each part token of the prompt on one image, and the tokens; see the module."""
        with self._lock, _memory_or_error(1):
            maps, tokens = self._module.image_attention(image[None], [prompt], [seed])
        return maps[0], tokens


@contextmanager
def _memory_or_error(images: int) -> Iterator[None]:
    """Turns the device's lack of memory into a message."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(words in str(error) for words in _NO_MEMORY):
            raise
        torch.cuda.empty_cache()
        raise UserError(
            f"There was not enough memory to draw {images} images: ask for fewer at once, or close other programs that "
            "use the device."
        ) from error
