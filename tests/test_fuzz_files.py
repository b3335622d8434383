"""The fuzz script runs and finds nothing, on a few files of each kind."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

TOOL = Path(__file__).parents[1] / "tools" / "fuzz_files.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that worker processes can import, too."""
    monkeypatch.syspath_prepend(str(TOOL.parent))
    spec = importlib.util.spec_from_file_location("fuzz_files", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fuzz_files", module)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_found(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--images", "60", "--archives", "24", "--seed", "1"]) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.count("0 problems") == 4


def test_the_hash_of_readings_follows_the_files(tool: ModuleType, tmp_path: Path) -> None:
    for name in ("photos/a.png", "masks/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (12, 10), 1).save(tmp_path / name)
    first = tool.readings_hash(tmp_path)
    assert first == tool.readings_hash(tmp_path) and len(first) == 64
    Image.new("L", (12, 10), 2).save(tmp_path / "masks" / "a.png")
    assert tool.readings_hash(tmp_path) != first
