"""Settings of ``partcraft export``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partcraft_lit.backbones.settings import SampleSettings
from partcraft_lit.core.settings import Count, NonNegative, Positive, Seed, UserPath
from partcraft_lit.tokens.embedding_files import Tool


@dataclass(frozen=True)
class ExportCheckSettings:
    """How an export is proved, and by how much it may differ.

    Attributes:
        steps: of the image that both sides sample.
        weights: largest difference of a layer's change, as a share of its largest entry.
        text: the same for what the text encoders give.
        image: mean difference of the image in grey levels of 255.
    """

    steps: Positive
    weights: NonNegative
    text: NonNegative
    image: NonNegative


@dataclass(frozen=True)
class ExportSettings:
    """``partcraft export``.

    Attributes:
        chosen: parts to export, each "head:17", or "head" for all variants of a part; None for all that were trained.
        to: for which tools.
        name: of the bundle; file names begin with it. None takes that of the run.
        number_format: of the files.
        data_license: of the training images, as text; "" if unknown.
        thumbnails: parts that get an image, at most.
        seed: of those images and of the check's.
        sample: how they are sampled.
        check: how the files are proved.
        output_dir: where to; None for a folder in the run.
        push: OWNER/NAME of a repository on the Hugging Face Hub that gets the export too; None for none.
        public: whether everybody may see that repository.
    """

    chosen: tuple[str, ...] | None
    to: tuple[Tool, ...]
    name: str | None
    number_format: Literal["float32", "float16"]
    data_license: str
    thumbnails: Count
    seed: Seed
    sample: SampleSettings
    check: ExportCheckSettings
    output_dir: UserPath | None
    push: str | None
    public: bool
