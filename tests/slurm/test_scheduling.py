"""Discovery in shares by srun, and sweeps and tables whose jobs are jobs of SLURM."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import Slurm

pytestmark = pytest.mark.slurm


def partcraft(slurm: Slurm, *arguments: str) -> str:
    """A command that a person gives on a machine which submits jobs."""
    done = subprocess.run(
        [sys.executable, "-m", "partcraft_lit", *arguments],
        env=slurm.environment,
        cwd=slurm.root,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def in_(folder: Path) -> tuple[str, str]:
    return f"hydra.run.dir={folder}", f"paths.store={folder / 'store'}"


def test_srun_shares_a_discovery(slurm: Slurm) -> None:
    shared, alone = slurm.root / "shared", slurm.root / "alone"
    data = [text for text in slurm.data if not text.startswith(("backbone", "paths"))]
    said = slurm(
        "srun", "--ntasks=3", sys.executable, "-m", "partcraft_lit", "discover", "trainer=cpu", *data, *in_(shared)
    )
    assert said.count("Parts: ") == 1
    partcraft(slurm, "discover", "trainer=cpu", *data, *in_(alone))
    files = [{path.name: path.read_bytes() for path in (run / "parts").iterdir()} for run in (shared, alone)]
    for written in files:
        del written["discovery.json"]  # has seconds
    assert files[0] == files[1] and {"dictionary.json", "codes.csv", "atlas.png"} <= files[0].keys()


def test_a_sweep_of_four_jobs_and_the_same_command_again(slurm: Slurm) -> None:
    short = [text for text in slurm.training if not text.startswith(("trainer.max_steps", "+", "eval.enabled"))]
    short += ["eval.reconstructions=2", "eval.compositions=1", "eval.species=[2]", "eval.pictures=[]", "sample.steps=1"]
    swept = ["loss.lambda_attn=0.1,0.01", "seed=0,1", "trainer.max_steps=3"]
    launcher = ["hydra/launcher=slurm", "hydra.launcher.poll_s=1", "hydra.launcher.minutes=5"]
    own = [f"paths.logs={slurm.root / 'logs'}", *launcher]
    said = partcraft(slurm, "train", "-m", *slurm.data, *short, *swept, *own)
    assert "Submitted 4 jobs" in said
    (table,) = (slurm.root / "logs").rglob("sweep.csv")
    with table.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 4 and len(list(table.parent.rglob("finished.json"))) == 4
    assert "All 4 jobs are done" in partcraft(slurm, "train", "-m", *slurm.data, *short, *swept, *own)


def test_a_table_whose_runs_are_jobs(slurm: Slurm) -> None:
    tiny = (
        "trainer.max_steps=2 trainer=cpu eval.reconstructions=2 eval.compositions=1 eval.species=[2] eval.hybrids=1 "
        "sample.steps=1 parts.K=3 parts.nredo=1 dataset.species=5 dataset.images_per_species=2"
    )
    results = slurm.root / "table"
    jobs = ["launcher=slurm", "slurm.minutes=5", "slurm.poll_s=1"]
    folders = [f"paths.logs={slurm.root / 'logs'}", f"paths.store={slurm.root / 'store'}", f"output_dir={results}"]
    rows = ["table=lambda_attn", "rows=['0','1e-2']", "table.seeds=[0]", f"overrides={tiny}", "allow_dirty=true"]
    said = partcraft(slurm, "table", *rows, *jobs, *folders, "logger=none", "resamples=100")
    assert "Submitted 2 jobs" in said
    assert (results / "table.md").exists() and "1e-2" in (results / "table.md").read_text(encoding="utf-8")
