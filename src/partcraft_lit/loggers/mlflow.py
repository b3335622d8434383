"""MLflow that never ends or holds up a run: calls are made in the background, and the first that fails is the last."""

from __future__ import annotations

import csv
import functools
import io
import json
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from partcraft_lit.loggers.background import Background
from partcraft_lit.loggers.guard import Guard
from partcraft_lit.loggers.guarded import GuardedLogger
from partcraft_lit.loggers.identity import RunIdentity
from partcraft_lit.loggers.run_logger import STEP, Logged

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: By this tag a run is found again: MLflow draws the ids of runs itself.
_ID_TAG = "partcraft.run_id"
#: What MLflow takes in one call, and how long a parameter may be.
_BATCH, _LONGEST = 100, 500


class MlflowRunLogger(GuardedLogger):
    """A run of MLflow, found again by the id in the run folder.

    Parameters are flattened (``loss.lambda_attn``) and, as a whole, the artifact ``config.json``. Names have a dot
    where MLflow refuses a sign: ``eval/emr.reconstruction``. Tables are artifacts, as CSV beside their images.

    Args:
        folder: the run folder.
        run_id: of the run; the same for every start in this folder.
        identity: name, group, job type and tags.
        experiment: in which the run is; made if there is none.
        tracking_uri: of the server, or ``sqlite:///PATH``.
        artifact_root: where a new experiment keeps files; None leaves that to the server.
        init_timeout_s: a server that has not answered by then is done without.
        finish_timeout_s: for what is left when the run ends.
        artifacts: whether files are kept as artifacts.
        replay: trouble is kept and not warned of.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        identity: RunIdentity,
        *,
        experiment: str,
        tracking_uri: str,
        artifact_root: str | None = None,
        init_timeout_s: float = 20.0,
        finish_timeout_s: float = 60.0,
        artifacts: bool = False,
        replay: bool = False,
    ) -> None:
        kept = "The run goes on without it; 'partcraft dashboard sync logger=mlflow' replays it later."
        super().__init__(folder, run_id, identity, experiment, Guard("MLflow", kept, quiet=replay))
        self._tracking_uri, self._artifact_root = tracking_uri, artifact_root
        self._finish_timeout_s, self._artifacts, self._replay = finish_timeout_s, artifacts, replay
        self._background = Background(self._guard, init_timeout_s)
        self._client: MlflowClient | None = None
        self._run: Any = None
        self._last_step, self._newest = -1, 0

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        content = json.loads(json.dumps(dict(params), default=str))
        self._background.put(lambda: self._log_params(content))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        now, kept = int(time.time() * 1000), {key: float(value) for key, value in metrics.items()}
        self._background.put(lambda: self._log_metrics(kept, step, now))

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self._background.put(lambda: self._log_images(key, images, step))

    @rank_zero_only
    def log_table(
        self, key: str, columns: list[str] | None = None, data: list[list[Any]] | None = None, **kwargs: Any
    ) -> None:
        self._background.put(lambda: self._log_table(key, columns or [], data or []))

    @rank_zero_only
    def log_summary(self, values: Mapping[str, float]) -> None:
        """As metrics of the last step: MLflow compares runs by the last value of each."""
        now, kept = int(time.time() * 1000), {key: value for key, value in values.items() if math.isfinite(value)}
        self._background.put(lambda: self._log_batch(kept, None, now))

    @rank_zero_only
    def log_files(self, kind: str, files: Mapping[str, Path]) -> None:
        if self._artifacts:
            for path in files.values():
                self._background.put(functools.partial(self._log_file, kind, path))

    @rank_zero_only
    def finish(self, *, success: bool) -> None:
        if self._background.is_used:
            self._background.put(lambda: self._end("FINISHED" if success else "FAILED"))
            self._background.close(self._finish_timeout_s)

    def logged(self) -> Logged:
        with self._guard():
            client = self._started
            counts: Counter[str] = Counter()
            for path in _files(client, self._run_id):
                if path.startswith("images/") and path.endswith(".png"):
                    # As MLflow names them: KEY+step+STEP+..., with signs of its own for slashes.
                    counts[path.removeprefix("images/").split("+")[0].replace("~", "/").replace("#", "/")] += 1
                elif path.endswith(".csv"):
                    counts[path.removesuffix(".csv")] += 1
            for key in self._run.data.metrics:
                counts[key] = len(client.get_metric_history(self._run_id, key))
            return Logged(self._last_step, dict(counts), _allowed)
        return Logged()

    @property
    def _started(self) -> MlflowClient:
        """The client, once the run stands: the one of an earlier start, or a new one."""
        if self._client is None:
            from mlflow import MlflowClient

            for name in ("mlflow", "alembic"):  # the making of a database is of no interest
                logging.getLogger(name).setLevel(logging.WARNING)
            client = MlflowClient(self._tracking_uri)
            experiment = self._experiment_of(client)
            found = client.search_runs([experiment], f"tags.`{_ID_TAG}` = '{self._id}'", max_results=1)
            self._run = (
                found[0] if found else client.create_run(experiment, run_name=self._identity.name, tags=self._tags())
            )
            if found:
                client.update_run(self._run_id, status="RUNNING")
            self._last_step = int(self._run.data.metrics.get(STEP, -1))
            self._client = client
        return self._client

    @property
    def _run_id(self) -> str:
        return str(self._run.info.run_id)

    def _experiment_of(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self._project)
        if found is not None:
            return str(found.experiment_id)
        return str(client.create_experiment(self._project, artifact_location=self._artifact_root))

    def _tags(self) -> dict[str, str]:
        identity = self._identity
        tags = {
            _ID_TAG: self._id,
            "group": identity.group,
            "job_type": identity.job_type,
            "tags": ", ".join(identity.tags),
        }
        return {key: value for key, value in tags.items() if value}

    def _log_params(self, content: Mapping[str, Any]) -> None:
        """What MLflow has of an earlier start stays: it refuses to change a parameter."""
        from mlflow.entities import Param

        client = self._started
        known = self._run.data.params
        new = [Param(key, value[:_LONGEST]) for key, value in _flat(content) if key not in known]
        for start in range(0, len(new), _BATCH):
            client.log_batch(self._run_id, params=new[start : start + _BATCH])
        client.log_dict(self._run_id, dict(content), "config.json")

    def _log_metrics(self, metrics: Mapping[str, float], step: int | None, now: int) -> None:
        _ = self._started  # the run may have to start for its last step to be known
        if step is None or step > self._last_step or self._replay:
            self._log_batch(metrics if step is None else {**metrics, STEP: step}, step, now)

    def _log_batch(self, metrics: Mapping[str, float], step: int | None, now: int) -> None:
        """Without a step at the newest one."""
        from mlflow.entities import Metric

        client = self._started
        self._newest = max(self._newest, self._last_step, step or 0)
        at = self._newest if step is None else step
        client.log_batch(
            self._run_id, metrics=[Metric(_allowed(key), value, now, at) for key, value in metrics.items()]
        )

    def _log_file(self, kind: str, path: Path) -> None:
        client = self._started
        client.log_artifact(self._run_id, str(path), kind)

    def _end(self, status: str) -> None:
        client = self._started
        client.set_terminated(self._run_id, status)

    def _log_images(self, key: str, images: Sequence[Any], step: int | None) -> None:
        client = self._started
        if step is not None and step <= self._last_step and not self._replay:
            return
        for image in images:
            opened = image if isinstance(image, Image.Image) else _opened(image)
            client.log_image(self._run_id, opened, key=_allowed(key), step=step or 0, synchronous=True)

    def _log_table(self, key: str, columns: Sequence[str], data: Sequence[Sequence[Any]]) -> None:
        client = self._started
        for path in {cell for row in data for cell in row if isinstance(cell, Path)}:
            client.log_artifact(self._run_id, str(path), _place(key, path).rpartition("/")[0])
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([[_place(key, cell) if isinstance(cell, Path) else cell for cell in row] for row in data])
        client.log_text(self._run_id, text.getvalue(), f"{key}.csv")


def _flat(content: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """Name with dots -> text, for each value that is not a mapping."""
    for key, value in content.items():
        name = _allowed(f"{where}.{key}" if where else str(key))
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, str(value)


def _allowed(name: str) -> str:
    """MLflow takes letters, digits, and ``_-./ :`` in names."""
    return re.sub(r"[^\w/. :-]", ".", name)


def _place(key: str, path: Path) -> str:
    """Of a table's image among the artifacts: images of several folders may have one name."""
    return f"{key}/{path.parent.name}/{path.name}"


def _opened(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _files(client: MlflowClient, run_id: str, folder: str | None = None) -> Iterator[str]:
    for entry in client.list_artifacts(run_id, folder):
        if entry.is_dir:
            yield from _files(client, run_id, entry.path)
        else:
            yield entry.path
