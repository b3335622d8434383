"""A run on PRX through the command line: trained, stopped and resumed, drawn from, scored; and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

import tiny_prx

pytest.importorskip("ftfy")
STEPS = 4


@pytest.fixture(scope="module")
def overrides(tmp_path_factory) -> tuple[str, ...]:
    folder = tiny_prx.save(tmp_path_factory.mktemp("prx"))
    return (
        "backbone=prx",
        f"backbone.source={folder}",
        "backbone.resolution=32",
        "backbone.dtype=float32",
        "backbone.max_length=64",
        "sample.steps=2",
        "method.tokens.fill=bird",
    )


@pytest.fixture(scope="module")
def new_place(new_workshop):
    """Empty places for runs whose backbone is not chosen yet."""

    def made():
        workshop = new_workshop()
        workshop.arguments = tuple(text for text in workshop.arguments if not text.startswith("backbone"))
        return workshop

    return made


@pytest.fixture(scope="module", params=["before", pytest.param("after", marks=pytest.mark.slow)])
def inject(request) -> str:
    return f"method.tokens.inject={request.param}"


@pytest.fixture(scope="module")
def whole(new_place, overrides, plain, inject) -> Path:
    """A run that nobody disturbed."""
    return new_place().train(*plain, *overrides, inject)


def trained(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "checkpoints" / f"step={STEPS:06d}.ckpt", weights_only=True)
    tensors = dict(content["state_dict"])
    for number, state in content["optimizer_states"][0]["state"].items():
        tensors |= {f"optimizer {number} {name}": value for name, value in state.items()}
    return tensors


def test_a_checkpoint_holds_what_trains(whole):
    names = [name for name in trained(whole) if not name.startswith("optimizer")]
    assert {name.partition(".")[0] for name in names} == {"backbone", "method"}
    adapter = [name for name in names if name.startswith("backbone")]
    assert len(adapter) == 8 and all("transformer.blocks" in n and "txt_kv_proj.lora_" in n for n in adapter)
    assert any("mapper.codes" in name for name in names)


def test_a_resumed_run_is_the_same_to_the_bit(whole, new_place, overrides, plain, inject):
    workshop = new_place()
    folder = workshop.copy(whole, finished=False)
    for name in (f"step={STEPS:06d}.ckpt", "last.ckpt"):
        (folder / "checkpoints" / name).unlink()
    ended = workshop("train", *plain, *overrides, inject)
    assert ended.code == 0, ended.out
    assert f"step={STEPS // 2:06d}.ckpt" in ended.out
    expected, found = trained(whole), trained(folder)
    assert expected.keys() == found.keys()
    assert not [name for name, value in expected.items() if not torch.equal(value, found[name])]


def test_it_draws_and_is_scored(whole, new_place):
    workshop = new_place()
    drawn = workshop("generate", f"run={whole}", "prompt=a photo of a <1:0> bird", "num_images=2")
    assert drawn.code == 0, drawn.out
    assert "flow_euler, 2 steps and guidance 5, as in the run: name sample.scheduler" in drawn.out
    scored = workshop("evaluate", f"run={whole}")
    assert scored.code == 0, scored.out


def test_layers_are_ranked_by_both_targets(whole, new_place):
    workshop = new_place()
    ended = workshop("evaluate", f"run={whole}", "layers=true", "layer_images=3")
    assert ended.code == 0, ended.out
    with (whole / "evaluation" / "attention_layers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    targets = {row["target"] for row in rows}
    assert targets == {"probabilities", "outputs"} and len(rows) == 2 * len({row["layer"] for row in rows})
    scores = [float(row["auc"]) for row in rows]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    read = [row for row in rows if row["read"] == "True"]
    assert read and {row["target"] for row in read} == {"probabilities"}
    both = workshop("evaluate", f"run={whole}", "layers=true", "verify=true")
    assert both.code == 2 and "give one of them" in both.out


def test_tools_that_load_embeddings_are_refused(whole, new_place, inject):
    refused = new_place()("export", f"run={whole}")
    assert refused.code == 2 and "Traceback" not in refused.out
    reason = "behind the text encoder" if inject.endswith("after") else "a text encoder that is not CLIP"
    assert "a1111 and comfyui cannot draw with this run" in refused.out and reason in refused.out
    assert "to=[diffusers] writes the vectors" in refused.out


def test_an_export_for_diffusers_gives_back_what_was_trained(whole, new_place, tmp_path):
    output = tmp_path / "export"
    ended = new_place()("export", f"run={whole}", "to=[diffusers]", f"output_dir={output}", "check.steps=2")
    assert ended.code == 0, ended.out
    manifest = json.loads((output / "export.json").read_text(encoding="utf-8"))
    assert manifest["checks"]["text"] < 1e-5 and manifest["checks"]["image"] < 0.5
    assert {Path(name).name for name in manifest["files"]} == {
        "lora.safetensors",
        "parts.safetensors",
        "parts.json",
        "partcraft_parts.py",
        "README.md",
    }
    assert all((output / name).is_file() for name in manifest["files"])


def test_what_does_not_go_together_is_refused_before_anything_is_loaded(new_place, overrides):
    workshop = new_place()
    ended = workshop("train", *overrides, "sample.scheduler=dpm++")
    assert ended.code == 2 and "this backbone was trained by flow matching" in ended.out
    ended = workshop("train", *overrides, "loss.snr_gamma=5")
    assert ended.code == 2 and "loss.snr_gamma=5" in ended.out
    assert not workshop.runs or not any((run / "checkpoints").exists() for run in workshop.runs)


def test_the_attention_loss_is_logged(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(line["train/loss_attn"] > 0 for line in lines if "train/loss_attn" in line)
    assert any("train/loss_attn" in line for line in lines)
