"""Commands in processes of their own, which outlive the page and the app: discovery, training, export.

A job is a folder with ``job.json`` and ``output.log``. The process inherits a lock on ``job.lock`` from here, so any
app sees whether it lives, also one that was started later.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write, make_folder

_ID = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(\.\d+)?")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LISTED = 12
_TAIL_BYTES = 1 << 16


@dataclass
class Job:
    """A command that was started here.

    Attributes:
        id: name of its folder.
        kind: the verb.
        title: for people.
        overrides: of the command.
        folder: where the command works: a run, or what an export gives.
        max_steps: of a training; 0 of other kinds.
        started: seconds since the epoch.
        pid: of the process.
        stopped: whether it was asked to stop.
        about: further plain values for the page.
    """

    id: str
    kind: str
    title: str
    overrides: list[str]
    folder: str
    max_steps: int = 0
    started: float = 0.0
    pid: int = 0
    stopped: bool = False
    about: dict[str, Any] = field(default_factory=dict)


class Jobs:
    """All jobs of a folder of logs.

    Args:
        root: where their folders are.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._own: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self,
        kind: str,
        title: str,
        overrides: Sequence[str],
        folder: Path,
        *,
        max_steps: int = 0,
        about: dict[str, Any] | None = None,
    ) -> Job:
        """Starts a command.

        Raises:
            UserError: if another one runs: they would share memory and processors.
        """
        with self._lock:
            self._check_free()
            place = rundir.new_folder(self.root)
            job = Job(place.name, kind, title, list(overrides), str(folder), max_steps, about=about or {})
            return self._launch(job)

    def resume(self, name: str) -> Job:
        """Starts the same command again: it goes on where it was."""
        with self._lock:
            self._check_free()
            job = self.get(name)
            job.stopped = False
            return self._launch(job)

    def stop(self, name: str) -> Job:
        """Asks a process to end with a checkpoint."""
        job = self.get(name)
        if not self.is_alive(job):
            return job
        job.stopped = True
        self._write(job)
        with suppress(ProcessLookupError):
            os.kill(job.pid, signal.SIGTERM)
        return job

    def get(self, name: str) -> Job:
        """Raises a UserError for a job that is not there."""
        path = self.root / name / "job.json"
        if not _ID.fullmatch(name) or not path.is_file():
            raise UserError("This job is not here any more.")
        try:
            return Job(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged.") from error

    def listed(self) -> list[Job]:
        """The newest, the last first."""
        names = sorted((path.parent.name for path in self.root.glob("*/job.json")), reverse=True)
        found = []
        for name in names[:_LISTED]:
            with suppress(UserError):
                found.append(self.get(name))
        return found

    def is_alive(self, job: Job) -> bool:
        own = self._own.get(job.id)
        if own is not None and own.poll() is not None:
            return False
        return own is not None or _is_locked(self.root / job.id / "job.lock")

    def output(self, job: Job) -> list[str]:
        """Its last lines, without control sequences."""
        try:
            with (self.root / job.id / "output.log").open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(file.tell() - _TAIL_BYTES, 0))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return []
        lines = (_ESCAPES.sub("", line).strip() for line in text.replace("\r", "\n").split("\n"))
        return [line for line in lines if line]

    def _check_free(self) -> None:
        for job in self.listed():
            if self.is_alive(job):
                raise UserError(f"“{job.title}” is still running: wait for it, or stop it first.")

    def _launch(self, job: Job) -> Job:
        place = self.root / job.id
        make_folder(place)
        job.started = time.time()
        command = [sys.executable, "-m", "partcraft_lit", job.kind, *job.overrides]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
        with (place / "output.log").open("ab") as output, (place / "job.lock").open("a", encoding="utf-8") as lock:
            held = _hold(lock.fileno())
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C ends the app, and not this
                pass_fds=held,
            )
        job.pid = process.pid
        self._own[job.id] = process
        self._write(job)
        return job

    def _write(self, job: Job) -> None:
        atomic_write(self.root / job.id / "job.json", json.dumps(asdict(job), indent=2))


def state_of(jobs: Jobs, job: Job) -> dict[str, Any]:
    """How far a job is, for the page."""
    alive, lines, folder = jobs.is_alive(job), jobs.output(job), Path(job.folder)
    done = not alive and _is_done(job, folder)
    state = "running" if alive else "done" if done else "stopped" if job.stopped else "failed"
    message = next((line for line in reversed(lines) if "partcraft:" in line), "") if state == "failed" else ""
    steps = _steps(folder) if job.kind == "train" else []
    return {
        "id": job.id,
        "kind": job.kind,
        "title": job.title,
        "state": state,
        "line": lines[-1][:200] if lines and alive else "",
        "message": message.partition("partcraft:")[2].strip() or (lines[-1] if state == "failed" and lines else ""),
        "seconds": time.time() - job.started if alive else 0,
        "progress": _progress(steps, job, done),
        "sample": _newest_sample(folder),
        "atlas": (folder / "parts" / "atlas.png").is_file(),
        "run": folder.name if job.kind == "train" and done else None,
        "about": job.about,
        "started": datetime.fromtimestamp(job.started).strftime("%H:%M"),
    }


def _progress(steps: list[dict[str, Any]], job: Job, done: bool) -> dict[str, Any] | None:
    """Steps, seconds left and loss of a training."""
    if not steps:
        return None
    now = [entry for entry in steps if entry["time"] >= job.started] or steps[-1:]
    last, seconds_left = steps[-1], None
    if len(now) > 1 and last["step"] > now[0]["step"]:
        rate = (last["time"] - now[0]["time"]) / (last["step"] - now[0]["step"])
        seconds_left = max(job.max_steps - last["step"] - 1, 0) * rate
    step = job.max_steps if done else min(last["step"] + 1, job.max_steps)
    return {"step": step, "max_steps": job.max_steps, "seconds_left": seconds_left, "loss": last.get("train/loss")}


def _steps(folder: Path) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl`` with a loss; the end of the file alone, if it is long."""
    found = []
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - _TAIL_BYTES, 0))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "train/loss" in entry and "step" in entry and "time" in entry:
                found.append(entry)
    return found


def _newest_sample(folder: Path) -> str | None:
    names = sorted(path.name for path in (folder / "samples").glob("*.png"))
    return names[-1] if names else None


def _is_done(job: Job, folder: Path) -> bool:
    if job.kind == "export":
        return (folder / "export.json").is_file()
    return (folder / rundir.FINISHED).is_file()


def _hold(descriptor: int) -> tuple[int, ...]:
    """Locks a file for the process that inherits it; nothing where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return ()
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return (descriptor,)


def _is_locked(path: Path) -> bool:
    try:
        import fcntl
    except ImportError:
        return False
    try:
        with path.open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
