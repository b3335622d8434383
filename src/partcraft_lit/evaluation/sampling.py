"""Images for scores: drawn once, kept with their recipes, and never drawn again while both stand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed
from PIL import Image
from torch import Tensor

from partcraft_lit.core import environment
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.store import Store, stable_hash, turns
from partcraft_lit.core.visualization import save_png
from partcraft_lit.methods.method import DrawsItself
from partcraft_lit.module import PersonalizationModule


class Draw(Protocol):
    """``draw_missing``, or ``require_drawn`` where nothing may be drawn."""

    def __call__(
        self,
        module: PersonalizationModule,
        prompts: Sequence[str],
        seeds: Sequence[int],
        folder: Path,
        protocol: str,
        progress: Callable[[int, int], None] | None = None,
        store: Store | None = None,
    ) -> list[Path]: ...


#: Settings of sampling that change no image.
_NOT_IN_RECIPE = ("batch_size",)
#: Of the store's entries.
_KIND = "pictures"


def draw_missing(
    module: PersonalizationModule,
    prompts: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    protocol: str,
    progress: Callable[[int, int], None] | None = None,
    store: Store | None = None,
) -> list[Path]:
    """One PNG per prompt and seed; those that are there with the same recipe are left as they are.

    A recipe is the prompt, the seed, the settings of sampling and a digest of all weights, so an image of another
    checkpoint or another sampler is drawn again. Several processes share the images: after they have connected, each
    draws its part; before, they meet in the store, and each draws its part and then what the others have left.

    Args:
        module: draws.
        prompts: what to draw.
        seeds: one per prompt.
        folder: images are ``<folder>/00000.png`` and so on.
        protocol: name of the set, for the files.
        progress: called with (ready, all) of this process.
        store: keeps the images for other folders too; None for images that nobody will want again.

    Returns:
        The paths, in order; all of them stand.
    """
    recipes = _recipes(module, prompts, seeds, protocol)
    paths = [folder / f"{index:05d}.png" for index in range(len(prompts))]
    missing = [index for index, path in enumerate(paths) if recipe_of(path) != recipes[index]]
    _wait_for_all()  # every process has to look before the first draws
    size, ready = module.sampling.batch_size, len(paths) - len(missing)
    for batch in _shares(missing, size, lambda index: _taken(store, recipes[index], paths[index])):
        images = module.generate([prompts[i] for i in batch], [seeds[i] for i in batch])
        for index, image in zip(batch, images, strict=True):
            texts = {"prompt": prompts[index], "seed": seeds[index], "protocol": protocol}
            save_png(paths[index], image, {**texts, "recipe": recipes[index]})
            if store is not None:
                store.put(_KIND, stable_hash(recipes[index]), {"png": _as_tensor(paths[index].read_bytes())})
        ready += len(batch)
        if progress is not None:
            progress(ready, len(paths))
    _wait_for_all()
    return paths


def require_drawn(
    module: PersonalizationModule,
    prompts: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    protocol: str,
    progress: Callable[[int, int], None] | None = None,
    store: Store | None = None,
) -> list[Path]:
    """As ``draw_missing``, but draws nothing.

    Raises:
        UserError: if an image is missing, or has another recipe: another prompt, seed, sampler or checkpoint.
    """
    recipes = _recipes(module, prompts, seeds, protocol)
    paths = [folder / f"{index:05d}.png" for index in range(len(prompts))]
    missing = [path for path, recipe in zip(paths, recipes, strict=True) if recipe_of(path) != recipe]
    if missing:
        raise UserError(
            f"{len(missing)} images of {folder} are gone, or not of this run's prompts, seeds, sampler and weights; "
            f"the first is {missing[0].name}. partcraft evaluate draws them again."
        )
    return paths


def _shares(missing: list[int], size: int, taken: Callable[[int], bool]) -> Iterator[list[int]]:
    """Batches of ``missing`` that this process draws; ``taken`` says whether there was an image in the store."""
    rank, processes = _position()
    if processes > 1 or environment.position()[1] == 1:
        mine = [index for index in missing[rank::processes] if not taken(index)]
        yield from (mine[start : start + size] for start in range(0, len(mine), size))
        return
    blocks = [missing[start : start + size] for start in range(0, len(missing), size)]
    own, others = turns(len(blocks))
    for number in (*own, *others):
        if batch := [index for index in blocks[number] if not taken(index)]:
            yield batch


def _taken(store: Store | None, recipe: str, path: Path) -> bool:
    """Writes an image that the store has."""
    entry = None if store is None else store.get(_KIND, stable_hash(recipe))
    if entry is None:
        return False
    atomic_write(path, entry["png"].numpy().tobytes())
    return True


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def recipe_of(path: Path) -> str | None:
    """The recipe inside a PNG; None if there is no whole image."""
    try:
        with Image.open(path) as image:
            recipe = image.info.get("recipe")
            image.load()  # half a file must not count
    except (OSError, SyntaxError):
        return None
    return recipe if isinstance(recipe, str) else None


def weights_digest(module: PersonalizationModule) -> str:
    """16 hex digits of everything that decides images: frozen networks, and what was trained or shown."""
    digest = hashlib.blake2b(module.backbone.hash.encode(), digest_size=8)
    if isinstance(module.method, DrawsItself):
        digest.update(module.method.identity.encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _recipes(module: PersonalizationModule, prompts: Sequence[str], seeds: Sequence[int], protocol: str) -> list[str]:
    sampling = {k: v for k, v in dataclasses.asdict(module.sampling).items() if k not in _NOT_IN_RECIPE}
    shared = {"protocol": protocol, "sample": sampling, "weights": weights_digest(module)}
    return [
        json.dumps({**shared, "prompt": prompt, "seed": seed}, sort_keys=True)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def _position() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _wait_for_all() -> None:
    if _position()[1] > 1:
        torch.distributed.barrier()
