"""Text files are UTF-8 on every system: Windows would open them in its own code page."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "tools", "benchmarks", "experiments")


def test_every_text_file_is_opened_as_utf8() -> None:
    """Ruff's PLW1514 sees only what it knows to be a path; this sees every call by these names."""
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and _opens_text(call)
    ]
    assert found == []


def _opens_text(call: ast.Call) -> bool:
    """Whether a call opens text without naming the encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    keywords = {keyword.arg for keyword in call.keywords}
    if "encoding" in keywords or None in keywords:
        return False
    if name in ("read_text", "write_text"):
        of_us = isinstance(call.func, ast.Name)  # core.files.read_text, which is UTF-8
        of_metadata = name == "read_text" and len(call.args) == 1  # importlib.metadata, which is too
        return not of_us and not of_metadata
    if name == "run" and any(keyword.arg == "text" for keyword in call.keywords):
        return "encoding" not in keywords
    if name != "open":
        return False
    owner = getattr(getattr(call.func, "value", None), "id", "")
    mode = call.args[0 if isinstance(call.func, ast.Attribute) else 1 :][:1]
    given = mode[0].value if mode and isinstance(mode[0], ast.Constant) else None
    return owner not in ("os", "Image", "tarfile", "file", "opener") and not (
        (isinstance(given, str) and "b" in given) or (mode and given is None)
    )
