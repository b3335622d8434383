"""Training on several processes: real ones, which Lightning starts from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from partcraft_lit.callbacks.metrics_log import read_metrics
from partcraft_lit.evaluation.image_scores import differences, read_rows
from partcraft_lit.evaluation.sampling import recipe_of

TWO = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp")
#: Images are drawn for scores only.
SHORT = ("~callbacks.samples", "~callbacks.attention_maps", "eval.hybrids=1", "eval.untrained=0", "eval.pictures=[]")


@pytest.fixture(scope="module")
def pair(new_workshop):
    """A run of one process with batches of 4, and one of two processes with batches of 2; what the second said."""
    one, two = new_workshop(), new_workshop()
    alone = one.train(*SHORT, "data.batch_size=4", "trainer.max_steps=3")
    command = two.command("train", *SHORT, *TWO, "data.batch_size=2", "trainer.max_steps=3")
    said = started(command)
    (shared,) = two.runs
    return alone, shared, said


def started(command, **environment):
    """Runs a command in a process of its own, which may start others; what it said."""
    clean = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    ended = subprocess.run(
        [sys.executable, "-m", "partcraft_lit", *command],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_two_processes_train_what_one_does_with_twice_the_batch(pair):
    alone, shared, _ = pair
    losses = [read_metrics(run / "metrics.jsonl") for run in (alone, shared)]
    for name in ("train/loss", "train/loss_diffusion", "train/loss_attn"):
        assert [step for step, _ in losses[1][name]] == [0, 1, 2]
        assert [v for _, v in losses[0][name]] == pytest.approx([v for _, v in losses[1][name]], rel=1e-5), name
    first, second = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (alone, shared))
    assert first["global_step"] == second["global_step"] == 3
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, value in first["state_dict"].items():
        torch.testing.assert_close(
            second["state_dict"][name], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert any(value.abs().max() > 0 for name, value in first["state_dict"].items() if "lora_B" in name)


@pytest.mark.slow
def test_what_is_written_once_is_written_once(pair):
    alone, shared, said = pair
    lines = [json.loads(line) for line in (shared / "metrics.jsonl").read_text().splitlines()]
    for key in ("train/loss", "tokens/silhouette", "eval/emr@reconstruction"):
        steps = [line["step"] for line in lines if key in line]
        assert len(steps) == len(set(steps)) > 0, key
    environment = json.loads((shared / "environment.json").read_text())
    assert "earlier" not in environment  # no second start is noted
    assert said.count("Report: ") == said.count("Run folder: ") == 1
    files = [{str(path.relative_to(run)) for path in run.rglob("*")} for run in (alone, shared)]
    assert files[0] == files[1]


@pytest.mark.slow
def test_scores_of_two_processes_are_of_all_pictures(pair):
    alone, shared, _ = pair
    rows = [(run / "evaluation" / "scores.csv").read_text().splitlines() for run in (alone, shared)]
    assert len(rows[0]) == len(rows[1]) > 1
    numbers = [json.loads((run / "scores.json").read_text()) for run in (alone, shared)]
    assert numbers[0].keys() == numbers[1].keys()


@pytest.mark.slow
def test_two_processes_evaluate_what_one_does(tiny_run, new_workshop):
    one, two = new_workshop(), new_workshop()
    runs = [workshop.copy(tiny_run) for workshop in (one, two)]
    chosen = ("eval.species=[2]", "eval.compositions=3", "eval.reconstructions=1", "eval.pictures=[]")
    ended = one("evaluate", f"run={runs[0]}", *chosen)
    assert ended.code == 0, ended.out
    said = started(two.command("evaluate", f"run={runs[1]}", *chosen, *TWO))
    assert said.count("Scores: ") == 1
    tables = [next((run / "evaluation").glob("*/scores.csv")) for run in runs]
    rows = [read_rows(table) for table in tables]
    assert not differences(*rows) and len(rows[0]) == 4
    recipes = [[recipe_of(table.parent / row["image"]) for row in rows[0]] for table in tables]
    assert recipes[0] == recipes[1] and None not in recipes[0]


@pytest.mark.slow
def test_two_processes_go_back_together_where_the_loss_is_not_finite(new_workshop, plain):
    workshop = new_workshop()
    broken = ("trainer.max_steps=6", "+loss_terms.broken={_target_:toy_loss.broken,after:8,weight:1}")
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = workshop.command("train", *plain, *TWO, *broken)
    said = started(command, BROKEN_FOR="3", PYTHONPATH=here)
    (folder,) = workshop.runs
    assert said.count("step=000004.ckpt, with half the learning rates") == 1  # steps 2 and 3 were skipped
    content = torch.load(folder / "checkpoints" / "step=000006.ckpt", weights_only=True)
    assert content["rate_scale"] == 0.5 and (folder / "finished.json").exists()
    steps = [step for step, _ in read_metrics(folder / "metrics.jsonl")["train/loss"]]
    assert steps == list(range(6))
