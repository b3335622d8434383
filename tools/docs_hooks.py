"""Hooks of ``mkdocs.yml``: pages that live outside ``docs/``, and the API reference.

The home page is README.md; CONTRIBUTING, CHANGELOG, the experiments and the benchmarks are pages as well, so no text
exists twice. Links between files of the repository become links between pages; those to a file without a page (YAML,
tests) become plain text, those to a module lead to its room in the reference.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "src/partcraft_lit"
#: File of the repository -> page of the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "experiments/README.md": "experiments/index.md",
}
LINK = re.compile(r"(?P<text>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<target>[^()\s#]*)(?P<anchor>#[^()\s]*)?\)")
FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = [*config.nav, {"API": [{room: f"api/{room}.md"} for room in rooms()]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = dict(PAGES)
    for path in sorted((ROOT / "experiments").rglob("*.md")):
        source = path.relative_to(ROOT).as_posix()
        pages.setdefault(source, source.replace("README.md", "index.md"))
    for path in sorted((ROOT / "docs").rglob("*.md")):
        pages[path.relative_to(ROOT).as_posix()] = path.relative_to(ROOT / "docs").as_posix()
    copied = {path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments").rglob("*.png")}
    assets = {source: source for source in copied} | {
        path.relative_to(ROOT).as_posix(): path.relative_to(ROOT / "docs").as_posix()
        for path in (ROOT / "docs" / "images").iterdir()
    }
    for source, page in pages.items():
        if page in files.src_uris:
            files.remove(files.src_uris[page])
        text = linked((ROOT / source).read_text(encoding="utf-8"), source, page, pages | assets)
        front = "---\nhide: [navigation]\n---\n" if page == "index.md" else ""
        files.append(File.generated(config, page, content=front + text))
    for source in copied:
        files.append(File.generated(config, source, abs_src_path=str(ROOT / source)))
    for room in rooms():
        files.append(File.generated(config, f"api/{room}.md", content=reference(room)))
    return files


def rooms() -> list[str]:
    """The packages of partcraft_lit, and its modules of the top level."""
    names = [path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")]
    return sorted([*names, *(path.stem for path in (ROOT / PACKAGE).glob("[a-z]*.py"))])


def reference(room: str) -> str:
    return f"# partcraft_lit.{room}\n\n::: partcraft_lit.{room}\n"


def linked(text: str, source: str, page: str, pages: dict[str, str]) -> str:
    """``text`` with the links of a file at ``source`` rewritten for a page at ``page``; code blocks are left alone."""

    def replace(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if not target or "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        where = pages.get(path) or module_page(path)
        if where:
            return f"{match['text']}({posixpath.relpath(where, posixpath.dirname(page) or '.')}{anchor})"
        if not (ROOT / path).exists():
            return match[0]  # a broken link, which the strict build names
        return match["text"][1:-1]

    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(replace, part) for part in parts)


def module_page(path: str) -> str | None:
    if not path.startswith(PACKAGE + "/"):
        return None
    room = path.removeprefix(PACKAGE + "/").split("/")[0].removesuffix(".py")
    return f"api/{room}.md" if room in rooms() else None
