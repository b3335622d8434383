"""Images that are drawn once, by several processes, and kept on the device: a GPU trains faster than one core draws."""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import epoch_index
from partcraft_lit.world.pretrain.examples import (
    EMPTY_CAPTIONS,
    Examples,
    ExampleSource,
    FreshExamples,
    Truth,
    caption_length,
    drawn,
    encode,
)
from partcraft_lit.world.pretrain.loop import Log
from partcraft_lit.world.pretrain.tokenizer import build_tokenizer
from partcraft_lit.world.zoo.looks import NUM_PARTS
from partcraft_lit.world.zoo.scenes import PretrainingScenes

#: Images that one process draws at a time.
_SHARE = 1000
#: Images that the autoencoder takes at a time.
_ENCODED = 2048
_TEXT_LENGTH = 77
#: In the folder of checkpoints, where no other folder is named.
OWN_FOLDER = "pool"


@dataclass(frozen=True)
class PoolSettings:
    """Where training images come from.

    Attributes:
        images: so many are drawn once and seen in a new order each epoch; None draws those of each step.
        workers: processes that draw them.
        folder: of the drawn images, which several runs may share. None: in the run's folder, until it has ended.
    """

    images: int | None = None
    workers: int = 1
    folder: Path | None = None


def example_source(
    pool: PoolSettings,
    scenes: PretrainingScenes,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    device: torch.device,
    work: Path,
    log: Log,
) -> ExampleSource:
    """What ``pool`` asks for.

    Args:
        pool: as given.
        scenes, tokenizer, vae, device: see ``FreshExamples``.
        work: the pool is beside its checkpoints if ``pool`` names no other folder.
        log: where a line for people goes.
    """
    if pool.images is None:
        return FreshExamples(scenes, tokenizer, vae, device)
    folder = draw_pool(scenes, pool.images, pool.workers, pool.folder or work / OWN_FOLDER, log)
    return PooledExamples(folder, scenes.seed, tokenizer, vae, device)


class PooledExamples:
    """All images of a pool on the device, in a new order each epoch.

    Args:
        folder: see ``draw_pool``.
        seed: of the orders.
        tokenizer, vae, device: see ``FreshExamples``.
    """

    def __init__(
        self, folder: Path, seed: int, tokenizer: CLIPTokenizer, vae: AutoencoderKL, device: torch.device
    ) -> None:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _arrays(1)}
        images = arrays.pop("images")
        spoken = int((arrays["places"] >= 0).sum(axis=1).max())
        for name in ("places", "parts"):
            arrays[name] = arrays[name][:, : max(1, spoken)]
        self.truth = Truth(**{name: torch.from_numpy(np.array(values)).to(device) for name, values in arrays.items()})
        chunks = range(0, len(images), _ENCODED)
        pixels = (torch.from_numpy(np.array(images[start : start + _ENCODED])).to(device) for start in chunks)
        self.latents = torch.cat([encode(vae, chunk).half() for chunk in pixels])
        self.seed, self.device = seed, device
        self.blank = tokenizer([""], padding="max_length", return_tensors="pt").input_ids[0].to(device)
        self.longest = caption_length(self.truth.input_ids.cpu(), tokenizer)

    def batch(self, step: int, size: int, generator: torch.Generator) -> Examples:
        empty = (torch.rand(size, generator=generator) < EMPTY_CAPTIONS).to(self.device)
        rows = [epoch_index(self.seed, number, len(self.latents)) for number in range(step * size, (step + 1) * size)]
        chosen = torch.tensor(rows).to(self.device)
        found = self.truth.rows(chosen)
        truth = Truth(
            label_maps=found.label_maps,
            input_ids=torch.where(empty[:, None], self.blank, found.input_ids.long()),
            places=found.places.long().masked_fill(empty[:, None], -1),
            parts=found.parts.long().masked_fill(empty[:, None], -1),
            looks=found.looks.long(),
            families=found.families.long(),
            told=found.told & ~empty[:, None],
        )
        return Examples(self.latents[chosen].float(), truth, self.longest)


def draw_pool(scenes: PretrainingScenes, images: int, workers: int, folder: Path, log: Log) -> Path:
    """Draws the first images of ``scenes``, one array of numpy's per kind; what is drawn already is kept.

    Args:
        scenes: images and captions by index.
        images: how many.
        workers: processes that draw.
        folder: gets a folder for each seed and number of images; several runs may share it.
        log: where a line for people goes.

    Returns:
        The folder of the arrays.
    """
    place = folder / f"{images}_of_seed_{scenes.seed}_{scenes.size}_px"
    if place.is_dir():
        log(f"{images} drawn images taken from {place}")
        return place
    folder.mkdir(parents=True, exist_ok=True)
    # elsewhere until it is whole: another run that draws the same is not disturbed
    with tempfile.TemporaryDirectory(dir=folder, prefix=".drawing-", ignore_cleanup_errors=True) as temporary:
        _draw_all(scenes, images, workers, Path(temporary), log)
        with contextlib.suppress(OSError):  # drawn by another run meanwhile
            Path(temporary).rename(place)
    if not place.is_dir():
        raise UserError(f"The drawn images could not be put at {place}: is there something else of this name?")
    return place


def _draw_all(scenes: PretrainingScenes, images: int, workers: int, folder: Path, log: Log) -> None:
    for name, (dtype, shape) in _arrays(scenes.size).items():
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(images, *shape))
    shares = [range(start, min(start + _SHARE, images)) for start in range(0, images, _SHARE)]
    draw = partial(_draw_share, scenes, folder)
    with _processes(workers) as drawn_shares:
        for done, _ in enumerate(drawn_shares(draw, shares), start=1):
            if done % 50 == 0:
                log(f"drawn {done * _SHARE} of {images} images")


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[Callable[..., Iterable[None]]]:
    """``map`` over so many processes; one is this one."""
    if workers == 1:
        yield map
        return
    # spawned: a fork of a process that has used a GPU or threads may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool.map


def _draw_share(scenes: PretrainingScenes, folder: Path, indices: range) -> None:
    """Draws some of the images into the arrays."""
    pixels, truth = drawn(scenes, build_tokenizer(), indices)
    values: dict[str, Tensor] = {field.name: getattr(truth, field.name) for field in fields(truth)}
    for name, value in {"images": pixels, **values}.items():
        array = np.load(folder / f"{name}.npy", mmap_mode="r+")
        if name in ("places", "parts"):
            value = F.pad(value, (0, array.shape[1] - value.shape[1]), value=-1)
        array[indices.start : indices.stop] = value.numpy()
        array.flush()


def _arrays(size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Kind -> type and shape for one image, in the order of ``Truth`` after the pixels."""
    return {
        "images": ("uint8", (3, size, size)),
        "label_maps": ("uint8", (size, size)),
        "input_ids": ("int16", (_TEXT_LENGTH,)),
        "places": ("int8", (_TEXT_LENGTH,)),
        "parts": ("int8", (_TEXT_LENGTH,)),
        "looks": ("int8", (2 * NUM_PARTS, 3)),
        "families": ("int8", (2,)),
        "told": ("bool", (2 * NUM_PARTS,)),
    }
