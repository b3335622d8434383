"""Kills a search at random moments: ``python tools/kill_search.py [DRILLS] [SEED]``.

A small search of ``hydra/sweeper=optuna`` runs undisturbed. Then DRILLS times (20) the same search is started, killed
with SIGKILL at a random moment of what is left to do, started again by the same command, killed again, and so on
until it ends by itself. In turn it is one process that proposes one trial after another, one that proposes three at
once, and two processes that share the study, of which one is killed. No finished trial may be run again and none may
be lost; with one process the trials, their values and their scores must be those of the undisturbed search, to the
bit. With two, what is proposed depends on which results came first, so there each score must be that of its settings,
and the number of trials right.

What a trial trains is made up, so that a drill takes seconds; all else is the real command line. Some scores are no
numbers.
"""

from __future__ import annotations

import importlib
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from forked import start, wait

OBJECTIVE = "eval/emr@4_species"
TRIALS = 12  # the last two are proposed by what the first ten scored
SEARCH = (
    *("train", "-m", "hydra/sweeper=optuna", f"hydra.sweeper.n_trials={TRIALS}", f"objective={OBJECTIVE}"),
    *("loss.lambda_attn=tag(log,interval(1e-4,1))", "lora.rank=2,4,8", "parts.K=range(3,9)", "hydra/launcher=basic"),
    *("dataset.images_per_species=1", "logger=csv", "trainer=cpu"),
)
#: Further arguments, and how many processes are started at once.
MODES: Mapping[str, tuple[tuple[str, ...], int]] = {
    "one after another": ((), 1),
    "three at once": (("hydra.sweeper.n_jobs=3",), 1),
    "two processes": ((), 2),
}
#: Starts of a drill that are killed; the next one is left alone.
KILLS = 3
_TRAINS_S = 0.1
_LIMIT_S = 600.0
_LOOKS_S = 0.02
#: In the root of a drill: a line for each trial that was begun although it was finished.
_TWICE = "twice.txt"


def score(lambda_attn: float, rank: int, codes: int) -> float:
    """What a trial scores; no number for some."""
    return math.nan if codes == 4 else -abs(math.log10(lambda_attn) + 2) + rank / 8 + codes / 10


def train(settings: Any, folder: Path, **others: Any) -> dict[str, float]:
    """Stands in for the training of a run."""
    if (folder / "finished.json").exists():
        with (folder.parents[4] / _TWICE).open("a", encoding="utf-8") as file:
            file.write(f"{folder.name}\n")
    time.sleep(_TRAINS_S)
    return {OBJECTIVE: score(settings.loss.lambda_attn, settings.lora.rank, settings.parts.K)}


def preload() -> None:
    """Imports what a search imports, and puts the made-up training in the place of the real one."""
    import torch

    torch.set_num_threads(1)
    for name in ("config.factories", "config.search", "search.results", "callbacks.pruning", "commands.train.context"):
        importlib.import_module(f"partcraft_lit.{name}")
    importlib.import_module("optuna")
    module = ModuleType("partcraft_lit.commands.train.train")
    module.train = train  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module


def trials_of(root: Path) -> list[tuple[Any, ...]]:
    """Number, state, scores and settings of every trial."""
    import optuna

    from partcraft_lit.search.storage import open_storage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    (journal,) = root.glob("logs/train/multiruns/*/search.journal")
    study = optuna.load_study(study_name="search", storage=open_storage(str(journal)))
    return [(one.number, one.state.name, one.values, one.params) for one in study.trials]


def wrong(root: Path, found: list[tuple[Any, ...]], whole: list[tuple[Any, ...]] | None) -> list[str]:
    """What is not as it has to be; ``whole`` are the trials of the undisturbed search, if they have to be equal."""
    errors = []
    if (root / _TWICE).exists():
        errors.append(f"run again although finished: {(root / _TWICE).read_text(encoding='utf-8').split()}")
    if [one[0] for one in found] != list(range(TRIALS)):
        errors.append(f"trials {[one[0] for one in found]}")
    for number, state, values, params in found:
        wanted = score(params["loss.lambda_attn"], params["lora.rank"], params["parts.K"])
        if (state, values) != (("FAIL", None) if math.isnan(wanted) else ("COMPLETE", [wanted])):
            errors.append(f"trial {number} is {state} with {values}, and scored {wanted}")
    if whole is not None:
        errors += [f"trial {a[0]} differs: {a} instead of {b}" for a, b in zip(found, whole) if a != b]
    return errors


def begun(root: Path) -> int:
    """How many trials have a folder."""
    return sum(1 for _ in root.glob("logs/train/multiruns/*/trial_*"))


def ends_before(process: int, root: Path, rng: random.Random) -> bool:
    """Waits for a random moment of the work that is left; whether the process has ended by then."""
    moment = rng.randint(begun(root), TRIALS)
    while begun(root) < moment:
        if wait(process, _LOOKS_S) is not None:
            return True
    return wait(process, rng.uniform(0.0, 4 * _TRAINS_S)) is not None


def drill(root: Path, mode: str, rng: random.Random) -> tuple[str, list[str]]:
    """One search with its kills; what was done to it, and what went wrong."""
    arguments, processes = MODES[mode]
    command = [*SEARCH, *arguments, f"paths.logs={root / 'logs'}", f"paths.store={root / 'store'}"]
    out, done = root / "out.txt", []
    for number in range(KILLS + 1):
        running = [start(command, out) for _ in range(processes)]
        if number < KILLS and not ends_before(running[0], root, rng):
            os.kill(running[0], signal.SIGKILL)
            wait(running.pop(0), _LIMIT_S)
            done.append("killed")
        elif number < KILLS:
            done.append("ended before its kill")
            running.pop(0)
        codes = [wait(process, _LIMIT_S) for process in running]
        if any(code != 0 for code in codes):
            return ", ".join(done), [f"exit codes {codes}", out.read_text(encoding="utf-8")[-3000:]]
    return ", ".join(done), []


def main(drills: int = 20, seed: int = 0) -> int:
    """Prints a line per drill; returns the exit code."""
    preload()
    rng, failures = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as place:
        whole: dict[str, list[tuple[Any, ...]] | None] = {"two processes": None}
        for mode, (arguments, processes) in MODES.items():
            if processes > 1:
                continue
            root = Path(place, mode)
            root.mkdir()
            started = time.monotonic()
            command = [*SEARCH, *arguments, f"paths.logs={root / 'logs'}", f"paths.store={root / 'store'}"]
            code = wait(start(command, root / "out.txt"), _LIMIT_S)
            if code != 0:
                print((root / "out.txt").read_text(encoding="utf-8")[-3000:])
                return 1
            whole[mode] = trials_of(root)
            took = time.monotonic() - started
            print(f"undisturbed, {mode}: {len(whole[mode] or [])} trials in {took:.1f} s", flush=True)
        for number in range(drills):
            mode = list(MODES)[number % len(MODES)]
            root = Path(place, str(number))
            root.mkdir()
            done, errors = drill(root, mode, rng)
            errors = errors or wrong(root, trials_of(root), whole[mode])
            failures += bool(errors)
            print(f"{number + 1:3} {mode}: {done}: {'equal' if not errors else 'WRONG'}", flush=True)
            for error in errors:
                print(f"      {error}")
    print(f"{drills - failures} of {drills} searches are as if they had not been disturbed.")
    return int(failures > 0)


if __name__ == "__main__":
    from closed_pipe import until_the_reader_leaves

    with until_the_reader_leaves():
        sys.exit(main(*map(int, sys.argv[1:])))
