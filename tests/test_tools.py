from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def test_a_tool_whose_output_nobody_reads_ends_quietly():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, str(TOOLS / "stats.py")], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
