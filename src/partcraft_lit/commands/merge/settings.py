"""Settings of ``partcraft merge``."""

from __future__ import annotations

from dataclasses import dataclass

from partcraft_lit.core.settings import PathSettings, Seed, UserPath


@dataclass(frozen=True)
class MergeSettings:
    """``partcraft merge``.

    Attributes:
        runs: folders or names of the runs, in the order of their concepts.
        captions_file: regularization captions, one per line; None for templates with common nouns.
        seed: of drawn data sets.
        output_dir: None for a new run folder.
        paths: of run folders.
    """

    runs: tuple[str, ...]
    captions_file: UserPath | None
    seed: Seed
    output_dir: UserPath | None
    paths: PathSettings
