"""Checks that the running interpreter has the pinned environment: ``python tools/check_env.py cpu|gpu [EXTRA...]``.

Exit code 0 if the project is installed editable from this checkout and all of its dependencies, including those of
``dev`` and the named extras, have the version of ``constraints.txt``; 1 otherwise, with the differences. Needs only the
standard library (and ``packaging``, whose absence means that nothing is installed yet).
"""

from __future__ import annotations

import json
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

ROOT = Path(__file__).resolve().parents[1]


def pins(text: str) -> dict[str, str]:
    """Name -> version of each pinned line."""
    rows = (line.split("#")[0].strip() for line in text.splitlines())
    return {canonical(name): version for name, version in (row.split("==") for row in rows if row)}


def canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def problems(requirements: list[str], pinned: dict[str, str]) -> list[str]:
    """What is missing or at another version, following requirements as far as they go."""
    from packaging.requirements import Requirement

    found: list[str] = []
    seen: set[str] = set()
    waiting = [(Requirement(text), frozenset({""})) for text in requirements]
    while waiting:
        requirement, extras = waiting.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        key = f"{canonical(requirement.name)}[{','.join(sorted(requirement.extras))}]"
        if key in seen:
            continue
        seen.add(key)
        try:
            installed = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement.name} is missing")
            continue
        wanted = pinned.get(canonical(requirement.name))
        if wanted and installed.version.split("+")[0] != wanted:  # "+cpu" is the same version, built without CUDA
            found.append(f"{requirement.name} is at {installed.version}, pinned at {wanted}")
        inner = frozenset({"", *requirement.extras})
        waiting += [(Requirement(text), inner) for text in installed.requires or []]
    return found


def is_editable_here() -> bool:
    try:
        text = metadata.distribution("partcraft-lit").read_text("direct_url.json") or "{}"
    except metadata.PackageNotFoundError:
        return False
    record = json.loads(text)
    editable = record.get("dir_info", {}).get("editable", False)
    return bool(editable) and Path(unquote(urlparse(record["url"]).path)).resolve() == ROOT


def main(accelerator: str, *more: str) -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    if accelerator not in ("cpu", "gpu"):
        print(f"ACCELERATOR={accelerator}: wanted cpu or gpu.", file=sys.stderr)
        return 1
    try:
        found = problems(
            [*project["dependencies"], *(text for name in (accelerator, "dev", *more) for text in extras[name])],
            pins((ROOT / "constraints.txt").read_text(encoding="utf-8")),
        )
    except ModuleNotFoundError:
        found = ["nothing is installed yet"]
    if not is_editable_here():
        found.append("partcraft-lit is not installed from this folder")
    if found:
        print("The environment needs work: " + "; ".join(found[:5]) + ("; ..." if len(found) > 5 else "."))
    return 1 if found else 0


if __name__ == "__main__":
    from closed_pipe import until_the_reader_leaves

    with until_the_reader_leaves():
        sys.exit(main(*(sys.argv[1:] or ["cpu"])))
