"""Runs one command for a scheduler that may be killed: ``python -I -S supervisor.py PATIENCE COMMAND...``.

Its standard input is a pipe that the scheduler holds and never writes to. When the scheduler dies, however it dies, the
pipe ends: the command is then told to end (SIGTERM), has PATIENCE seconds for its checkpoint, and is killed with all
its processes. Signals are passed on to the command, with the same patience. On Linux the command dies with the
supervisor.

It imports the standard library alone, so that it starts in milliseconds. Its exit code is that of the command, 128 + N
if signal N ended it.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from types import FrameType

_PASSED_ON = ("SIGINT", "SIGTERM", "SIGUSR1")
_PR_SET_PDEATHSIG = 1


class Supervisor:
    """One command, which has a session of its own so that all its processes can be reached."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._job: subprocess.Popen[bytes] | None = None
        self._signal: int | None = None
        self._passed_on = False

    def run(self, command: list[str]) -> int:
        for name in _PASSED_ON:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._receive)
        if hasattr(signal, "SIGUSR2"):
            # By it SLURM warns every process of a job that submitit started, and submitit's own sees to the rest.
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        before = functools.partial(_end_with_parent, os.getpid()) if sys.platform == "linux" else None
        self._job = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=before)
        if (early := self._signal) is not None and not self._passed_on:  # it came while the command was being started
            self.stop(early)
        threading.Thread(target=self._watch, daemon=True).start()
        code = self._job.wait()
        if code != 0:
            self._kill()  # what it started may live on
        return code if code >= 0 else 128 - code

    def stop(self, number: int) -> None:
        """Passes a signal on; from then on the command has ``patience_s`` seconds."""
        self._signal = number
        if self._job is None:
            return
        self._passed_on = True
        self._job.send_signal(number)
        timer = threading.Timer(self._patience_s, self._kill)
        timer.daemon = True
        timer.start()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.stop(number)

    def _watch(self) -> None:
        while os.read(0, 1):
            pass
        self.stop(signal.SIGTERM)

    def _kill(self) -> None:
        assert self._job is not None
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._job.pid, signal.SIGKILL)
            else:
                self._job.kill()


def _end_with_parent(parent: int) -> None:
    """In the command's process: the system kills it when its parent, the supervisor, is killed."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # which has died meanwhile
        os._exit(1)


if __name__ == "__main__":
    code = Supervisor(float(sys.argv[1])).run(sys.argv[2:])
    os._exit(code)  # a thread may still wait for the pipe
