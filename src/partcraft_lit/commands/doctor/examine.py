"""``partcraft doctor``: what is missing for a run, and what the run would cost, before it starts."""

from __future__ import annotations

import importlib.util
import netrc
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from partcraft_lit.commands.doctor.forecast import Forecast, forecast, probe_module
from partcraft_lit.commands.doctor.settings import DoctorSettings
from partcraft_lit.commands.train.memory import offloaded
from partcraft_lit.commands.train.settings import TrainSettings
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.settings import PathSettings
from partcraft_lit.core.types import Backbone, ImageSource, PatchFeatures

T = TypeVar("T")
#: Extra packages, and what needs them.
_EXTRAS = {"faiss": "part discovery", "wandb": "logger=wandb", "gradio": "partcraft app"}
#: Beside the latents: checkpoints, samples and the report of a run, in bytes.
_RUN_SPACE = 500e6


class _Findings:
    """Says each finding as it comes; counts those that would stop a run."""

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
        """The result, or None after saying what is missing."""
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
    make_attention_loss: Callable[..., Any] | None,
    trainer: Mapping[str, Any],
    wants_wandb: bool,
) -> dict[str, Any]:
    """Looks for what is missing, then measures steps and says what the run would cost.

    Args:
        settings: of the run.
        doctor: what is asked for.
        make_source, load_backbone, load_features, make_attention_loss: as the run gets them.
        trainer: the trainer's settings.
        wants_wandb: the run logs to W&B.

    Returns:
        What was said, as plain values.

    Raises:
        UserError: at the end, if something is missing without which the run could not start.
    """
    stages = Stages()
    findings = _Findings(stages)
    _look_at_machine(findings)
    _look_at_extras(findings, wants_wandb)
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
        _look_at_disk(findings, settings.paths, _latent_bytes(len(source), backbone))
    result: dict[str, Any] = {"missing": findings.missing}
    if doctor.measure and source is not None and features is not None and backbone is not None:
        module = probe_module(settings, backbone, source.class_noun, make_attention_loss)
        with offloaded(features, settings.hardware, settings.paths.store.expanduser()):
            found = forecast(settings, doctor, module, source, features, trainer)
        _say_forecast(stages, found)
        result |= found.as_dict()
    if findings.missing:
        raise UserError(f"{len(findings.missing)} thing(s) are missing; see above.")
    return result


def _look_at_machine(findings: _Findings) -> None:
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        findings.good(f"GPU: {torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 1e9:.0f} GB")
    else:
        findings.note(f"no CUDA device is seen; {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads")


def _look_at_extras(findings: _Findings, wants_wandb: bool) -> None:
    for package, user in _EXTRAS.items():
        if importlib.util.find_spec(package) is None:
            say = findings.lack if package == "faiss" or (package == "wandb" and wants_wandb) else findings.note
            say(f"the package {package} is not installed; {user} needs it")
    if wants_wandb and not _has_wandb_key():
        findings.note("no W&B key is set: the run logs offline. `wandb login`, or WANDB_API_KEY, or logger=csv")


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _latent_bytes(images: int, backbone: Backbone) -> float:
    side = backbone.resolution // backbone.vae_scale_factor
    return images * 4 * backbone.latent_channels * side**2 * 2  # mean and deviation, also mirrored, in two bytes


def _look_at_disk(findings: _Findings, paths: PathSettings, latents: float) -> None:
    for name, folder, needed in (("store", paths.store, latents), ("logs", paths.logs, _RUN_SPACE)):
        free = shutil.disk_usage(_existing(Path(folder).expanduser())).free
        told = f"disk for paths.{name}: {free / 1e9:.1f} GB free, about {needed / 1e9:.2f} GB wanted"
        (findings.good if free > needed else findings.lack)(told)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _say_forecast(stages: Stages, found: Forecast) -> None:
    stages.log(
        f"One step of {found.batch_size} image(s): {found.seconds_per_step:.3f} s, {found.images_per_s:.2f} images/s, "
        f"peak memory {found.peak_bytes / 1e9:.2f} GB of {found.memory_bytes / 1e9:.1f} GB"
        + ("." if found.measured else " (from a step of one image).")
    )
    parts = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in found.seconds.items())
    whole = _duration(sum(found.seconds.values()))
    stages.log(f"The whole run: about {whole} on one device ({parts}), and the clustering of parts.")
    if found.runs > 1:
        stages.log(f"{found.runs} such runs, one after another: about {_duration(found.total_seconds)}.")
    if found.fits:
        return
    if not found.advice:
        stages.log(f"It does not fit. {_NOTHING_FITS}")
        return
    stages.log(f"It does not fit. This does: {found.advice}   # {found.advice_bytes / 1e9:.2f} GB")


#: Where even one image is too much.
_NOTHING_FITS = (
    "Not even one image at a time does, with activations computed again; lower backbone.resolution, use "
    "backbone.dtype=bfloat16, or a larger device."
)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
