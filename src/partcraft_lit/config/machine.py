"""What this machine has: GPU memory, bfloat16, a way to the model hub; and what follows for settings left open.

Answers are given once per process and pass to further processes of a run in environment variables: by then the first
process has filled the memory.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from partcraft_lit.core.errors import UserError

#: Hardware preset and the free gigabytes from which on it is chosen, largest first; the last for anything less.
PRESETS = (("24gb", 20.0), ("16gb", 13.5), ("12gb", 9.5), ("8gb", 0.0))
#: Features of photographs, and those that need no hub.
DINOV2, WITHOUT_HUB = "dinov2_base", "efficientnet_lite0"
#: Hub ids, and one file without which the model cannot be loaded.
_DINOV2_ID, _CONFIG = "facebook/dinov2-base", "config.json"
_PIPELINE = "model_index.json"
#: How long the hub has for an answer.
_PATIENCE_S = 3.0
_ANSWERS = "PARTCRAFT_{}"
#: What was chosen in this process, for the user.
_notes: list[str] = []


def take_notes() -> list[str]:
    """Sentences on what was chosen since the last call."""
    taken = list(_notes)
    _notes.clear()
    return taken


def recipe_for(dataset: str) -> str:
    """Of the group ``recipe``."""
    return "drawn" if is_drawn(dataset) else "photographs"


def backbone_for(dataset: str) -> str:
    """The backbone that a data set is trained with unless another is chosen."""
    return "mini" if is_drawn(dataset) else "sd15"


def miniature_for(backbone: str, dataset: str, method: str) -> str:
    """Of the group ``recipe/miniature``; ``backbone`` is "" where it is that of the data set.

    The demo's mapper, adapter, rates and loss are PartCraft's, the paper's and beyond; other methods have their own.
    """
    if not (backbone or backbone_for(dataset)).startswith("mini"):
        return "none"
    recipe = "demo" if method in ("partcraft", "partcraft_features", "partcraft_balanced") else "any_method"
    return f"{recipe}_dit" if backbone == "mini_dit" else recipe


def hardware_for(dataset: str) -> str:
    """The hardware preset that a data set begins with: photographs take that of this machine."""
    return "none" if is_drawn(dataset) else hardware_here()


def hardware_here() -> str:
    """The hardware preset for the free GPU memory; "none" without a GPU."""

    def ask() -> tuple[str, str]:
        free = free_gpu_gigabytes() if _may_have_gpu() else None
        preset = hardware_preset(free)
        seen = "no GPU" if free is None else f"{free:.1f} GB of GPU memory are free"
        return preset, f"hardware=auto: {seen}, so hardware={preset}"

    return _answer("HARDWARE", ask)


def features_for(dataset: str) -> str:
    """Patch features for a data set: those of the drawn world, DINOv2, or where it cannot be had, EfficientNet."""
    if is_drawn(dataset):
        return "mini"

    def ask() -> tuple[str, str]:
        if hub_has(_DINOV2_ID, _CONFIG):
            return DINOV2, ""
        return WITHOUT_HUB, f"DINOv2 is neither in the cache nor within reach, so parts.features={WITHOUT_HUB}"

    return _answer("FEATURES", ask)


def is_drawn(dataset: str) -> bool:
    """Whether a data set of this name is of the embedded world: nobody's photographs."""
    return dataset.startswith("creatures")


def precision_here(accelerator: str) -> str:
    """Lightning's name of bfloat16 mixed precision where a device of this kind has it natively, else of float32."""
    return "bf16-mixed" if _has_bfloat16(accelerator) else "32-true"


def steps_here(accelerator: str, native: int, emulated: int) -> int:
    """Optimizer steps that take about as long without native bfloat16, in float32, as ``native`` ones take with it."""
    return native if _has_bfloat16(accelerator) else emulated


def hardware_preset(free: float | None) -> str:
    """The preset for so many free gigabytes; "none" without a GPU."""
    if free is None:
        return "none"
    return next((name for name, least in PRESETS if free >= least), PRESETS[-1][0])


