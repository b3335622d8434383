"""What a callback may ask the run for; one that needs more than trainer and module implements ``bind``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import PartPredictor, TrainingBatch


@dataclass(frozen=True)
class ProbePrompts:
    """Prompts whose images are drawn over and over during training.

    Attributes:
        prompts: in the prompt grammar.
        seeds: one per prompt, the same for the whole run, so that images of two steps differ by training alone.
        codes: (prompts, M + 1) what the prompts ask for.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    codes: Tensor

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.seeds) or not self.prompts:
            raise ValueError(
                f"One seed per prompt, and at least one: got {len(self.prompts)} prompts and {len(self.seeds)} seeds."
            )


class TrainingRun(Protocol):
    """What a run offers to its callbacks, once its parts are known."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        ...

    @property
    def part_names(self) -> Sequence[str]:
        """Names of all M + 1 parts, the background first."""
        ...

    @property
    def probe_prompts(self) -> ProbePrompts: ...

    @property
    def probe_batch(self) -> TrainingBatch:
        """A few training images with all their parts in the captions, with fixed noise and timesteps."""
        ...

    @property
    def predictor(self) -> PartPredictor: ...

    def image_name(self, index: int) -> str:
        """What a person calls the image of ``TrainingBatch.image_ids``."""
        ...

    def cached_grid(self, key: Sequence[Any], draw: Callable[[], Tensor]) -> Tensor:
        """(3, height, width) uint8 sample grid of the untrained model, shared by all runs that start alike.

        Args:
            key: what decides the grid beside the model and its sampling, in plain values.
            draw: makes it where no such run has.
        """
        ...


@runtime_checkable
class NeedsRun(Protocol):
    """A callback that asks the run for something before training starts."""

    def bind(self, run: TrainingRun) -> None:
        """Called once, after discovery and before ``trainer.fit``."""
        ...


@runtime_checkable
class WritesFolder(Protocol):
    """A callback with a folder of its own inside the run folder."""

    subfolder: str


def check_folders(callbacks: Iterable[object]) -> None:
    """Raises a UserError if two callbacks would overwrite each other's files."""
    taken: set[str] = set()
    for callback in callbacks:
        if isinstance(callback, WritesFolder):
            if callback.subfolder in taken:
                raise UserError(
                    f"Two callbacks write into {callback.subfolder}/ of the run folder: give one of them another, "
                    "callbacks.NAME.subfolder=FOLDER."
                )
            taken.add(callback.subfolder)
