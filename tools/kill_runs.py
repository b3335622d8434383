"""Kills a training run at random moments: ``python tools/kill_runs.py [TRIALS] [SEED]``.

A small run is trained undisturbed. Then TRIALS times (20) the same run is started and, at a random moment, gets
SIGKILL, SIGTERM, SIGINT or SIGUSR1, to its process or to its group; the same command continues it, is signalled again,
and so on until it ends by itself. Its adapter, its ``metrics.jsonl`` (without what is measured of time and memory) and
its scores must then be those of the undisturbed run, to the bit. What differs is printed, and the exit code is 1.

Each start is a real process, forked from one that has imported everything, so that a trial takes seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forked import start, wait

STEPS = 12
#: Logged every two steps, saved every three, looked at every four: a stop falls between them in all ways.
RUN = (
    *("dataset=creatures", "dataset.species=2", "dataset.images_per_species=3", "backbone=mini", "trainer=cpu"),
    *("parts.features=color", "features.color.grid=8", "parts.M=2", "parts.K=2", "parts.nredo=1", "parts.niter=3"),
    *("parts.foreground_clusters=2", "mapper.hidden=16", "data.batch_size=1", "data.num_workers=1", "logger=none"),
    *("trainer.precision=32-true", f"trainer.max_steps={STEPS}", "trainer.accumulate_grad_batches=2"),
    *("optim.warmup_steps=5", "trainer.log_every_n_steps=2", "callbacks=live", "callbacks.throughput.every_n_steps=4"),
    *("callbacks.checkpoints.every_n_steps=3", "callbacks.live_score.every_n_steps=4", "~callbacks.attention_maps"),
    *("callbacks.samples.every_n_steps=6", "sample.steps=1", "eval.reconstructions=2", "eval.compositions=2"),
    *("eval.species=[1]", "eval.untrained=1", "eval.ceiling_images=2", "eval.pictures=[]", "eval.hybrids=1"),
)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
#: Starts of one trial that are signalled; the next one is left alone.
KILLS = 3
#: What is measured, not computed.
TIMED = ("time", "perf/")
_LIMIT_S = 600.0


@dataclass(frozen=True)
class Result:
    """What of a run must not depend on how often it was killed."""

    adapter: dict[str, bytes]
    metrics: list[dict[str, Any]]
    scores: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> Result:
        import torch

        content = torch.load(folder / "checkpoints" / f"step={STEPS:06d}.ckpt", weights_only=True)
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return cls(
            {name: value.numpy().tobytes() for name, value in content["state_dict"].items()},
            [{k: v for k, v in json.loads(line).items() if not k.startswith(TIMED)} for line in lines],
            json.loads((folder / "scores.json").read_text(encoding="utf-8")),
        )

    def differences(self, other: Result) -> list[str]:
        """What is not as in ``other``, the undisturbed run."""
        found = [f"weights {name}" for name, value in other.adapter.items() if self.adapter.get(name) != value]
        found += [f"score {key}" for key, value in other.scores.items() if self.scores.get(key) != value]
        if self.metrics != other.metrics:
            ours, theirs = ([json.dumps(line) for line in metrics] for metrics in (self.metrics, other.metrics))
            lost, more = [x for x in theirs if x not in ours], [x for x in ours if x not in theirs]
            found.append(f"metrics: {len(ours)} lines instead of {len(theirs)}; lost {lost[:2]}; more {more[:2]}")
        return found


def preload() -> None:
    """Imports what a run imports, computing nothing: a pool of threads would not survive a fork."""
    import torch

    torch.set_num_threads(1)
    for name in ("commands.train.train", "config.factories", "world.creatures"):
        importlib.import_module(f"partcraft_lit.{name}")


def trial(root: Path, rng: random.Random, seconds: float, whole: Result) -> tuple[str, list[str]]:
    """One run with its kills; what was done to it, and what is wrong with it."""
    command = ["train", *RUN, f"paths.logs={root / 'logs'}", f"paths.store={root / 'store'}"]
    out, done = root / "out.txt", []
    for number in range(KILLS + 1):
        process = start(command, out)
        if number < KILLS:
            code = wait(process, rng.uniform(0.02, seconds))
            if code is None:
                chosen, group = rng.choice(SIGNALS), rng.random() < 0.5
                (os.killpg if group else os.kill)(process, chosen)
                code = wait(process, _LIMIT_S)
                done.append(f"{chosen.name}{' group' if group else ''} {code}")
                if code not in (0, -chosen, 128 + chosen):
                    return ", ".join(done), [
                        f"exit code {code} after {chosen.name}",
                        out.read_text(encoding="utf-8")[-3000:],
                    ]
                if code == 0:
                    break
                continue
        else:
            code = wait(process, _LIMIT_S)
        if code != 0:
            return ", ".join(done), [f"exit code {code}", out.read_text(encoding="utf-8")[-3000:]]
        break
    folders = list((root / "logs" / "train" / "runs").iterdir())
    wrong = [f"{len(folders)} run folders"] if len(folders) != 1 else Result.of(folders[0]).differences(whole)
    said = out.read_text(encoding="utf-8", errors="replace")
    if "Traceback" in said:
        wrong.append("a traceback: " + said[said.index("Traceback") :][:3000])
    return ", ".join(done), wrong


def main(trials: int = 20, seed: int = 0) -> int:
    preload()
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        started = time.monotonic()
        whole_root = root / "whole"
        command = ["train", *RUN, f"paths.logs={whole_root / 'logs'}", f"paths.store={whole_root / 'store'}"]
        whole_root.mkdir()
        code = wait(start(command, root / "out.txt"), _LIMIT_S)
        if code != 0:
            print((root / "out.txt").read_text(encoding="utf-8"))
            return 1
        seconds = time.monotonic() - started
        (folder,) = (whole_root / "logs" / "train" / "runs").iterdir()
        whole, right = Result.of(folder), 0
        print(f"undisturbed: {seconds:.1f} s, {len(whole.metrics)} lines of metrics", flush=True)
        for number in range(trials):
            (root / str(number)).mkdir()
            done, wrong = trial(root / str(number), rng, seconds, whole)
            right += not wrong
            print(f"{number + 1:3} {'equal' if not wrong else 'DIFFERS'}: {done or 'not hit'}", *wrong, sep="\n    ")
            sys.stdout.flush()
    print(f"{right} of {trials} equal the undisturbed run")
    return int(right != trials)


if __name__ == "__main__":
    from closed_pipe import until_the_reader_leaves

    with until_the_reader_leaves():
        sys.exit(main(*map(int, sys.argv[1:])))
