"""A whole run: what it leaves behind, and that its pieces agree with each other."""

from __future__ import annotations

import csv
import json
import re

import pytest
import torch
import yaml
from PIL import Image

from partcraft_lit.callbacks.checkpoint import newest_good
from partcraft_lit.callbacks.metrics_log import read_metrics
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.scheduling.ledger import Ledger


@pytest.mark.parametrize(
    "name",
    [
        ".hydra/config.yaml",
        "environment.json",
        "parts/atlas.png",
        "parts/masks.png",
        "parts/discovery.json",
        "samples/step_000000.png",
        "samples/step_000004.png",
        "attention/step_000000.png",
        "attention/step_000004.png",
        "metrics.jsonl",
        "scores.json",
        "report.html",
        "finished.json",
    ],
)
def test_every_product_is_there(tiny_run, name):
    path = tiny_run / name
    assert path.stat().st_size > 0
    if path.suffix == ".png":
        with Image.open(path) as image:
            assert min(image.convert("RGB").size) > 30


def test_nothing_half_written_is_left(tiny_run):
    assert not [path for path in tiny_run.rglob("*") if "tmp" in path.name]


def test_dictionary(tiny_run):
    dictionary = PartDictionary.load(tiny_run / "parts")
    assert dictionary.num_parts == 2 and len(dictionary.names) == 3
    assert max(dictionary.codes_per_part) <= 3
    lowered = {name: n for name, n in zip(dictionary.names, dictionary.codes_per_part, strict=True) if n < 3}
    lowered.pop("background", None)
    scores = json.loads((tiny_run / "scores.json").read_text(encoding="utf-8"))
    assert {key: value for key, value in scores.items() if key.startswith("codes/")} == {
        f"codes/{name}": n for name, n in lowered.items()
    }


def test_unreadable_files_are_listed_and_the_run_goes_on(tiny_run, pictures):
    with (tiny_run / "rejected.csv").open() as file:
        rows = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert rows.keys() == {"species 0/truncated.png", "species 1/dot.png"}
    assert "truncated" in rows["species 0/truncated.png"] and "1 x 1" in rows["species 1/dot.png"]
    assert "2 files could not be read" in (tiny_run / "report.html").read_text()
    assert (pictures / "species 0" / "truncated.png").exists()


def test_checkpoints_are_small_and_plain(tiny_run):
    names = sorted(path.name for path in (tiny_run / "checkpoints").glob("*.ckpt"))
    assert names == ["last.ckpt", "step=000002.ckpt", "step=000004.ckpt"]
    newest = newest_good(tiny_run / "checkpoints")
    assert newest is not None and newest.name == "step=000004.ckpt"
    content = torch.load(newest, weights_only=True)
    assert all("lora_" in name or name.startswith("method.mapper.") for name in content["state_dict"])
    assert newest.stat().st_size < 1_000_000


def test_metrics_have_every_step_and_add_up(tiny_run):
    curves = read_metrics(tiny_run / "metrics.jsonl")
    weight = yaml.safe_load((tiny_run / ".hydra/config.yaml").read_text())["loss"]["lambda_attn"]
    assert [step for step, _ in curves["train/loss"]] == [0, 1, 2, 3]
    for (_, total), (_, diffusion), (_, attention) in zip(
        curves["train/loss"], curves["train/loss_diffusion"], curves["train/loss_attn"], strict=True
    ):
        assert total == pytest.approx(diffusion + weight * attention, rel=1e-5)


def test_scores_have_ceilings_and_the_untrained_model(tiny_run):
    scores = json.loads((tiny_run / "scores.json").read_text())
    for protocol in ("reconstruction", "1_species", "2_species"):
        for kind in ("eval", "untrained"):
            assert 0 <= scores[f"{kind}/emr@{protocol}"] <= 1
            assert -1 <= scores[f"{kind}/cosim@{protocol}"] <= 1
    for ceiling in ("vae_round_trip", "mirrored", "recropped"):
        assert 0 <= scores[f"ceiling/emr@{ceiling}"] <= 1
    for name in ("likeness", "copied", "nearest"):
        assert scores[f"pictures/{name}@pixels-32@reconstruction"] >= 0
    assert "pictures/likeness@pixels-32@2_species" not in scores
    logged = read_metrics(tiny_run / "metrics.jsonl")
    for name, value in scores.items():
        assert value is None or logged[name] == [(3, value)], name


