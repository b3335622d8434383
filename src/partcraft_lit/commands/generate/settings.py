"""Settings of ``partcraft generate``."""

from __future__ import annotations

from dataclasses import dataclass

from partcraft_lit.backbones.settings import SampleSettings
from partcraft_lit.core.settings import Positive, Seed, UserPath


@dataclass(frozen=True)
class GenerateSettings:
    """``partcraft generate``.

    Attributes:
        prompt: text with part tokens, such as "a photo of a <head:3> <wing:7>*1.3 bird"; None where there is a file.
        prompts_file: text file with one prompt per line; empty lines and those that begin with "#" are skipped.
        num_images: per prompt; image i has seed ``seed + i``.
        seed: seed of the first.
        sample: sampling settings.
        output_dir: None for a folder in the run.
    """

    prompt: str | None
    prompts_file: UserPath | None
    num_images: Positive
    seed: Seed
    sample: SampleSettings
    output_dir: UserPath | None
