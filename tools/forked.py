"""Commands in forked processes, which start in no time: what drills kill."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn


def start(command: Sequence[str], out: Path) -> int:
    """Forks a process that runs the command in a group of its own, with its output in ``out``; returns its id."""
    process = os.fork()
    if process:
        return process
    try:
        os.setsid()
        _be_command(command, out)
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(ended.code or 0))
    except BaseException:
        traceback.print_exc()
    os._exit(99)


def _be_command(command: Sequence[str], out: Path) -> NoReturn:
    from partcraft_lit import cli

    with out.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["partcraft", *command]
    cli.main(list(command))


def wait(process: int, seconds: float) -> int | None:
    """Its exit code, negative for a signal that killed it; None if it still runs then."""
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.005)
