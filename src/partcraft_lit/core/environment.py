"""What a run ran on: versions, machine, commit. Written beside its numbers, so that they can be made again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from partcraft_lit.core.files import atomic_write

PACKAGES = (
    "partcraft-lit",
    "torch",
    "lightning",
    "hydra-core",
    "omegaconf",
    "diffusers",
    "transformers",
    "peft",
    "faiss-cpu",
    "faiss-gpu",
    "torchmetrics",
    "wandb",
    "numpy",
    "pillow",
    "safetensors",
)
#: Of a checkout: what decides results. Results themselves and documentation do not.
DECIDING = ("src", "conf", "train.py", "pyproject.toml", "constraints.txt")


def position() -> tuple[int, int]:
    """Number of this process among those of one run, and how many there are, as whoever started it says.

    torchrun sets RANK; srun sets SLURM_PROCID; Lightning sets LOCAL_RANK for the further processes that it starts, as
    people do for processes of their own. NODE_RANK (for torchrun's machines GROUP_RANK) is set on each of several
    machines: only the first process of machine 0 is number 0.
    """
    rank, world = _number("RANK"), _number("WORLD_SIZE")
    if rank is None:
        node, local = _first_number("NODE_RANK", "GROUP_RANK"), _number("LOCAL_RANK")
        if node is not None or local is not None:
            rank = (node or 0) * (_number("LOCAL_WORLD_SIZE") or 1) + (local or 0)
    if rank is None:
        rank, world = _number("SLURM_PROCID"), _number("SLURM_NTASKS")
    return (0, 1) if rank is None else (rank, max(world or 1, rank + 1))


def set_local_processes(trainer: Mapping[str, Any]) -> None:
    """Says in LOCAL_WORLD_SIZE, for this process and those that it starts, how many a trainer uses on each machine.

    Lightning, which is not started by torchrun or srun, names a process by LOCAL_RANK and NODE_RANK alone.
    """
    if int(trainer.get("num_nodes", 1)) > 1:
        os.environ.setdefault("LOCAL_WORLD_SIZE", str(trainer_processes(trainer)))


def _first_number(*variables: str) -> int | None:
    return next((number for name in variables if (number := _number(name)) is not None), None)


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else None


def is_first_process() -> bool:
    """Whether this process writes what is written once."""
    return position()[0] == 0


def local_number() -> int:
    """Number of this process among those of one run on this machine."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def gpus_of_job(trainer: Mapping[str, Any]) -> int:
    """How many of a machine's GPUs a job with this trainer is to get; 0 if it names them itself, or takes all."""
    devices, accelerator = trainer.get("devices", "auto"), trainer.get("accelerator", "auto")
    if devices == "auto" or accelerator not in ("auto", "gpu", "cuda"):
        return 1
    return int(devices) if str(devices).isdigit() else 0


def trainer_processes(trainer: Mapping[str, Any]) -> int:
    """How many processes a configured trainer uses on this machine."""
    devices, accelerator = trainer.get("devices", "auto"), trainer.get("accelerator", "auto")
    if isinstance(devices, (list, tuple)):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    if devices not in ("auto", -1, "-1"):
        return int(devices) if str(devices).isdigit() else 1  # what is not a number, the trainer itself refuses
    if accelerator not in ("auto", "gpu", "cuda"):
        return 1
    import torch  # late: this module is also read where nothing heavy may be loaded

    return max(1, torch.cuda.device_count())


def describe() -> dict[str, Any]:
    """Versions, machine, command line and commit, as plain values. Holds no variable of the environment."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": _cpu_count(),
        "memory_gib": memory_gib(),
        "packages": packages(),
        "torch": _torch(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": _git(Path(__file__).resolve().parent),
    }


def packages() -> dict[str, str]:
    """Versions of the installed packages that decide results."""
    return {name: version for name in PACKAGES if (version := _version(name))}


def write(folder: Path, parent: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Writes ``environment.json`` into a run folder and returns what it says.

    A run that is continued keeps the earlier starts, under "earlier".

    Args:
        folder: of the run.
        parent: of a branch, where it begins; kept when it is continued.
    """
    path = folder / "environment.json"
    found = describe()
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        parent = before.pop("parent", None) or parent
        found["earlier"] = [*before.pop("earlier", []), before] if before else []
    if parent is not None:
        found["parent"] = dict(parent)
    atomic_write(path, json.dumps(found, indent=2, default=str))
    return found


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> float | None:
    """Of this machine; None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> dict[str, Any]:
    import torch  # late: this module is also read where nothing heavy may be loaded

    return {
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _git(folder: Path) -> dict[str, Any] | None:
    found = checkout(folder)
    return None if found is None else {"commit": found.commit, "dirty": bool(found.changed)}


@dataclass(frozen=True)
class Checkout:
    """The state of the code in a git checkout.

    Attributes:
        commit: its hash.
        changed: files that decide results and differ from the commit, untracked ones included, relative to the root.
    """

    commit: str
    changed: tuple[str, ...]


def checkout(folder: Path | None = None) -> Checkout | None:
    """The git checkout that this package is imported from; None for an installed package, or without git.

    Args:
        folder: inside the checkout; None for this package's.
    """
    place = Path(__file__).resolve().parent if folder is None else folder
    try:
        root = Path(_ask_git(place, "rev-parse", "--show-toplevel"))
        if not (root / "src" / "partcraft_lit").is_dir():  # installed below somebody else's repository
            return None
        status = _ask_git(root, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames", "--", *DECIDING)
        return Checkout(_ask_git(root, "rev-parse", "HEAD"), tuple(line[3:] for line in status.split("\0") if line))
    except (OSError, subprocess.SubprocessError):
        return None


def _ask_git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=10,
        check=True,
    )
    return done.stdout.strip("\n")