def test_scored_pictures_are_kept_with_their_recipes(tiny_run):
    found = sorted(str(path.relative_to(tiny_run)) for path in (tiny_run / "evaluation").rglob("*.png"))
    assert [name for name in found if "untrained" not in name] == [
        f"evaluation/{protocol}/0000{number}.png"
        for protocol in ("1_species", "2_species", "reconstruction")
        for number in range(2)
    ]
    with Image.open(tiny_run / "evaluation" / "2_species" / "00000.png") as image:
        assert image.size == (32, 32)
        assert "<" in image.info["prompt"] and image.info["protocol"] == "2 species"


def test_the_report_needs_no_network_and_shows_the_pictures(tiny_run):
    page = (tiny_run / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']https?:""", page)
    assert page.count("data:image/") > 20
    for word in ("Reconstruction", "2 species", "part1", "train/loss", "lambda_attn"):
        assert word in page, word


def test_more_steps_of_a_finished_run(tiny_run, new_workshop, plain):
    """Named as ckpt_path, a finished run is continued from its last step, in its own folder."""
    workshop = new_workshop()
    folder = workshop.copy(tiny_run)
    ended = workshop("train", *plain, f"ckpt_path={folder}", "trainer.max_steps=6")
    assert ended.code == 0, ended.out
    assert "Continuing from" in ended.out and workshop.runs == [folder]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    assert [step for step, _ in read_metrics(folder / "metrics.jsonl")["train/loss"]] == [0, 1, 2, 3, 4, 5]


def test_a_checkpoint_of_other_settings_is_refused(tiny_run, new_workshop, plain):
    newest = tiny_run / "checkpoints" / "step=000004.ckpt"
    workshop = new_workshop()
    ended = workshop("train", *plain, f"ckpt_path={newest}", "trainer.max_steps=6", "lora.rank=2")
    assert ended.code == 2
    assert "The checkpoint does not fit this run" in ended.out and "Traceback" not in ended.out


@pytest.mark.slow
def test_a_sweep_keeps_its_runs_apart(new_workshop, plain):
    workshop = new_workshop()
    ended = workshop("train", *plain, "-m", "loss.lambda_attn=0.1,0.01", "trainer.max_steps=2")
    assert ended.code == 0, ended.out
    (sweep,) = (workshop.root / "logs" / "train" / "multiruns").glob("*-*")
    first, second = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert first.name.startswith("0-") and second.name.startswith("1-")
    weights = [
        yaml.safe_load((run / ".hydra/config.yaml").read_text())["loss"]["lambda_attn"] for run in (first, second)
    ]
    assert weights == [0.1, 0.01]
    losses = [read_metrics(run / "metrics.jsonl") for run in (first, second)]
    assert losses[0]["train/loss_diffusion"][0] == losses[1]["train/loss_diffusion"][0]  # same batch, same start
    assert losses[0]["train/loss"][0] != losses[1]["train/loss"][0]
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (first, second)]
    assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert all((run / "report.html").is_file() for run in (first, second))


