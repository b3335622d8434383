"""Moves a finished export to its place: all of it or nothing, and an earlier one stands until the new one is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write

#: The list of what an export wrote; by it the folder of an earlier export is known.
MANIFEST = "export.json"


def earlier_files(folder: Path) -> set[str]:
    """Names of the files of the export that is in ``folder``, its manifest included; none where there is none.

    Raises:
        UserError: for a manifest that lists anything outside of the folder.
    """
    try:
        names = [str(name) for name in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    for name in names:
        path = PurePosixPath(name)
        inside = (folder / name).parent.resolve().is_relative_to(folder.resolve())
        if path.is_absolute() or ".." in path.parts or not inside:
            raise UserError(
                f"{folder / MANIFEST} lists {name!r}, which is not in its folder: no export wrote that. Nothing is "
                "removed; give another output_dir."
            )
    return {MANIFEST, *names}


def check_output(folder: Path) -> None:
    """Raises a UserError for a folder that holds anything but an earlier export; hidden files may stay there."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"output_dir={folder} is a file; give a folder.")
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()}
    foreign = {path for path in present - earlier_files(folder) if not path.startswith(".")}
    if foreign:
        raise UserError(
            f"output_dir={folder} holds files that no export wrote, for instance {min(foreign)!r}; nothing is "
            f"overwritten. Give another path, or an empty folder."
        )


def publish(made: Path, folder: Path) -> None:
    """Moves all files of ``made``, a finished export on the same file system, to ``folder``.

    An interruption at any point leaves a folder that the same command can finish: its manifest lists the files of both
    exports until all have moved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    earlier = earlier_files(folder)
    manifest = json.loads((made / MANIFEST).read_text(encoding="utf-8"))
    new = set(manifest["files"])
    both = {**manifest, "files": sorted((earlier | new) - {MANIFEST}), "unfinished": True}
    atomic_write(folder / MANIFEST, json.dumps(both, indent=1) + "\n")
    for name in sorted(new):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).replace(folder / name)
    for name in sorted(earlier - new - {MANIFEST}):
        _remove(folder / name, folder)
    (made / MANIFEST).replace(folder / MANIFEST)
    shutil.rmtree(made)


def _remove(path: Path, folder: Path) -> None:
    """Removes a file, and the folders inside ``folder`` that are empty without it."""
    path.unlink(missing_ok=True)
    for parent in path.parents:
        if parent == folder or not parent.is_dir() or any(parent.iterdir()):
            break
        parent.rmdir()
