"""Settings of ``partcraft doctor``."""

from __future__ import annotations

from dataclasses import dataclass

from partcraft_lit.core.settings import Positive, Rate


@dataclass(frozen=True)
class DoctorSettings:
    """``partcraft doctor``, beside the settings of the run that it is about.

    Attributes:
        memory_gb: of the device that is planned for; None for what this one has free.
        measure: whether steps are measured, or only what is missing is looked for.
        runs: of a sweep, one after another.
    """

    memory_gb: Rate | None
    measure: bool
    runs: Positive
