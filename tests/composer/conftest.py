"""The shared tiny run, opened once; tests must leave it as it is."""

from __future__ import annotations

import pytest

import partcraft_lit as pc


@pytest.fixture(scope="session")
def run(tiny_run):
    return pc.open_run(tiny_run, device="cpu")
