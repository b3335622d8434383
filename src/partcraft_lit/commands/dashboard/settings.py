"""Settings of ``partcraft dashboard``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partcraft_lit.core.settings import PathSettings, UserPath


@dataclass(frozen=True)
class DashboardSettings:
    """``partcraft dashboard``.

    Attributes:
        action: "make" makes W&B's workspace and report, "spec" only writes what they would be, "sync" replays runs.
        runs: folders of runs, folders that hold runs, or patterns of such; none for all runs in ``paths.logs``.
        group: of these runs, those of this sweep or table; None for all that ``runs`` names, or for the newest group.
        project: W&B project (trackio's project, MLflow's experiment); None for that of the runs.
        entity: user or team of W&B; None for that of the runs, or else the account's own.
        parameters: settings along the axes; None for those in which the runs differ.
        scores: scores to show, as patterns: ``emr`` is that of reconstructions and of the hybrids of most species,
            ``emr@2_species`` that of a protocol.
        output_dir: where the specification goes; None for a dated folder.
        paths: where runs are.
    """

    action: Literal["make", "spec", "sync"]
    runs: tuple[str, ...]
    group: str | None
    project: str | None
    entity: str | None
    parameters: tuple[str, ...] | None
    scores: tuple[str, ...]
    output_dir: UserPath | None
    paths: PathSettings
