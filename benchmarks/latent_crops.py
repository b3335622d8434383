"""What it costs to cut crops and mirror images out of latents, instead of encoding each crop.

    python benchmarks/latent_crops.py                                                 # packaged model, drawn animals
    python benchmarks/latent_crops.py backbone=sd15 dataset=folder dataset.dir=photos # any model, any images

Images are made half as long again as they are high and encoded whole; squares are cut from the latents. Beside them
the same squares of the image, encoded by themselves, as ``data.crops=4`` and ``data.crops=encode`` do. "error" is the
root mean square of the difference of the posterior means as a share of their standard deviation: of all latents, of the
outermost ring, of the middle (half the side); "noise" is the posterior's own standard deviation, by which training
shakes latents anyway. PSNR in dB, against the image, after decoding.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from partcraft_lit.config import compose as config
from partcraft_lit.config import factories
from partcraft_lit.core.images import resize_short_side, to_unit


def psnr(decoded: Tensor, pictures: Tensor) -> float:
    """Mean over images in -1...1."""
    error = (decoded.clamp(-1, 1) - pictures).square().flatten(1).mean(dim=1)
    return float((10 * (4 / error).log10()).mean())


def share(error: Tensor, scale: float) -> float:
    return float(error.square().mean().sqrt()) / scale


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    given, overrides = parser.parse_known_args()
    values = config.plain(config.compose("train", ["trainer=cpu", *overrides]))
    backbone, source = factories.backbone_loader(values)(), factories.make_source(values)
    factor, side = backbone.vae_scale_factor, backbone.resolution // backbone.vae_scale_factor
    number = min(given.images, len(source))
    rows: dict[str, list[tuple[Tensor, ...]]] = {"crop": [], "mirror image": []}
    noise = []
    for index in range(number):
        whole = _long(source.image(index * len(source) // number), backbone.resolution, factor)
        latents, deviation = backbone.encode_images(whole)
        noise.append(deviation.mean())
        for left in sorted({0, (latents.shape[-1] - side) // 2, latents.shape[-1] - side}):
            cut = whole[..., left * factor : (left + side) * factor]
            rows["crop"].append((cut, latents[..., left : left + side], backbone.encode_images(cut)[0]))
        mirrored = whole.flip(-1)
        rows["mirror image"].append((mirrored, latents.flip(-1), backbone.encode_images(mirrored)[0]))
    print(f"{number} pictures, {backbone.name}, squares of {backbone.resolution} px\n")
    print("| cut from latents | error | in the ring | in the middle | noise | PSNR | encoded anew | lost |")
    print("|---|---|---|---|---|---|---|---|")
    for name, cases in rows.items():
        pictures, moved, anew = (torch.cat(parts) for parts in zip(*cases, strict=True))
        error, scale = moved - anew, float(anew.std())
        ring = torch.ones(error.shape[-2:], dtype=torch.bool)
        ring[1:-1, 1:-1] = False
        top, left = error.shape[-2] // 4, error.shape[-1] // 4
        shares = (share(part, scale) for part in (error, error[..., ring], error[..., top:-top, left:-left]))
        found, best = (psnr(_decode(backbone, each), pictures) for each in (moved, anew))
        cells = [f"{value:.3f}" for value in (*shares, float(torch.stack(noise).mean()) / scale)]
        print(f"| {name} | {' | '.join(cells)} | {found:.2f} | {best:.2f} | {best - found:.2f} |")


def _long(image: Tensor, resolution: int, factor: int) -> Tensor:
    """(1, 3, resolution, 3/2 resolution) in -1...1: the middle of the image."""
    width = resolution * 3 // 2 // factor * factor
    larger = resize_short_side(image, width, multiple=factor)
    top, left = (larger.shape[-2] - resolution) // 2, (larger.shape[-1] - width) // 2
    return to_unit(larger[:, top : top + resolution, left : left + width])[None]


def _decode(backbone: object, latents: Tensor) -> Tensor:
    return torch.cat([backbone.decode_latents(piece) for piece in latents.split(8)])  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
