"""How long a command takes until it does what it was asked for: ``python benchmarks/startup.py [overrides of train]``.

Help, a wrong value, and a training run of the packaged model up to its first step, first with an empty store and then
with the filled one, as the second start of a run has it. Each is a process of its own, imports included. "CPU s" are
those of the command and its loader workers: they stay comparable where other work shares the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

#: No checkpoint or sample grid comes between the start and the first step but those that every run has.
RUN = ("trainer=cpu", "logger=csv", "trainer.log_every_n_steps=1")
_TICKS = os.sysconf("SC_CLK_TCK")
_COMMAND = (sys.executable, "-m", "partcraft_lit")


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and of the process and its children."""

    wall: float
    cpu: float


def whole(*arguments: str) -> Took:
    """A command that ends by itself."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([*_COMMAND, *arguments], capture_output=True, check=False)
    wall, after = time.perf_counter() - started, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return Took(wall, spent)


def to_first_step(root: Path, overrides: list[str]) -> tuple[Took, str]:
    """A training run, which is ended after its first step; and what it said of its stages."""
    logs, said = root / "logs", root / "said.txt"
    arguments = ["train", *RUN, f"paths.logs={logs}", f"paths.store={root / 'store'}", "ckpt_path=null", *overrides]
    started = time.perf_counter()
    with said.open("w", encoding="utf-8") as output:
        process = subprocess.Popen([*_COMMAND, *arguments], stdout=output, stderr=output, start_new_session=True)
        try:
            while not _has_stepped(logs):
                if process.poll() is not None:
                    raise SystemExit(f"The run ended before its first step:\n{said.read_text(encoding='utf-8')}")
                time.sleep(0.02)
            return Took(time.perf_counter() - started, _cpu(process.pid)), said.read_text(encoding="utf-8")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for path in logs.glob("train/runs/*/metrics.jsonl"):
                path.unlink()  # so that the next run is not taken for this one


def _has_stepped(logs: Path) -> bool:
    for path in logs.glob("train/runs/*/metrics.jsonl"):
        if any(
            "train/loss" in json.loads(line)
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.endswith("}")
        ):
            return True
    return False


def _cpu(leader: int) -> float:
    """Of a process and those that it started and that live."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == leader:  # its session
            total += sum(int(field) for field in fields[11:15]) / _TICKS
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where runs and store go, to be kept; else they are removed")
    given, overrides = parser.parse_known_args()
    print("| command | s | CPU s | goal, s |\n|---|---|---|---|")
    for name, arguments, goal in (
        ("partcraft --help", ["--help"], 2),
        ("partcraft train --help", ["train", "--help"], 2),
        ("unknown key", ["train", "parts.Q=3"], 3),
        ("wrong value", ["train", "parts.M=abc"], 3),
        ("wrong value of the method", ["train", "method.captions=3"], 3),
    ):
        took = whole(*arguments)
        print(f"| {name} | {took.wall:.1f} | {took.cpu:.2f} | {goal} |", flush=True)
    with tempfile.TemporaryDirectory(prefix="partcraft-startup-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        for name, goal in (("first step of a first start", ""), ("first step of a second start", "10")):
            took, said = to_first_step(folder, overrides)
            print(f"| {name} | {took.wall:.1f} | {took.cpu:.2f} | {goal} |", flush=True)
        print(f"\nOf the last:\n\n{said}")


if __name__ == "__main__":
    main()
