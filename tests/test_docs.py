"""What the documents say of the code is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_list_of_mended_mistakes_names_tests_that_exist():
    page = ROOT / "docs" / "differences.md"
    text = page.read_text(encoding="utf-8")
    found = 0
    for files in re.findall(r"`tests/[\w/]+\.py`(?:: `[^`/]+`(?:, `[^`/]+`)*)?", text):
        path, *names = re.findall(r"`([^`]+)`", files)
        tests = re.findall(r"^def test_(\w+)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
        for name in names:
            pattern = re.escape(name).replace("…", r"\w*")
            assert any(re.fullmatch(pattern, test) for test in tests), f"{path}: {name}"
            found += 1
    assert found > 30
