"""``partcraft pretrain``: the embedded networks from scratch."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.commands.pretrain.settings import PretrainSettings
from partcraft_lit.commands.train import runs
from partcraft_lit.config import factories
from partcraft_lit.core import environment, rundir
from partcraft_lit.core.errors import UserError

#: On disk: pixels, labels and what is known of them.
_BYTES_PER_IMAGE = 17_000
#: File that marks a folder of weights of each stage; no other folder is replaced.
_MARKS = {
    "model": "model_index.json",
    "dit": "model_index.json",
    "features": "features.json",
    "oracle": "oracle.safetensors",
}


def check(values: Mapping[str, Any]) -> PretrainSettings:
    settings = factories.settings_of(PretrainSettings, values)
    runs.check_ckpt_path(values)
    given = values["ckpt_path"]
    if given not in (None, "auto") and Path(given).is_file():
        raise UserError(f"ckpt_path={given}: wanted auto, null or a run folder; its checkpoints are found there.")
    _check_output(settings)
    if settings.stage in ("model", "dit"):
        _check_pool(settings)
    return settings


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    return runs.choose_run_folder("pretrain", values)


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)
    environment.write(folder)

    lengths = {
        "autoencoder": settings.autoencoder,
        "denoiser": settings.denoiser,
        "polish": settings.polish,
        "dit": settings.dit,
        "features": settings.features,
        "oracle": settings.oracle,
        "oracle_missing": settings.oracle_missing,
    }
    pretrain = factories.pretrainer(lengths, settings.pool, factories.device(values))
    result = pretrain(
        settings.stage,
        settings.seed,
        folder=folder,
        output_dir=settings.output_dir,
        grounding_weight=settings.grounding_weight,
    )
    rundir.mark_finished(folder)
    return result


def _check_pool(settings: PretrainSettings) -> None:
    """Raises a UserError if the drawn images have no room: they come after the autoencoder, minutes later."""
    images, folder = settings.pool.images, settings.pool.folder or settings.paths.logs
    if images is None:
        return
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"pool.folder={folder}: {there} is a file; name a folder for the drawn images.")
    needed, free = images * _BYTES_PER_IMAGE, shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"pool.images={images}: the drawn images take {needed / 1e9:.1f} GB, and {there} has {free / 1e9:.1f} GB "
            "free. Name another place with pool.folder, or take fewer images; pool.images=null draws each step's own."
        )


def _check_output(settings: PretrainSettings) -> None:
    """Raises a UserError for a folder that holds anything but such weights: it would be lost."""
    output, mark = settings.output_dir, _MARKS[settings.stage]
    if output is None or not output.exists():
        return
    if not output.is_dir() or (any(output.iterdir()) and not (output / mark).is_file()):
        raise UserError(
            f"output_dir={output} would be replaced, but it is not a folder with weights of stage={settings.stage} "
            f"(it has no {mark}). Give another path, or an empty folder."
        )
