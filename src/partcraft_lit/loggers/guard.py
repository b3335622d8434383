"""What keeps a dashboard from ending or holding up a run: trouble costs one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


class Guard:
    """Turns the errors of a service, the network or the disk into one warning.

    Args:
        service: what failed, for the warning.
        advice: what becomes of the run's log, and what to do later.
        quiet: keep the first reason in ``trouble`` and warn of nothing, for a caller who reports it.

    Attributes:
        trouble: the first reason; None while all is well.
    """

    def __init__(self, service: str, advice: str, *, quiet: bool = False) -> None:
        self.service, self.advice, self.quiet = service, advice, quiet
        self.trouble: str | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a service, the network or the disk can come up with
            self.tell(str(error) or type(error).__name__)

    def tell(self, reason: str) -> None:
        """The one line."""
        if self.trouble is not None:
            return
        self.trouble = " ".join(reason.split())[:300]
        if not self.quiet:
            _log.warning("%s: %s. %s", self.service, self.trouble[:200].rstrip("."), self.advice)
