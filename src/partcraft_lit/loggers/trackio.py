"""trackio, a local dashboard without an account, as W&B is used; trouble with it costs one line."""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from partcraft_lit.loggers.guard import Guard
from partcraft_lit.loggers.guarded import GuardedLogger
from partcraft_lit.loggers.identity import RunIdentity
from partcraft_lit.loggers.run_logger import Logged


class TrackioRunLogger(GuardedLogger):
    """A run of trackio, in the local files that ``trackio show`` reads.

    It is found again by the id in the run folder, whatever its name. A resumed run logs no step that trackio has.
    Final scores are metrics of the last step: trackio has no summary.

    Args:
        folder: the run folder.
        run_id: of the run; the same for every start in this folder.
        identity: name, group, job type and tags; the last two become part of the configuration.
        project: of trackio.
        artifacts: whether files are kept as artifacts.
        replay: trouble is kept and not warned of.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        identity: RunIdentity,
        *,
        project: str,
        artifacts: bool = False,
        replay: bool = False,
    ) -> None:
        kept = "The run goes on without it; 'partcraft dashboard sync logger=trackio' replays it later."
        super().__init__(folder, run_id, identity, project, Guard("trackio", kept, quiet=replay))
        self._artifacts, self._replay = artifacts, replay
        self._config: dict[str, Any] = {}
        self._run: Any = None
        self._last_step, self._newest = -1, 0

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """trackio takes the configuration when a run starts, which it does with the first that is logged."""
        self._config = {str(key): value for key, value in dict(params).items() if not str(key).startswith("_")}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        with self._guard():
            run = self._started  # the run may have to start for its last step to be known
            if step is None or step > self._last_step or self._replay:
                self._newest = max(self._newest, step or 0)
                run.log(
                    {key: float(value) for key, value in metrics.items()}, step=self._newest if step is None else step
                )

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        with self._guard():
            import trackio

            run = self._started
            if step is None or step > self._last_step or self._replay:
                captions = kwargs.get("caption") or [None] * len(images)
                shown = [trackio.Image(image, caption) for image, caption in zip(images, captions, strict=True)]
                run.log({key: shown[0] if len(shown) == 1 else shown}, step=self._newest if step is None else step)

    @rank_zero_only
    def log_table(
        self, key: str, columns: list[str] | None = None, data: list[list[Any]] | None = None, **kwargs: Any
    ) -> None:
        with self._guard():
            import trackio

            rows = [
                [trackio.Image(cell) if isinstance(cell, Path) else _plain(cell) for cell in row] for row in data or []
            ]
            self._started.log({key: trackio.Table(columns=columns, data=rows)}, step=self._newest)

    @rank_zero_only
    def log_summary(self, values: Mapping[str, float]) -> None:
        with self._guard():
            self._started.log({key: value for key, value in values.items() if math.isfinite(value)}, step=self._newest)

    @rank_zero_only
    def log_files(self, kind: str, files: Mapping[str, Path]) -> None:
        if self._artifacts:
            with self._guard():
                import trackio

                artifact = trackio.Artifact(f"{kind}-{self._id}", type=kind)
                for name, path in files.items():
                    artifact.add_file(str(path), name)
                self._started.log_artifact(artifact)

    @rank_zero_only
    def finish(self, *, success: bool) -> None:
        run, self._run = self._run, None
        if run is not None:
            with self._guard(), contextlib.redirect_stdout(io.StringIO()):
                run.finish()

    def logged(self) -> Logged:
        with self._guard():
            _ = self._started
            from trackio.sqlite_storage import SQLiteStorage

            counts: Counter[str] = Counter()
            for row in SQLiteStorage.get_logs(self._project, self._identity.name, run_id=self._id):
                counts.update(key for key in row if key not in ("step", "timestamp"))
            return Logged(self._last_step, dict(counts))
        return Logged()

    @property
    def _started(self) -> Any:
        if self._run is None:
            from trackio.run import Run
            from trackio.sqlite_storage import SQLiteStorage

            SQLiteStorage.validate_project_name(self._project)
            last = SQLiteStorage.get_max_step_for_run(self._project, self._identity.name, run_id=self._id)
            self._last_step = -1 if last is None else int(last)
            self._newest = max(self._last_step, 0)
            identity = self._identity
            about = {"job_type": identity.job_type, "tags": list(identity.tags), "run_id": self._id}
            with contextlib.redirect_stdout(io.StringIO()):
                # By id: trackio.init would find a run by its name, which another may have too.
                self._run = Run(
                    url=None,
                    project=self._project,
                    client=None,
                    name=identity.name,
                    run_id=self._id,
                    group=identity.group,
                    config={**self._config, **about},
                )
        return self._run


def _plain(cell: Any) -> Any:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
