"""All that is to be measured on a GPU, in one command: ``python benchmarks/gpu.py [--output FOLDER]``.

Real steps of FLUX.2 klein, also with its weights in int8 and with the text encoder on the CPU, of PRX and of SDXL; our
step of SD1.5 with more and more images until they no longer fit, with the share of the matrix rate that it reaches
(goal: 0.4), with and without compiled blocks; and last that step beside the released way, at 512 px with two images
(goal: 10 times as fast, at most 8 GB). ``--models prx,flux2_klein`` measures these alone, ``--quick`` one batch of
each. After ``--minutes`` nothing new is started, and what is left is named. ``--device cpu --small`` runs the same
commands with tiny models, to see that they work. With ``--output`` the tables are kept as ``gpu.md`` and the numbers as
``gpu.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from floor import copy_rate, matrix_rate
from full_size import Case

HERE = Path(__file__).parent
#: 10^12 operations of a step of one image at 512 px, as ``floor.py`` counts them.
OPERATIONS = 1.70
MODELS = ("sd15", "sdxl", "prx", "flux2_klein")
HEAD = "| model | as | images | s / step | images/s | GB | share of the matrix rate |\n|---|---|---|---|---|---|---|"


class Log:
    """Prints lines, and keeps them with the numbers behind them."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.lines, self.rows = folder, [], []  # type: ignore[var-annotated]

    def __call__(self, line: str, **numbers: Any) -> None:
        print(line, flush=True)
        self.lines.append(line)
        if numbers:
            self.rows.append(numbers)
        if self.folder is not None:  # after every line: a machine may be taken away
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "gpu.md").write_text("\n".join(self.lines) + "\n", encoding="utf-8")
            (self.folder / "gpu.json").write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", default=",".join(MODELS), help="of sd15, sdxl, prx, flux2_klein, with commas")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing new is started")
    parser.add_argument("--quick", action="store_true", help="one batch of each form, in two or three minutes")
    parser.add_argument("--output", type=Path, help="folder of gpu.md and gpu.json")
    parser.add_argument(
        "--small", action="store_true", help="the miniature, SD1.5 at 64 px, tiny transformers, no SDXL"
    )
    given, _ = parser.parse_known_args()
    models = given.models.split(",")
    if unknown := set(models) - set(MODELS):
        parser.error(f"--models: {', '.join(sorted(unknown))} is none of {', '.join(MODELS)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here; --device cpu --small shows that the commands work.")
        return
    end, log = time.monotonic() + 60 * given.minutes, Log(given.output)
    rate = matrix_rate(given.device, torch.bfloat16)
    name = "CPU" if given.device == "cpu" else torch.cuda.get_device_name(given.device)
    log(f"{name}: {rate:.0f} GFLOP/s in bfloat16, {copy_rate(given.device):.0f} GB/s")
    log(f"\n{HEAD}")
    meter = Meter()
    for kind in reversed(models):  # the transformers first: they have been measured least
        if given.small and kind == "sdxl":
            continue
        for form, changes in FORMS[kind]:
            if given.small and "compiled" in changes:
                continue
            for case in growing(given, kind, changes):
                if time.monotonic() > end:
                    log(f"| {kind} | {form} | {case.batch} | not started: --minutes are over | | | |")
                    break
                if not row(log, meter, case, form, rate, given.small):
                    break
    if "sd15" in models:  # last: the released way computes patch features on the CPU, and may take minutes
        shape = ["--shape", "mini", "--steps", "1"] if given.small else ["--shape", "sd15_512", "--steps", "10"]
        steps = (*shape, "--batch", "2", "--device", given.device, "--precision", "bf16", "--stages")
        log("\n" + _run("step.py", *steps, seconds=max(60.0, end - time.monotonic())))


def row(log: Log, meter: Meter, case: Case, form: str, rate: float, small: bool) -> bool:
    """One line of the table; False if the case did not run."""
    found = meter(case)
    if found is None:
        log(f"| {case.kind} | {form} | {case.batch} | did not run | | | |", case=asdict(case), found=None)
        return False
    speed = case.batch / found["seconds"]
    share = f"{speed * OPERATIONS * 1e3 / rate:.2f}" if case.kind == "sd15" and not small else ""
    spent = f"{found['seconds']:.3f} | {speed:.2f} | {found['gigabytes']:.2f}"
    log(f"| {case.kind} | {form} | {case.batch} | {spent} | {share} |", case=asdict(case), found=found)
    return True


_KLEIN = {"checkpointing": True, "quantize": "int8"}
#: Model -> how it is measured: what it is called, and what of a case differs from bfloat16 weights without more.
FORMS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "sd15": [("bf16", {}), ("bf16, compiled", {"compiled": True})],
    "sdxl": [("bf16", {}), ("bf16, compiled", {"compiled": True})],
    "prx": [("bf16", {}), ("bf16, checkpointing", {"checkpointing": True})],
    "flux2_klein": [
        ("int8, checkpointing, text encoder on the CPU", {**_KLEIN, "offloaded": True}),
        ("int8, checkpointing", _KLEIN),
        ("bf16, checkpointing", {"checkpointing": True}),
        ("bf16", {}),
    ],
}
#: Batches of each; SD1.5 and SDXL double until one does not fit.
BATCHES = {"prx": (1, 4, 16), "flux2_klein": (1, 4)}
#: The batch of ``--quick``.
QUICK = {"sd15": 8, "sdxl": 4, "prx": 4, "flux2_klein": 1}


def growing(given: argparse.Namespace, kind: str, changes: dict[str, Any]) -> Iterator[Case]:
    """More and more images; whoever takes the cases stops when one does not fit."""
    batches = (QUICK[kind],) if given.quick else BATCHES.get(kind, tuple(2**power for power in range(1, 9)))
    for batch in batches[:1] if given.small else batches:
        settings: dict[str, Any] = {"compiled": False, "checkpointing": False, **changes}
        yield Case(
            kind=kind,
            weights="bfloat16",
            autocast=True,
            device=given.device,
            batch=batch,
            resolution=64 if given.small else 512,
            steps=2 if given.small else 6,
            small=given.small,
            **settings,
        )


class Meter:
    """Measures cases in one process beside this one, whose memory is its own and which starts once."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, case: Case) -> dict[str, Any] | None:
        """None if it fails, for want of memory mostly."""
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, str(HERE / "full_size.py"), "--listen"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", bufsize=1
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(asdict(case)), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith(("{", "null")):
                found: dict[str, Any] | None = json.loads(line)
                return found
        return None  # it died; the next case starts another


def _run(file: str, *arguments: str, seconds: float) -> str:
    """What a script prints, as far as it gets in ``seconds``; its complaints go where ours go."""
    sys.stdout.flush()
    command = [sys.executable, str(HERE / file), *arguments]
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=seconds).stdout.decode().rstrip()
    except subprocess.TimeoutExpired as stopped:
        return f"{(stopped.stdout or b'').decode().rstrip()}\n{file} was stopped after {seconds:.0f} s."


if __name__ == "__main__":
    main()