@pytest.mark.slow
def test_a_job_of_several_processes_in_a_sweep(new_workshop, plain):
    """Lightning starts the second process with the command line of the job, not with that of the sweep."""
    workshop = new_workshop()
    ended = workshop("train", *plain, "-m", "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=2")
    assert ended.code == 0, ended.out
    (job,) = (workshop.root / "logs" / "train" / "multiruns").glob("*/0-*")
    assert torch.load(job / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert [entry.status for entry in Ledger(job.parent).entries()] == ["running", "done"]


def test_losses_do_not_depend_on_whether_latents_are_stored(new_workshop, plain):
    # Not all images are square: crops of both runs are encoded by themselves, before training and in the step.
    exact = (*plain, "data.crop=center", "data.latents=float32", "trainer.max_steps=3")
    workshop = new_workshop()
    stored, unstored = (
        read_metrics(workshop.train(*exact, f"data.crops={crops}") / "metrics.jsonl") for crops in (1, "encode")
    )
    for name in ("train/loss", "train/loss_diffusion", "train/loss_attn"):
        first, second = ([value for _, value in run[name]] for run in (stored, unstored))
        assert len(first) == 3
        assert first[0] == pytest.approx(second[0], rel=1e-5), name
        # Adam's first steps are as long for a tiny gradient as for a large one, so what was rounded otherwise grows.
        assert first == pytest.approx(second, rel=5e-3), name


def test_callbacks_and_loss_terms_of_any_name(new_workshop, plain):
    """A second sample grid under another key, and a term of the loss that reads no attention."""
    workshop = new_workshop()
    run = workshop.train(
        *plain,
        "trainer.max_steps=2",
        "+callbacks.more._target_=partcraft_lit.callbacks.samples.Samples",
        "+callbacks.more.every_n_steps=1",
        "+callbacks.more.subfolder=more",
        "loss.attention=none",
        "+loss_terms.toy._target_=toy_loss.distance",
        "+loss_terms.toy.weight=0.5",
        "+loss_terms.toy.power=2",
    )
    assert sorted(path.name for path in (run / "more").iterdir()) == [f"step_{step:06d}.png" for step in range(3)]
    curves = read_metrics(run / "metrics.jsonl")
    for (_, total), (_, diffusion), (_, toy) in zip(
        curves["train/loss"], curves["train/loss_diffusion"], curves["train/loss_toy"], strict=True
    ):
        assert toy == pytest.approx(diffusion, rel=1e-5)  # squares, as the diffusion loss has them
        assert total == pytest.approx(diffusion + 0.5 * toy, rel=1e-5)
    assert "train/loss_attn" not in curves


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "callbacks.checkpoints.every_n_steps=0",
            "callbacks.checkpoints.every_n_steps=0: wanted a whole number of at least 1",
        ),
        ("callbacks.checkpoints.every_n_steps=-5", "every_n_steps=-5: wanted a whole number of at least 1"),
        ("callbacks.checkpoints.keep=1", "callbacks.checkpoints.keep=1: wanted a whole number of at least 2"),
        ("callbacks.samples.every_n_steps=0", "callbacks.samples.every_n_steps=0: wanted a whole number of at least 1"),
        ("callbacks.attention_maps.every_n_steps=-1", "callbacks.attention_maps.every_n_steps=-1: wanted"),
        ("callbacks.throughput.every_n_steps=0", "callbacks.throughput.every_n_steps=0: wanted"),
        ("callbacks.progress.line_every_s=-1", "callbacks.progress.line_every_s=-1: wanted"),
        ("trainer.log_every_n_steps=-1", "trainer.log_every_n_steps=-1: wanted a whole number of at least 0"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1: wanted a"),
        ("trainer.max_steps=-1", "trainer.max_steps=-1: wanted a whole number of at least 1"),
        ("trainer.max_steps=0", "trainer.max_steps=0: wanted a whole number of at least 1"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0: wanted a whole number of at least 1"),
        ("optim.total_steps=-1", "optim.total_steps=-1: wanted a whole number of at least 1"),
        ("callbacks.samples.subfolder=attention", "Two callbacks write into attention/"),
        ("+loss_terms.toy._target_=toy_loss.distance", "loss_terms.toy.weight has to be given"),
        ("+loss_terms.attn={_target_:toy_loss.distance,weight:1}", "loss_terms.attn: a term of the run has this name"),
        ("+loss_terms.toy={_target_:toy_loss.distance,weight:-1}", "loss_terms.toy.weight=-1: wanted"),
        ("+loss_terms.toy={_target_:toy_loss.distance,weight:1,pow:2}", "Unknown key 'loss_terms.toy.pow'"),
    ],
)
def test_what_a_callback_or_term_does_not_take_is_refused_before_any_work(new_workshop, override, message):
    workshop = new_workshop()
    ended = workshop("train", override)
    assert ended.code == 2 and message in ended.out and "Traceback" not in ended.out, ended.out
    assert not workshop.runs


def test_a_run_that_a_search_stops_ends_with_its_checkpoint_and_without_scores(new_workshop, tmp_path):
    from optuna import create_study

    from partcraft_lit.search.storage import open_storage

    storage = str(tmp_path / "search.journal")
    study = create_study(storage=open_storage(storage), study_name="search", direction="maximize")
    for _ in range(2):
        trial = study.ask()
        trial.report(2.0, 1)
        study.tell(trial, 2.0)
    study.ask()
    workshop = new_workshop()
    pruning = ("+pruning=optuna", f"callbacks.pruning.storage={storage}", "callbacks.pruning.trial=2")
    pruning += ("callbacks.pruning.pruner=median", "callbacks.pruning.startup_trials=1")
    live = ("callbacks=live", "callbacks.live_score.every_n_steps=1", "callbacks.checkpoints.every_n_steps=4")
    ended = workshop("train", *live, *pruning, "objective=eval/emr@reconstruction", "~callbacks.attention_maps")
    (run,) = workshop.runs
    assert ended.code == 0 and "A search ended the training after step 1" in ended.out, ended.out
    assert json.loads((run / "finished.json").read_text())["pruned_at"] == 1
    assert (run / "checkpoints" / "step=000001.ckpt").is_file() and (run / "report.html").is_file()
    assert study.trials[2].intermediate_values.keys() == {1}
    assert not any(key.startswith("eval/") for key in json.loads((run / "scores.json").read_text()))
