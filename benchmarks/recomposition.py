"""What it costs to paste parts into latents, instead of pasting pixels and encoding the result.

    python benchmarks/recomposition.py

Parts are pasted into the latents of drawn creatures as in training, and by the same choices into their pixels, which
are then encoded. "error" is the root mean square of the difference of the posterior means as a share of their
standard deviation, by the distance of a latent from the nearest seam; "noise" is the posterior's own standard
deviation, by which training shakes latents anyway. PSNR in dB of the decoded latents against the pasted pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.config import compose as config
from partcraft_lit.config import factories
from partcraft_lit.core.images import to_unit
from partcraft_lit.core.labels import resize_labels
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.data.recomposition import View, recompose

_FAR = 4


def distances(taken: Tensor) -> Tensor:
    """(s, s) distance of each cell from the seam of a mask: 0 beside it, at most ``_FAR``."""
    result = torch.full(taken.shape, _FAR)
    for distance in reversed(range(_FAR)):
        near = [
            F.max_pool2d(m[None, None].float(), 2 * distance + 3, 1, distance + 1)[0, 0] > 0 for m in (taken, ~taken)
        ]
        result[near[0] & near[1]] = distance
    return result


def _from(candidates: list[View]) -> Callable[[int], list[View]]:
    return lambda turn: candidates


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    given = parser.parse_args()
    values = config.plain(
        config.compose("train", ["trainer=cpu", "dataset.species=8", "dataset.images_per_species=15"])
    )
    backbone, source = factories.backbone_loader(values)(), factories.make_source(values)
    factor, side = backbone.vae_scale_factor, backbone.resolution // backbone.vae_scale_factor
    pixels = torch.cat([to_unit(source.image(index))[None] for index in range(given.images)])
    latents, deviation = backbone.encode_images(pixels)
    views = []
    for index in range(given.images):
        truth = source.truth(index)  # type: ignore[attr-defined]
        labels = resize_labels(truth.label_map, (side, side))
        codes = torch.tensor([0, *truth.species])
        views.append(View(latents[index], labels, codes, torch.ones(side, side, dtype=torch.bool)))
    blocks = [replace(view, latents=F.pixel_unshuffle(image, factor)) for view, image in zip(views, pixels)]
    errors, places, pasted, images = [], [], [], []
    for index in range(given.images):
        chosen = torch.randint(given.images, (6,), generator=torch_generator(1, index)).tolist()
        made, made_of_pixels = (
            recompose(kind[index], _from([kind[n] for n in chosen]), 1, 0, torch_generator(2, index))
            for kind in (views, blocks)
        )
        if made is views[index]:
            continue
        image = F.pixel_shuffle(made_of_pixels.latents, factor)
        errors.append((made.latents - backbone.encode_images(image[None])[0][0]).square().mean(dim=0))
        places.append(distances((made.latents != latents[index]).any(dim=0)))
        pasted.append(made.latents)
        images.append(image)
    error, place, scale = torch.stack(errors), torch.stack(places), float(latents.std())
    decoded = backbone.decode_latents(torch.stack(pasted)).clamp(-1, 1)
    again = backbone.decode_latents(backbone.encode_images(torch.stack(images))[0]).clamp(-1, 1)
    print(f"{len(errors)} recomposed images, {backbone.name}; noise {float(deviation.mean()) / scale:.1%}\n")
    print("| latents from the seam | " + " | ".join([*map(str, range(_FAR)), f"{_FAR} and more"]) + " |")
    print("|---" * (_FAR + 2) + "|")
    shares = [float(error[place == distance].mean().sqrt()) / scale for distance in range(_FAR + 1)]
    print("| error | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    for name, result in (("pasted latents", decoded), ("pasted pixels", again)):
        off = (result - torch.stack(images)).square().flatten(1).mean(dim=1)
        print(f"\nPSNR of {name}: {float((10 * (4 / off).log10()).mean()):.1f} dB")


if __name__ == "__main__":
    main()
