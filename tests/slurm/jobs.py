"""Jobs of a tiny run on a SLURM node."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: Of all training runs here.
STEPS = 40
#: A job that has come to its end, well or not.
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"}
SMALL = (
    "backbone=sd15",
    "backbone.resolution=32",
    "dataset=creatures",
    "dataset.species=3",
    "dataset.images_per_species=4",
    "parts.features=color",
    "features.color.grid=8",
    "parts.M=2",
    "parts.K=3",
    "parts.nredo=1",
    "parts.niter=5",
    "parts.foreground_clusters=2",
)
TRAINING = (
    "mapper.hidden=16",
    "data.batch_size=1",
    "data.num_workers=0",
    "trainer=cpu",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=1",
    "logger=none",
    "callbacks.checkpoints.every_n_steps=1000",
    "~callbacks.samples",
    "~callbacks.attention_maps",
    "eval.enabled=false",
    "eval.hybrids=1",
)


@dataclass
class Slurm:
    """The node, and where jobs of this session work.

    Attributes:
        environment: of the commands, which jobs inherit.
        root: folder of the runs, their store and the output of the jobs.
        data, training: overrides of every discovery, and what every training run has beside them.
    """

    environment: dict[str, str]
    root: Path
    data: tuple[str, ...]
    training: tuple[str, ...]

    def __call__(self, *command: str) -> str:
        """What a command of SLURM says."""
        done = subprocess.run(command, env=self.environment, cwd=self.root, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, script: Path, *arguments: str, options: tuple[str, ...] = (), **variables: str) -> str:
        """Submits a script; the number of the job."""
        exported = ",".join(["ALL", *(f"{name}={value}" for name, value in variables.items())])
        said = self("sbatch", "--parsable", f"--export={exported}", *options, str(script), *arguments)
        return said.strip().partition(";")[0]

    def state(self, job: str) -> str:
        found = re.search(r"JobState=(\w+)", self("scontrol", "show", "job", job))
        return found[1] if found else ""

    def wait(self, job: str, seconds: float = 400.0) -> None:
        """Until the job is completed."""
        until = time.monotonic() + seconds
        while (state := self.state(job)) not in _ENDED and time.monotonic() < until:
            time.sleep(0.5)
        assert state == "COMPLETED", f"{state}\n{self.output(job)}\n{self('scontrol', 'show', 'job', job)}"

    def output(self, job: str) -> str:
        path = self.root / f"slurm-{job}.out"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
