"""Whether the embedded base model follows captions: ``python benchmarks/captions.py [--path FOLDER] [--images 96]``.

Every caption describes the five parts of a bird whose looks are all of the held-out world: the base model has never
seen one of them. The oracle says how many described parts have the colour (texture, shape) that was asked for. Beside
it: the same images against captions dealt out anew, which is chance, and birds of which only the noun was said; and
the Fréchet distance between images for captions of the pretraining world and the drawings that these captions describe,
with that of two sets of such drawings, which no model can fall below, and how much the brightness of images varies.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.backbones.mini_dit import load_mini_dit
from partcraft_lit.backbones.sampling import sample
from partcraft_lit.backbones.stable_diffusion import load_mini
from partcraft_lit.core.randomness import numpy_generator
from partcraft_lit.core.visualization import grid, label, save_png, upscale
from partcraft_lit.metrics.fid import FrechetDistance
from partcraft_lit.metrics.kid import KernelDistance
from partcraft_lit.world.embedded_features import embedded_features
from partcraft_lit.world.oracle import LookAccuracy, LookOracle
from partcraft_lit.world.zoo.captions import describe_look, join
from partcraft_lit.world.zoo.looks import BIRD, NUM_PARTS, look_table
from partcraft_lit.world.zoo.scenes import PretrainingScenes

#: How each is loaded, and the sampler that suits it.
_BACKBONES: dict[str, tuple[Any, str]] = {"mini": (load_mini, "dpm++"), "mini_dit": (load_mini_dit, "flow_euler")}
#: First image of the pretraining world that no training draws.
_HELD_BACK = 3 * 10**9


def described_birds(count: int, seed: int = 0) -> tuple[list[str], Tensor]:
    """Captions that describe all parts, and the looks that they describe, (count, parts, 3)."""
    table = look_table("held_out")
    captions, looks = [], []
    for index in range(count):
        rng = numpy_generator(seed, "described bird", index)
        chosen = table[rng.integers(len(table), size=NUM_PARTS)]
        order = rng.permutation(NUM_PARTS)
        parts = [describe_look(BIRD, int(p), tuple(int(v) for v in chosen[p]), with_shape=True) for p in order]
        captions.append("a photo of a " + join(BIRD.noun, parts))
        looks.append(torch.from_numpy(chosen))
    return captions, torch.stack(looks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=("mini", "mini_dit"), default="mini")
    parser.add_argument("--path", default=None, help="folder in diffusers' format; the packaged model by default")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, nargs="+", default=[5.0])
    parser.add_argument("--distance-images", type=int, default=256)
    parser.add_argument("--sheet", default=None, help="PNG to write some of the images to")
    arguments = parser.parse_args()
    load, scheduler = _BACKBONES[arguments.backbone]
    backbone, oracle = load(arguments.path), LookOracle()
    captions, looks = described_birds(arguments.images)
    seeds = list(range(arguments.images))
    print(f"{arguments.images} captions, {arguments.steps} steps")
    print(f"{'':24}colour  texture  shape   shape of head  body  wing  tail  legs")
    for guidance in arguments.guidance:
        started = time.monotonic()
        tokens = backbone.plain_tokens(captions)
        settings = {"steps": arguments.steps, "guidance_scale": guidance, "batch_size": 32, "scheduler": scheduler}
        images = sample(backbone, tokens, None, seeds=seeds, **settings)
        _print(f"guidance {guidance:g}", oracle, images, looks)
        _print("  captions dealt anew", oracle, images, looks.roll(1, dims=0))
        print(f"  {len(images) / (time.monotonic() - started):.1f} images/s")
    nouns = sample(backbone, backbone.plain_tokens(["a photo of a bird"] * len(seeds)), None, seeds=seeds, **settings)
    colors = oracle.read(nouns).looks()[:, :, 1]
    entropy = [_entropy(colors[:, part]) for part in range(NUM_PARTS)]
    print(
        "only the noun said: entropy of colours by part, in bits of 3.32:", " ".join(f"{bits:.2f}" for bits in entropy)
    )
    for guidance in arguments.guidance:
        print_distance(backbone, arguments.distance_images, {**settings, "guidance_scale": guidance})
    if arguments.sheet:
        shown = [label(upscale(image, 128), text, "below", 9) for image, text in zip(images, captions, strict=True)]
        save_png(arguments.sheet, grid(shown[:24], columns=8, pad=4))


def print_distance(backbone: Any, count: int, settings: dict[str, Any]) -> None:
    """FID and KID with the embedded features; the captions are of the pretraining world, of images never trained on."""
    first, second = (range(start, start + count) for start in (_HELD_BACK, _HELD_BACK + count))
    scenes = PretrainingScenes(seed=1)
    drawing, captions = scenes.batch(first)
    images = sample(backbone, backbone.plain_tokens(captions), None, seeds=list(first), **settings)
    features = embedded_features()
    for name, shown in (("images", images), ("other drawings", scenes.batch(second)[0].images)):
        fid, kid = FrechetDistance(features), KernelDistance(features)
        for metric in (fid, kid):
            metric.update(drawing.images, real=True)
            metric.update(shown, real=False)
        spread = shown.float().mean(dim=(1, 2, 3)).std()
        print(
            f"{name} against {count} drawings, guidance {settings['guidance_scale']:g}: FID {fid.compute():.4f}, "
            f"KID {kid.compute()['value']:.4f}; brightness of whole images varies by {spread:.1f} grey levels"
        )


def _print(name: str, oracle: LookOracle, images: Tensor, looks: Tensor) -> None:
    metric = LookAccuracy(oracle)
    metric.update(images, looks)
    values = metric.compute()
    parts = "  ".join(f"{float(values[f'shape/{part}']):.2f}" for part in BIRD.part_names)
    aspects = "   ".join(f"{float(values[aspect]):.3f}" for aspect in ("color", "texture", "shape"))
    print(f"{name:24}{aspects}             {parts}")


def _entropy(values: Tensor) -> float:
    shares = torch.bincount(values) / len(values)
    shares = shares[shares > 0]
    return float(-(shares * shares.log2()).sum())


if __name__ == "__main__":
    main()
