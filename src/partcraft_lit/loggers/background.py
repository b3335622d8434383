"""Calls to a slow or dead service, off the thread that trains."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from partcraft_lit.loggers.guard import Guard


class Background:
    """Makes calls in order in a thread of its own; after the first that fails no more are made.

    The thread is a daemon: a call that hangs does not keep the process.

    Args:
        guard: hears of the failure.
        init_timeout_s: seconds from the first call in which one has to have been answered; what is not has failed.
    """

    def __init__(self, guard: Guard, init_timeout_s: float) -> None:
        self._guard, self._init_timeout_s = guard, init_timeout_s
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._started = 0.0
        self._answered = False
        self._closed = False

    @property
    def is_used(self) -> bool:
        """Whether any call was made or is waiting."""
        return self._thread is not None

    def put(self, call: Callable[[], None]) -> None:
        """Makes a call later; does not wait."""
        if self._guard.trouble is not None or self._closed:
            return
        if self._thread is None:
            self._started = time.monotonic()
            self._thread = threading.Thread(target=self._work, name="partcraft-log", daemon=True)
            self._thread.start()
        self._calls.put(call)

    def close(self, timeout_s: float) -> None:
        """Waits for the calls that are left."""
        if self._thread is None or self._closed:
            return
        self._closed = True
        self._calls.put(None)
        end = time.monotonic() + timeout_s
        while self._thread.is_alive() and time.monotonic() < end:
            if not self._answered and time.monotonic() > self._started + self._init_timeout_s:
                break
            self._thread.join(0.05)
        if self._thread.is_alive():
            self._guard.tell("it did not take everything in time" if self._answered else "it did not answer in time")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._guard.trouble is None:
                with self._guard():
                    call()
                    self._answered = True
