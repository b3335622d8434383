"""``partcraft doctor``: checks the requirements of a run and forecasts its cost."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from partcraft_lit.callbacks.loss_terms import AttentionLoss
from partcraft_lit.commands.doctor.forecast import Forecast, forecast, stored_bytes
from partcraft_lit.commands.doctor.settings import DoctorSettings
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.settings import PathSettings
from partcraft_lit.core.types import Backbone, ImageSource, PatchFeatures
from partcraft_lit.loggers import has_wandb_key
from partcraft_lit.runs.memory import offloaded
from partcraft_lit.runs.settings import TrainSettings
from partcraft_lit.runs.step_probe import StepProbe

T = TypeVar("T")
_FAISS_AFTER_TORCH = """
import torch
torch.zeros(8, 8) @ torch.zeros(8, 8)
import faiss
faiss.Kmeans(4, 2, niter=1, min_points_per_centroid=1).train(torch.randn(64, 4).numpy())
"""
#: Beside the latents: checkpoints, samples and the report of a run, in bytes.
_RUN_SPACE = 500e6


class Findings:
    """Logs findings and collects those that would prevent a run."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self.missing: list[str] = []

    def good(self, message: str) -> None:
        self._stages.log(f"  ok       {message}")

    def note(self, message: str) -> None:
        self._stages.log(f"  note     {message}")

    def lack(self, message: str) -> None:
        self.missing.append(message)
        self._stages.log(f"  MISSING  {message}")

    def attempt(self, what: str, work: Callable[[], T]) -> T | None:
        """The result of ``work``, or None after logging its error."""
        try:
            return work()
        except (UserError, ImportError) as error:
            self.lack(f"{what}: {error}")
            return None


def examine(
    settings: TrainSettings,
    doctor: DoctorSettings,
    *,
    make_source: Callable[[], ImageSource],
    load_backbone: Callable[[], Backbone],
    load_features: Callable[[], PatchFeatures],
    attention_loss: AttentionLoss | None,
    trainer: Mapping[str, Any],
    wandb_mode: str | None,
) -> dict[str, Any]:
    """Checks that the run could start, then measures steps and forecasts its cost.

    Args:
        settings: of the run.
        doctor: settings of the forecast.
        make_source, load_backbone, load_features, attention_loss: as the run gets them.
        trainer: the trainer's settings.
        wandb_mode: of the W&B logger; None where the run has none.

    Returns:
        Missing things and the forecast, as plain values.

    Raises:
        UserError: at the end, if something is missing without which the run could not start.
    """
    stages = Stages()
    findings = Findings(stages)
    _check_machine(findings)
    _check_faiss(findings)
    _check_wandb(findings, wandb_mode)
    source = findings.attempt("data set", make_source)
    if source is not None:
        findings.good(f"data set: {len(source):,} images")
    features = findings.attempt("patch features", load_features)
    if features is not None:
        findings.good(f"patch features: {features.id}")
    backbone = findings.attempt("backbone", load_backbone)
    if backbone is not None:
        findings.good(f"backbone: {backbone.name} at {backbone.resolution} px, weights {backbone.hash[:12]}")
    if source is not None and backbone is not None:
        _check_disk(findings, settings.paths, stored_bytes(settings, source, backbone))
    result: dict[str, Any] = {"missing": findings.missing}
    if doctor.measure and source is not None and features is not None and backbone is not None:
        probe = StepProbe.of(settings, backbone, source.class_noun, attention_loss, str(trainer["precision"]))
        with offloaded(features, settings.hardware, settings.paths.store.expanduser()):
            cost = forecast(settings, doctor, probe, source, features, trainer)
        _log_forecast(stages, cost)
        result |= cost.as_dict()
    if findings.missing:
        raise UserError(f"{len(findings.missing)} thing(s) are missing; see above.")
    return result


def _check_machine(findings: Findings) -> None:
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        findings.good(f"GPU: {torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 1e9:.0f} GB")
    else:
        findings.note(f"no CUDA device was found; CPU cores: {os.cpu_count()}, threads: {torch.get_num_threads()}")


def _check_faiss(findings: Findings) -> None:
    """Runs a k-means after torch in a child process: two OpenMP runtimes in one process abort it on some machines."""
    if importlib.util.find_spec("faiss") is None:
        findings.lack("the package faiss is not installed; part discovery needs it")
        return
    ended = subprocess.run(
        [sys.executable, "-c", _FAISS_AFTER_TORCH], capture_output=True, encoding="utf-8", check=False
    )
    if ended.returncode == 0:
        findings.good("faiss runs beside torch")
        return
    reason = ended.stderr.strip().splitlines()[-1:] or ["no message"]
    findings.lack(
        f"faiss fails after torch was loaded (exit code {ended.returncode}: {reason[0]}). On macOS install both from "
        "one source (conda-forge, or pip for both), or set KMP_DUPLICATE_LIB_OK=TRUE."
    )


def _check_wandb(findings: Findings, mode: str | None) -> None:
    """``mode`` is that of the logger; None for runs that do not log to W&B."""
    if mode is None:
        return
    if importlib.util.find_spec("wandb") is None:
        findings.lack("the package wandb is not installed; logger=wandb needs it")
    elif mode == "online" and not has_wandb_key():
        findings.lack(
            "logger.wandb.mode=online needs a W&B key: `wandb login`, WANDB_API_KEY, or logger.wandb.mode=auto"
        )
    elif mode == "auto" and not has_wandb_key():
        findings.note("no W&B key is set: the run logs offline. `wandb login`, or WANDB_API_KEY, or logger=csv")


def _check_disk(findings: Findings, paths: PathSettings, stored: float) -> None:
    for name, folder, needed in (("store", paths.store, stored), ("logs", paths.logs, _RUN_SPACE)):
        free = shutil.disk_usage(_existing(Path(folder).expanduser())).free
        message = f"disk for paths.{name}: {free / 1e9:.1f} GB free, about {needed / 1e9:.2f} GB needed"
        (findings.good if free > needed else findings.lack)(message)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _log_forecast(stages: Stages, cost: Forecast) -> None:
    prior = "" if cost.images_at_once == cost.batch_size else " and as many prior images"
    stages.log(
        f"One step of {cost.batch_size} image(s){prior}: {cost.seconds_per_step:.3f} s, "
        f"{cost.images_per_s:.2f} images/s, peak memory {cost.peak_bytes / 1e9:.2f} GB of "
        f"{cost.memory_bytes / 1e9:.1f} GB" + ("." if cost.measured else " (estimated from a step of one).")
    )
    parts = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in cost.seconds.items())
    whole = _duration(sum(cost.seconds.values()))
    stages.log(f"The whole run: about {whole} on one device ({parts}), and the clustering of parts.")
    if cost.runs > 1:
        stages.log(f"{cost.runs} such runs, one after another: about {_duration(cost.total_seconds)}.")
    if cost.fits:
        return
    if not cost.advice:
        stages.log(f"It does not fit. {_NOTHING_FITS}")
        return
    stages.log(f"It does not fit. This does: {cost.advice}   # {cost.advice_bytes / 1e9:.2f} GB")


#: Where even one image is too much.
_NOTHING_FITS = (
    "Not even one image at a time does, with activations computed again; lower backbone.resolution, use "
    "backbone.dtype=bfloat16, or a larger device."
)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