def free_gpu_gigabytes() -> float | None:
    """Of the GPU that has least, so that all processes of a run choose alike; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return min(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())) / 1e9


def hub_has(repository: str, file: str) -> bool:
    """Whether a model can be had: from the cache, or because the hub answers."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, file), str) or _hub_answers()


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a backbone that are known before it is loaded.

    Attributes:
        vae_factor: pixels of a latent, along a side.
        levels: resolutions of the denoiser, each half of the one before.
        width: channels of its widest layer.
    """

    vae_factor: int
    levels: int
    width: int


def model_sizes(node: Mapping[str, Any]) -> ModelSizes | None:
    """Read from the settings beside the weights; those of the public models for a hub id; None if unknown."""
    source = str(node.get("source") or node.get("path") or "")
    if str(node["_target_"]).endswith("load_mini") and not source:
        source = str(resources.files("partcraft_lit") / "weights" / "mini")
    folder = Path(source).expanduser()
    try:
        channels = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))["block_out_channels"]
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))["block_out_channels"]
        return ModelSizes(2 ** (len(vae) - 1), len(channels), max(channels))
    except (OSError, ValueError, KeyError, TypeError):
        loader = str(node["_target_"]).rpartition(".")[2]
        return _PUBLIC.get(loader) if _is_hub_id(source) else None


#: Loader -> sizes of the model on the hub.
_PUBLIC = {"load_sd15": ModelSizes(8, 4, 1280), "load_sdxl": ModelSizes(8, 3, 1280)}


def check_start(values: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Before any work: what a training run lacks here, and the command that runs here and now.

    Args:
        values: of the run.
        overrides: as they were given.

    Raises:
        UserError: if the data set, the weights or a GPU is missing. Training on a CPU has to be asked for.
    """
    model = [text for text in (_weights(values), _gpu(values)) if text]
    # A wrong folder alone is named later, with the nearest ones; beside other things it would come to light last.
    data = dataset_lacking(values) or (_own_folder_lacking(values) if model else "")
    message = " ".join([data] * bool(data) + model)
    if model:
        kept = [text for text in overrides if not text.startswith(("backbone", "hardware=", "parts.features="))]
        here = " ".join([*map(shlex.quote, kept), "backbone=mini"])
        when = "With the data set there, this runs here" if data else "This runs here and now"
        message += f" {when}: partcraft train {here} parts.features={WITHOUT_HUB}"
    if message:
        raise UserError(message)


def dataset_lacking(values: Mapping[str, Any]) -> str:
    """What is to be done about a published data set that is not there."""
    download, place = values.get("download"), values["dataset"].get("dir")
    if not download or place is None or Path(str(place)).expanduser().exists():
        return ""
    name = download["name"]
    return (
        f"dataset={name}: there is no folder {place}. 'partcraft fetch dataset={name}' gets it; a copy elsewhere is "
        "named by dataset.dir=/path/to/it."
    )


def _own_folder_lacking(values: Mapping[str, Any]) -> str:
    place = values["dataset"].get("dir")
    if place is None or Path(str(place)).expanduser().exists():
        return ""
    return f"dataset.dir: there is no folder {place}."


def _weights(values: Mapping[str, Any]) -> str:
    source = _hub_source(values)
    places = [source, *map(str, values["backbone"].get("mirrors") or ())]
    if not source or any(hub_has(place.partition("@")[0], _PIPELINE) for place in places):
        return ""
    return (
        f"The weights of {source} are not in the cache of the hub, and the hub does not answer here: run 'hf download "
        f"{source}' where it does, or give a folder with the model, backbone.source=FOLDER."
    )


def _gpu(values: Mapping[str, Any]) -> str:
    if not _hub_source(values) or values["trainer"]["accelerator"] != "auto":
        return ""
    if _may_have_gpu():
        import torch

        if torch.cuda.is_available() or torch.backends.mps.is_available():
            return ""
    return (
        f"{_hub_source(values)} needs a GPU, and torch sees none: hardware=cpu trains it without one, in days "
        "('partcraft doctor' says how many)."
    )


def _hub_source(values: Mapping[str, Any]) -> str:
    """Hub id of the backbone; "" for weights in the package or on the disk."""
    source = str(values["backbone"].get("source") or "")
    return source if _is_hub_id(source) else ""


def _is_hub_id(source: str) -> bool:
    """``owner/name``, and no path."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).exists()


def _answer(name: str, ask: Any) -> str:
    """The answer of this process or of the one that started it, else that of ``ask``, whose sentence is kept."""
    variable = _ANSWERS.format(name)
    if variable not in os.environ:
        os.environ[variable], note = ask()
        _notes.extend([note] if note else [])
    return os.environ[variable]


@functools.cache
def _has_bfloat16(accelerator: str) -> bool:
    if accelerator == "cpu" and (flags := Path("/proc/cpuinfo")).is_file():  # torch takes seconds to import
        return any(flag in flags.read_text(encoding="utf-8") for flag in ("avx512_bf16", "amx_bf16"))
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_capability()[0] >= 8  # since 2020
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _may_have_gpu() -> bool:
    """False on a Linux without a device that torch could use: importing torch only to ask takes seconds."""
    return sys.platform != "linux" or any(Path("/dev", name).exists() for name in ("nvidiactl", "dxg", "kfd"))


@functools.cache
def _hub_answers() -> bool:
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return False
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    found = threading.Event()

    def knock() -> None:
        try:
            socket.create_connection((host.hostname, host.port or 443), timeout=_PATIENCE_S).close()
            found.set()
        except OSError:
            pass

    # A thread of its own: looking up a name has no time limit.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return found.is_set()
