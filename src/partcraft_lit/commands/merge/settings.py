"""Settings of ``partcraft merge``."""

from __future__ import annotations

from dataclasses import dataclass

from partcraft_lit.core.settings import PathSettings, UserPath


@dataclass(frozen=True)
class MergeSettings:
    """``partcraft merge``.

    Attributes:
        runs: folders or names of the runs, in the order in which their concepts are numbered.
        captions_file: ordinary captions, one a line; None takes templates with common nouns.
        seed: of a data set that is drawn.
        output_dir: where to; None for a new run folder.
        paths: where run folders are.
    """

    runs: tuple[str, ...]
    captions_file: UserPath | None
    seed: int
    output_dir: UserPath | None
    paths: PathSettings
