"""Documentation and code agree: what the pages name exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from partcraft_lit.cli import VERBS
from partcraft_lit.config import cmdline, search
from partcraft_lit.config import compose as config

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "partcraft_lit"
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "experiments/**/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
_LINK = re.compile(r"\]\((?!https?:)([^()\s#]*)(?:#([^()\s]*))?\)")
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|md|yml|toml))`")


#: A page shows it; its variables are the shell's.
SCRIPT = (ROOT / "docs" / "slurm" / "train.sbatch").read_text(encoding="utf-8")
_COMMAND = re.compile(r"(?:partcraft|python train\.py|-m partcraft_lit) +([\w-].*)")


def commands() -> list[list[str]]:
    """Verb and arguments of the commands that the pages show; one that adds no new argument is left out."""
    found: list[str] = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8").replace(SCRIPT, "").replace("\\\n", " ")
        blocks = "\n".join(_FENCE.findall(text)).splitlines()
        found += [*blocks, *re.findall(r"`([^`\n]+)`", _FENCE.sub("", text))]
    shown = (
        _COMMAND.search(line.partition(" # ")[0].partition(" & ")[0])
        for line in found
        if not {"VERB", "-sc"} & set(line.split())
    )
    words = [shlex.split(match[1]) for match in shown if match and "--help" not in match[1]]
    known: set[tuple[str, str]] = set()
    kept = []
    for given in sorted(words, key=lambda given: (-len(given), given)):
        command = given if given[0] in VERBS else ["train", *given]
        arguments = {(command[0], text) for text in command[1:] if "NAME" not in text}
        if not arguments <= known:
            known |= arguments
            kept.append(command)
    return kept


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_on_the_pages_compose(command):
    verb, *arguments = command
    sweep = "-m" in arguments
    overrides = [cmdline.as_written(cmdline.renamed(text, verb), sweep) for text in arguments if "=" in text]
    for point in search.sweep_points(verb, overrides) if sweep else [overrides]:
        config.compose(verb, point)


def prose(page: str) -> str:
    return _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for target, anchor in _LINK.findall(prose(page)):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path), f"{page}: {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_files_named_in_prose_exist(page):
    for name in _FILE.findall(prose(page)):
        if name.startswith(("src/", "conf/", "tests/", "docs/", "tools/", "benchmarks/", "experiments/")):
            assert (ROOT / name).exists(), f"{page}: {name}"
        elif (PACKAGE / name).parent.is_dir():  # "losses/attention.py"; others are files of a run or an export
            assert (PACKAGE / name).exists(), f"{page}: {name}"


def test_routes_name_at_most_five_files_and_what_is_in_them():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Five routes for a newcomer")[2].partition("\n## ")[0]
    routes = re.split(r"^\*\*", section, flags=re.MULTILINE)[1:]
    assert len(routes) == 5
    for route in routes:
        steps = re.findall(r"^\d\. \[[^\]]+\]\((\S+)\): (.*)$", route, re.MULTILINE)
        assert 3 <= len(steps) <= 5, route
        for path, words in steps:
            names = re.findall(r"`(\w+)`", words)
            code = (ROOT / path).read_text(encoding="utf-8")
            assert all(re.search(rf"\b{name}\b", code) for name in names), f"{path}: {names}"
            assert names or path.endswith(".yaml"), f"{path}: what to look for there"


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


def test_stats_counts_files_functions_and_rooms(tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "top.py").write_text("import os\n\n\n@staticmethod\ndef one():\n    pass\n")
    (tmp_path / "room" / "two.py").write_text("class A:\n  def method(self):\n    def inner():\n      pass\n")
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "stats.py", tmp_path], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0][:2] == ["10", "lines"]
    assert ["files", "2", "5", "6"] in rows
    assert ["functions", "3", "3", "3"] in rows
    assert ["top.py:4", "one", "3"] in rows and ["room/two.py:3", "A.method.inner", "2"] in rows
    assert ["room", "1", "4"] in rows and ["top.py", "1", "6"] in rows


def test_the_page_shows_the_script_that_is_tested_on_slurm():
    assert f"```bash\n{SCRIPT}```" in (ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
