"""What several browser tests do."""

from __future__ import annotations

import time
from typing import Any


def eventually(page: Any, expression: str, seconds: float = 60) -> None:
    """Waits for a JavaScript expression; the page's security policy forbids playwright's own way."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never true: {expression}"
        page.wait_for_timeout(30)
