"""``partcraft pretrain``: what it writes can be loaded, and a stopped run is the same run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from partcraft_lit.world.pretrain import loop, recipe
from partcraft_lit.world.pretrain.patch_features import FeatureRecipe
from partcraft_lit.world.zoo.scenes import PretrainingScenes

#: Steps of the denoiser: the loop saves at every second, so that a run can be stopped between that and the end.
SAVED_AT, STOPPED_AT, STEPS = 2, 3, 4
TINY = (
    *(f"{stage}.{key}" for stage in ("autoencoder", "denoiser") for key in ("batch_size=1", "precision=fp32")),
    "autoencoder.steps=2",
    "pool.images=null",
    f"denoiser.steps={STEPS}",
    "denoiser.save_every_s=0",
    "polish.steps=1",
    "polish.batch_size=2",
)


class Stopped(KeyboardInterrupt):
    pass


@pytest.fixture
def few_pictures(monkeypatch):
    """Quality is measured on hundreds of images; four do here. ``stop_at(step)`` interrupts there, once."""
    real = PretrainingScenes.batch
    stops: list[int] = []

    def batch(self, indices):
        if indices.start in stops:
            stops.remove(indices.start)
            raise Stopped
        return real(self, indices[:4])

    monkeypatch.setattr(PretrainingScenes, "batch", batch)
    monkeypatch.setattr(loop, "REPORT_EVERY", SAVED_AT)
    draw_sheet = recipe.sample_sheet
    monkeypatch.setattr(recipe, "SHEET_CAPTIONS", ("a photo of a bird",))
    monkeypatch.setattr(recipe, "sample_sheet", lambda pipeline, *_: draw_sheet(pipeline, 1, 2))
    return stops.append


def pretrain(workshop, *overrides: str):
    return workshop("pretrain", *overrides)


def runs(workshop) -> list[Path]:
    return sorted((workshop.root / "logs" / "pretrain" / "runs").iterdir())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(folder)} {name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def test_the_model_loads_and_a_stopped_run_is_the_same_run(new_workshop, few_pictures, tmp_path):
    from diffusers import StableDiffusionPipeline

    from partcraft_lit.backbones.stable_diffusion import load_mini

    whole = new_workshop()
    ended = pretrain(whole, *TINY)
    assert ended.code == 0, ended.out
    (folder,) = runs(whole)
    assert (folder / "finished.json").exists() and (folder / "checkpoints" / "samples.png").exists()

    stopped = new_workshop()
    few_pictures(STOPPED_AT)
    output = tmp_path / "own" / "mini"
    ended = pretrain(stopped, *TINY, f"output_dir={output}")
    assert ended.code == 130 and "stopped by SIGINT" in ended.out and "denoiser.pt" in ended.out
    ended = pretrain(stopped, *TINY, f"output_dir={output}")
    assert ended.code == 0 and "Continuing the unfinished run" in ended.out, ended.out
    assert f"goes on at step {SAVED_AT}" in ended.out and "autoencoder taken from" in ended.out
    assert len(runs(stopped)) == 1
    expected, found = weights(folder / "weights"), weights(output)
    assert len(expected) > 100 and expected.keys() == found.keys()
    assert not [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
    assert [path.name for path in output.parent.iterdir()] == ["mini"]

    pipeline = StableDiffusionPipeline.from_pretrained(output)
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.float32
    assert pipeline.scheduler.config.steps_offset == 1  # else diffusers warns that the model is outdated
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a photo of a bird", num_inference_steps=1, height=64, width=64).images[0]
    assert image.size == (64, 64)
    backbone = load_mini(output)
    assert backbone.resolution == 64 and backbone.attention_size == 16


def test_features(new_workshop, few_pictures, monkeypatch):
    from partcraft_lit.world.mini_features import MiniFeatures
    from partcraft_lit.world.pretrain import patch_features

    monkeypatch.setattr(patch_features, "FeatureRecipe", lambda: FeatureRecipe(pool=4, points=16, prototypes=(8,)))
    workshop = new_workshop()
    ended = pretrain(workshop, "stage=features", "features.steps=1", "features.batch_size=2")
    assert ended.code == 0, ended.out
    described = MiniFeatures(runs(workshop)[0] / "weights")([torch.zeros(3, 64, 64, dtype=torch.uint8)])[0]
    assert described.isfinite().all() and described.ndim == 3


def test_oracle(new_workshop):
    from partcraft_lit.world.oracle import load_network

    workshop = new_workshop()
    stages = [f"{stage}.{key}" for stage in ("oracle", "oracle_missing") for key in ("steps=1", "batch_size=2")]
    ended = pretrain(workshop, "stage=oracle", *stages)
    assert ended.code == 0, ended.out
    assert load_network(runs(workshop)[0] / "weights" / "oracle.safetensors") is not None


def test_no_other_folder_is_replaced(new_workshop, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    ended = pretrain(new_workshop(), f"output_dir={tmp_path}")
    assert ended.code == 2 and "would be replaced, but it is not a folder with weights of stage=model" in ended.out
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    "override, message",
    [
        ("stage=modle", "stage='modle': wanted one of model, dit, features, oracle"),
        ("denoiser.steps=0", "denoiser.steps=0: wanted a whole number of at least 1"),
        ("denoiser.precision=fp16", "denoiser.precision='fp16': wanted one of fp32, bf16"),
    ],
)
def test_mistakes(new_workshop, override, message):
    ended = pretrain(new_workshop(), override)
    assert ended.code == 2 and message in ended.out


@pytest.mark.parametrize(
    "given, message",
    [
        (("pool.images=90000000000000",), "the drawn images take 1530000000.0 GB, and .* GB free"),
        (("pool.folder={file}",), "file.txt is a file; name a folder"),
        (("pool.images=0",), "pool.images"),
    ],
)
def test_room_for_drawn_images_is_checked_first(new_workshop, tmp_path, given, message):
    (tmp_path / "file.txt").touch()
    ended = pretrain(new_workshop(), *(text.format(file=tmp_path / "file.txt") for text in given))
    assert ended.code == 2 and re.search(message, ended.out), ended.out
    assert "images/s" not in ended.out
