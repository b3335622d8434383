"""Signals that stop a command: SIGINT, SIGTERM and SIGUSR1.

A signal raises :class:`Stopped` wherever the command is, but for sections that are :func:`deferred`: there it is only
noted, for the section to act on when its state is whole. Supervisors repeat themselves (``timeout`` and ``torchrun``
signal a process and its whole group), so what comes within a second counts once; the third signal ends the process
at once, as if it had never been caught. Python runs a handler between two of its own instructions; where a library
keeps it from that for longer than a few seconds, outside of deferred sections, a thread ends the process.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any

#: What stops a command; Windows has no SIGUSR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
#: Signals this close together, in seconds, count as one.
_ONE_SIGNAL_S = 1.0
#: The signal that is not waited for.
_HARD = 3
#: Seconds until a signal comes again that came in the middle of a finalizer.
_AGAIN_S = 0.01
#: Seconds that the main thread has to run the handler.
_BLOCKED_S = 3.0


class Stopped(KeyboardInterrupt):
    """A signal has stopped the command.

    Args:
        number: of the signal.
        reached: how far the command came; "" where that is not known.
        agreed: whether all processes of the run stop by themselves, so that none has to be told.
    """

    def __init__(self, number: int, reached: str = "", *, agreed: bool = False) -> None:
        super().__init__(number, reached)
        self.number, self.reached, self.agreed = number, reached, agreed

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name

    @property
    def code(self) -> int:
        """Exit code, as shells report it: 130 for SIGINT, 143 for SIGTERM, 138 for SIGUSR1 on Linux."""
        return 128 + self.number


#: In the environment of a command that a scheduler of this package started.
SCHEDULED_VARIABLE = "PARTCRAFT_LIT_SCHEDULED"
#: Exit code at the end of ``trainer.max_time`` there, to tell it from a job that is done: "try again" of sysexits.h.
TIME_LIMIT_CODE = 75


class TimeLimitReached(Exception):
    """Training has stopped at its time limit, as it was asked to.

    Args:
        reached: how far it came.
    """

    def __init__(self, reached: str) -> None:
        super().__init__(reached)
        self.reached = reached


class _Catcher:
    """The handler of a process; see the module.

    Attributes:
        calls: how often any of them ran.
    """

    calls = 0

    def __init__(self) -> None:
        self.process = os.getpid()
        self.received: int | None = None
        self.deferring = self.ending = False
        self._times = 0
        self._last = -_ONE_SIGNAL_S

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a forked child, of which its parent takes care
        _Catcher.calls += 1
        now = time.monotonic()
        if _in_finalizer(frame):  # Python would print and forget what is raised there
            threading.Timer(_AGAIN_S, os.kill, (self.process, number)).start()
            return
        if now - self._last < _ONE_SIGNAL_S:
            return
        self._last = now
        self._times += 1
        if self._times >= _HARD:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self.process, number)
        if self.received is None:
            self.received = number
        if not (self.deferring or self.ending):
            raise Stopped(self.received)


def _in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


_catcher: _Catcher | None = None


@contextmanager
def caught(end: Callable[[Stopped], int] | None = None) -> Iterator[None]:
    """Catches :data:`SIGNALS` inside; in another thread than the main one, where Python has no signals, nothing.

    Of a command that was stopped, the process is about to exit: a handler that was there before comes back, but what
    Python would do by default, to tear down its own exit, does not. Of one that is done, the same holds for the last of
    the signals, which a scheduler sends before a time limit.

    Args:
        end: ends the command from another thread, where the main one cannot, and returns the exit code.
    """
    global _catcher
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outer, _catcher = _catcher, _Catcher()
    before: dict[int, Any] = {number: signal.signal(number, _catcher) for number in SIGNALS}
    try:
        with _watched(_catcher, end) if end is not None and os.name == "posix" else nullcontext():
            yield
    finally:
        ended, _catcher = _catcher.ending, outer
        for number, handler in before.items():
            default = handler in (signal.SIG_DFL, signal.default_int_handler)
            exits = ended or number == SIGNALS[-1]
            signal.signal(number, signal.SIG_IGN if exits and default else handler)


@contextmanager
def _watched(catcher: _Catcher, end: Callable[[Stopped], int]) -> Iterator[None]:
    """Inside, a thread ends the process when its main thread does not come to run the handler of a signal."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    first = _Catcher.calls
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # Python's own handler writes numbers there

    def watch() -> None:
        seen = first
        while data := os.read(reading, 1):
            if data[0] not in SIGNALS:
                continue
            time.sleep(_BLOCKED_S)
            # Calls are read first: what is written after the rest was taken out is of a signal with a later call.
            # Clocks would not do: on a busy machine this thread wakes up long after the handler has run.
            calls = _Catcher.calls
            while select.select([reading], [], [], 0)[0] and os.read(reading, 64):
                pass
            if calls == seen and not catcher.deferring:
                os._exit(end(Stopped(data[0])))
            seen = calls
        os.close(reading)

    threading.Thread(target=watch, name="blocked-main-thread", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)


_wakeup = -1


def _before_fork() -> None:
    """A forked child must not have the file even for a moment: its signals are none of its parent's."""
    global _wakeup
    with suppress(ValueError):  # of another thread than the main one
        _wakeup = signal.set_wakeup_fd(-1)


def _after_fork() -> None:
    with suppress(ValueError):
        signal.set_wakeup_fd(_wakeup, warn_on_full_buffer=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork)


def check() -> None:
    """Raises Stopped where that was lost, as an exception within a callback of the garbage collector is."""
    catcher = _catcher
    if catcher is None or catcher.received is None or threading.current_thread() is not threading.main_thread():
        return
    if not (catcher.deferring or catcher.ending):
        raise Stopped(catcher.received)


def received() -> int | None:
    """The signal that waits for a :func:`deferred` section to act on it, or that has stopped the command."""
    return None if _catcher is None else _catcher.received


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a signal is only noted; the section asks :func:`received` where it can stop.

    Raises:
        Stopped: at the end, where a signal came that the section did not act on, by :func:`ending` or an exception.
    """
    catcher = _catcher
    if catcher is None:
        yield
        return
    catcher.deferring = True
    try:
        yield
    finally:
        catcher.deferring = False
    if catcher.received is not None and not catcher.ending:
        raise Stopped(catcher.received)


def ending() -> None:
    """From now on the command is about to end by itself: further signals change nothing, the third ends it at once."""
    if _catcher is not None:
        _catcher.ending = True


def ignore(_worker: int = 0) -> None:
    """Makes this process deaf to :data:`SIGNALS`: for a loader worker, which ends when its parent does."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


#: Give lists of processes that this one has started and that are to end with it.
_followers: list[Callable[[], list[subprocess.Popen[Any]]]] = []
#: Seconds that they have to end by themselves.
_PATIENCE_S = 10.0


def follow(processes: Callable[[], list[subprocess.Popen[Any]]]) -> None:
    """Says which processes end with this one."""
    _followers.append(processes)


def end_followers(*, by_themselves: bool) -> None:
    """Ends the further processes of a run.

    Their lists are emptied first: Lightning has a thread that kills this process when it sees one of them end early.

    Args:
        by_themselves: whether they are about to end anyway, and only too slow ones are killed.
    """
    processes: list[subprocess.Popen[Any]] = []
    while _followers:
        listed = _followers.pop()()
        processes += listed
        listed.clear()
    until = time.monotonic() + (_PATIENCE_S if by_themselves else 0.0)
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
