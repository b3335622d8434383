"""Freed memory stays with the process, and comes back into use without the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from partcraft_lit.core.allocation import keep_freed_memory

#: Takes and frees blocks of 4 MiB and touches all of their pages, and says how often a page was not there.
_CHURN = """
import resource
from partcraft_lit.core.allocation import keep_freed_memory
told = {told} and keep_freed_memory()
def churn(times):
    for _ in range(times):
        blocks = [bytes([number]) * (4 << 20) for number in range(8)]
churn(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn(10)
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other allocators keep freed memory by rules of their own"
)
def test_blocks_that_are_freed_are_taken_again_without_the_system():
    faults = {}
    for told in (True, False):
        output = subprocess.run(
            [sys.executable, "-c", _CHURN.format(told=told)], check=True, capture_output=True, text=True
        ).stdout.split()
        assert output[0] == str(told)
        faults[told] = int(output[1])
    # 80 blocks of 1,024 pages; where a page is larger than 4 kB there are few of them either way.
    assert faults[True] < max(100, faults[False] / 10)


def test_another_allocator_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
