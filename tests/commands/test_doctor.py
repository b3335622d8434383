"""The doctor names what is missing, and what it advises fits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from partcraft_lit import loggers
from partcraft_lit.backbones.settings import HardwareSettings
from partcraft_lit.commands import train
from partcraft_lit.commands.doctor import examine
from partcraft_lit.commands.doctor.forecast import (
    Forecast,
    _advice,
    encoded_images,
    sampled_for_scores,
    stored_bytes,
)
from partcraft_lit.config import compose as config
from partcraft_lit.runs import step_probe
from partcraft_lit.runs.step_probe import Measured, examples_at_once

FITS = HardwareSettings(gradient_checkpointing=False, max_batch_size=None, offload=(), compile=False)


def settings_for(*overrides: str) -> train.TrainSettings:
    return train.check(config.plain(config.compose("train", overrides)))


@pytest.mark.parametrize(("memory", "expected"), [(20.0, 14), (10.0, 5), (6.0, 1), (5.5, 0), (1.0, 0)])
def test_as_many_images_at_once_as_nine_tenths_of_the_memory_hold(memory, expected):
    assert examples_at_once(base=4.0, one=5.0, memory=memory) == expected


def test_a_batch_that_this_machine_cannot_hold_is_refused_before_any_work(new_workshop, plain, monkeypatch):
    workshop, memory = new_workshop(), 3e9
    monkeypatch.setattr(step_probe, "free_memory", lambda device: memory)
    measured = iter([Measured(1e9, 1.01e9, 1.0)])
    monkeypatch.setattr(step_probe.StepProbe, "measure", lambda self, examples: next(measured))
    ended = workshop("train", *plain, "data.batch_size=512")
    assert ended.code == 2 and "discover parts" not in ended.out, ended.out
    assert "by a step of one example, 512 images at once take 6 GB, and 3 are free here" in ended.out
    assert "hardware.max_batch_size=170 takes the batch in passes" in ended.out  # 0.9 * 3 GB - 1 GB, by 10 MB


def test_ordinary_batches_are_not_measured(monkeypatch):
    def load():
        raise AssertionError

    settings = settings_for("dataset=folder", "dataset.dir=.", "backbone=mini", "data.batch_size=255")
    step_probe.check_batch_fits(settings, load, "bird", "32-true")
    settings = settings_for("dataset=folder", "dataset.dir=.", "backbone=mini", "data.batch_size=128", "prior.weight=1")
    with pytest.raises(AssertionError):
        step_probe.check_batch_fits(settings, load, "bird", "32-true")  # with as many prior images


@pytest.fixture
def doctor(workshop, monkeypatch):
    """The command, whose look at faiss in a process of its own has a test of its own."""
    monkeypatch.setattr(examine, "_FAISS_AFTER_TORCH", "")
    return lambda *more: workshop("doctor", *[a for a in workshop.arguments if a != "trainer=cpu"], *more)


def test_it_says_what_a_run_would_cost(doctor):
    ended = doctor()
    assert ended.code == 0, ended.out
    for words in ("data set: 9 images", "patch features: color", "backbone: sd15 at 32 px", "disk for paths.store"):
        assert words in ended.out
    assert "One step of 2 image(s):" in ended.out and "The whole run: about" in ended.out
    assert "does not fit" not in ended.out


def test_a_sweep_computes_what_is_stored_once():
    forecast = Forecast(
        batch_size=1, images_at_once=1, seconds_per_step=1.0, images_per_s=1.0, peak_bytes=1.0, memory_bytes=2.0,
        measured=True, fits=True, advice="", advice_bytes=0.0, runs=4,
        seconds={"patch features": 5.0, "latents": 7.0, "training": 100.0, "scores": 3.0},
    )  # fmt: skip
    assert forecast.total_seconds == 5 + 7 + 4 * 103


class FakeProbe:
    """Steps whose first example costs 1 and every further one 2, of which the arithmetic knows nothing."""

    def __init__(self) -> None:
        self.tried: list[int] = []

    def measure(self, examples: int) -> Measured:
        self.tried.append(examples)
        return Measured(4.0, {1: 5.0, 2: 7.0, 4: 11.0, 8: 19.0}[examples], 1.0)


@pytest.mark.parametrize(("prior", "images"), [(0.0, 1), (1.0, 2)])
def test_what_is_advised_was_measured_and_fits(prior, images):
    settings = SimpleNamespace(data=SimpleNamespace(batch_size=8), prior=SimpleNamespace(weight=prior), hardware=FITS)
    probe = FakeProbe()
    # 5 by arithmetic, so 4, which is 11
    advice = _advice(settings, probe, (4.0, 5.0), memory=10.0, here=100.0)
    assert advice == (f"hardware.max_batch_size={2 * images}", 7.0)
    assert probe.tried == [4, 2]
    probe.tried.clear()
    advice = _advice(settings, probe, (4.0, 5.0), memory=10.0, here=6.0)
    assert advice == (f"hardware.max_batch_size={4 * images}", 8.0), "what cannot be tried here is estimated"
    assert probe.tried == []


def test_prior_images_are_part_of_a_step(doctor):
    ended = doctor("prior.weight=1", "prior.images=2", "prior.steps=2", "prior.prompt='a photo of a bird'")
    assert ended.code == 0, ended.out
    assert "One step of 2 image(s) and as many prior images:" in ended.out
    assert "prior images" in ended.out.split("The whole run")[1]


def test_images_to_sample_are_those_of_every_protocol():
    species = "eval.species=[1,2,3,4]"
    settings = settings_for("eval.untrained=24", "eval.reconstructions=0", "eval.compositions=100", species)
    assert sampled_for_scores(settings, 600) == 4 * 100 + 4 * 24
    settings = settings_for("eval.untrained=24", "eval.reconstructions=24", "eval.compositions=24", species)
    assert sampled_for_scores(settings, 600) == 2 * 120
    assert sampled_for_scores(settings, 2) == 2 * (2 + 2 * 24)  # two images give no hybrid of three
    assert sampled_for_scores(settings_for("eval.enabled=false"), 600) == 0


@pytest.mark.parametrize(
    ("overrides", "encoded", "size"),
    [
        ([], 10, 2 * (8 * 2 + 2 * 3)),  # two of the ten images are 3 : 1
        (["data.latents=float32"], 10, 4 * (8 * 2 + 2 * 3)),
        (["data.crops=4"], 40, 2 * 40),
        (["data.crops=4", "data.crop=center"], 10, 2 * 10),
        (["data.crops=encode"], 0, 0),
        (["data.scale_variants=4"], 50, 2 * (8 * 2 + 2 * 3 + 40)),
        (["prior.weight=1", "prior.images=5"], 15, 2 * (8 * 2 + 2 * 3 + 5)),
    ],
)
def test_disk_space_follows_what_is_encoded(overrides, encoded, size):
    shapes = [(16, 48), *[(16, 32)] * 3, (48, 16), *[(32, 16)] * 5]  # each fifth is looked at, as of all

    class Images:
        def __len__(self) -> int:
            return 10

        def image(self, index: int) -> torch.Tensor:
            return torch.zeros(3, *shapes[index], dtype=torch.uint8)

    settings = settings_for(*overrides)
    assert encoded_images(settings, 10) == encoded
    backbone = SimpleNamespace(resolution=16, vae_scale_factor=8, latent_channels=4)
    pixels = 5 * 3 * 16 * 16 if "prior.weight=1" in overrides else 0
    assert stored_bytes(settings, Images(), backbone) == pytest.approx(4 * 4 * 2 * 2 * size + pixels, rel=0.1)


def test_prior_images_of_a_folder_are_counted(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").touch()
    settings = settings_for("prior.weight=1", f"prior.dir={tmp_path}")
    assert encoded_images(settings, 10) == 13
    assert encoded_images(settings_for(f"prior.dir={tmp_path}"), 10) == 10


@pytest.mark.parametrize(
    ("mode", "key", "words"),
    [
        (None, False, ""),
        ("offline", False, ""),
        ("auto", True, ""),
        ("auto", False, "note     no W&B key is set: the run logs offline"),
        ("online", False, "MISSING  logger.wandb.mode=online needs a W&B key"),
    ],
)
def test_the_note_on_wandb_agrees_with_the_logger(monkeypatch, tmp_path, mode, key, words):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret" if key else "", encoding="utf-8")
    assert loggers.has_wandb_key() == key
    logged: list[str] = []
    examine._check_wandb(examine.Findings(SimpleNamespace(log=logged.append)), mode)
    assert words in "".join(logged) and bool(logged) == bool(words)


def test_faiss_is_tried_after_torch_in_a_process_of_its_own(monkeypatch):
    logged: list[str] = []
    findings = examine.Findings(SimpleNamespace(log=logged.append))
    examine._check_faiss(findings)
    assert logged == ["  ok       faiss runs beside torch"]
    monkeypatch.setattr(examine, "_FAISS_AFTER_TORCH", "import os; os.abort()")
    examine._check_faiss(findings)
    assert "faiss fails after torch was loaded (exit code -6" in findings.missing[0]


def test_a_device_that_is_too_small_is_told_so(doctor):
    ended = doctor("doctor.memory_gb=0.01")
    assert ended.code == 0, ended.out
    assert "It does not fit. Not even one image" in ended.out


def test_what_is_missing_is_all_named_at_once(doctor, tmp_path):
    ended = doctor(f"backbone.source={tmp_path}", f"dataset.dir={tmp_path / 'nowhere'}")
    assert ended.code == 2
    assert "MISSING  data set" in ended.out and "MISSING  backbone" in ended.out
    assert "2 thing(s) are missing" in ended.out
