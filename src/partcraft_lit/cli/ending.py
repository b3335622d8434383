"""How a command ends: its exit code, and one sentence on a stop or a mistake."""

from __future__ import annotations

import atexit
import errno
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from partcraft_lit.core import stopping
from partcraft_lit.core.errors import UserError

#: Exit code when the reader of the output has gone, as shells report it: 128 + SIGPIPE.
READER_GONE = 141
#: What a disk says of a path that the user has to change.
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})
_NO_SHARED_MEMORY = ("insufficient shared memory", "unable to write to file </torch_", "unable to mmap", "/dev/shm")
_NO_MEMORY = ("CUDA out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")


class Progress:
    """What has been reached, for the message of a stop."""

    def __init__(self) -> None:
        self.verb = ""
        self.folder: Path | None = None
        self.sweep: Path | None = None
        self.made: Path | None = None
        self.errors: list[Exception] = []
        self.time_limit = False


def exit_process(code: int) -> NoReturn:
    """Ends the process.

    Processes of a rank above 0 skip finalisation of the interpreter: threads of gloo may still hold Python objects of
    the last collective, and one that asks for the GIL by then aborts the process. torchrun would call the whole run
    failed, on every host.
    """
    torch = sys.modules.get("torch")
    connected = torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()
    if connected:
        end_further_process(code, _finish)
    sys.exit(code)


def _finish() -> None:
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()


def reader_gone() -> bool:
    """Whether nobody reads the output any more, as behind ``| head``; what is left of it goes nowhere then."""
    try:
        number = sys.stdout.fileno()
        sys.stdout.flush()
        gone = select.poll()
        gone.register(number, 0)  # asks for errors alone
        if not any(event & select.POLLERR for _, event in gone.poll(0)):
            return False
    except BrokenPipeError:
        pass
    except (AttributeError, OSError, ValueError):  # no file behind it, or no poll on this system
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return True


def stopped(error: KeyboardInterrupt, progress: Progress) -> int:
    """Ends what this process has started, says in one sentence what was reached; returns the exit code."""
    from partcraft_lit.core import slurm

    stopping.ending()
    stop = error if isinstance(error, stopping.Stopped) else stopping.Stopped(signal.SIGINT)
    # Where all have stopped alike, what starts them would take anything else for a failure, and kill the first.
    end_further_process(0 if stop.agreed else stop.code)
    stopping.end_followers(by_themselves=stop.agreed)
    reached = f"stopped by {stop.name}" + (f" {stop.reached}" if stop.reached else "")
    requeued = slurm.requeue() if stop.name == "SIGUSR1" else None
    print_end(reached, requeued, left_behind(progress))
    return stop.code


def end_further_process(code: int, first: Callable[[], object] = lambda: None) -> None:
    """Ends a process of a run whose rank is above 0, without finalisation of the interpreter.

    Args:
        code: its exit code.
        first: what it does before. Nothing where a run was stopped: exit functions would wait for the other processes.
    """
    from partcraft_lit.core import environment

    if not environment.is_first_process():
        first()
        os._exit(code)


def print_end(*parts: str | None) -> None:
    print(f"\npartcraft: {'; '.join(filter(None, parts))}.", file=sys.stderr, flush=True)


def left_behind(progress: Progress) -> str:
    """Half a sentence on what a command that did not come to its end leaves, and how it goes on."""
    from partcraft_lit.core import rundir

    if progress.sweep is not None:
        return f"the same command continues the sweep in {progress.sweep}"
    if progress.folder is None:
        return "nothing had been started yet"
    if progress.verb in ("train", "pretrain"):
        return rundir.saved_so_far(progress.folder)
    return f"what was made so far is in {progress.folder} and in the store"


def report_error(error: Exception, full: bool) -> int:
    """Prints an error; returns the exit code."""
    if isinstance(error, BrokenPipeError) and reader_gone():
        return READER_GONE
    known = error if isinstance(error, UserError) else _known_cause(error)
    if known is None or full:
        traceback.print_exception(error)
    if known is None:
        print("partcraft: unexpected error; please report it with the traceback above.", file=sys.stderr)
        return 1
    print(f"partcraft: {known}", file=sys.stderr)
    if not full and not isinstance(error, UserError):
        print("(debug=true shows the traceback.)", file=sys.stderr)
    return 2


def _known_cause(error: BaseException | None) -> Exception | None:
    """A user's mistake that another library wrapped, or what the disk refused, somewhere in the chain of causes."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        if any(text in str(error) for text in _NO_SHARED_MEMORY):
            return UserError(
                "Shared memory, /dev/shm, is full: loader workers pass batches through it. Use data.num_workers=0, or "
                "give it more room (docker run --shm-size=2g)."
            )
        if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
            return UserError(
                "There is too little memory. Use a smaller data.batch_size or hardware.max_batch_size=1 (the batch is "
                "taken in several passes, with the same result); 'partcraft doctor' says what fits."
            )
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" for {error.filename}" if error.filename else ""
            return UserError(f"The disk is full{where}. Make room and start the same command again; it continues.")
        if isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
            return UserError(
                f"{error.filename}: {error.strerror}. Give another path, or check its owner and permissions."
            )
        error = error.__cause__ or error.__context__
    return None
