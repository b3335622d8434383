"""How often the oracle is right: ``python benchmarks/oracle.py [--images 600] [--vae FOLDER]``.

Images are drawn for this alone: birds of 20 species of the held-out world and hybrids of them, as they are, after a
round trip through the embedded model's autoencoder, blurred, and with noise. A part counts if it is visible. Then birds
that lack parts: how often a missing part is read as missing, and one that is there as there.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.images import to_unit
from partcraft_lit.core.types import ABSENT
from partcraft_lit.world.creatures import Creatures
from partcraft_lit.world.oracle import LookAccuracy, PartAccuracy, SpeciesOracle, packaged_oracle
from partcraft_lit.world.pretrain.oracle import oracle_batch
from partcraft_lit.world.zoo.draw import Drawing
from partcraft_lit.world.zoo.looks import NUM_PARTS, species_table

Change = Callable[[Tensor], Tensor]


def blurred(sigma: float) -> Change:
    """Gaussian blur with a standard deviation in pixels."""
    offsets = torch.arange(-6.0, 7.0)
    kernel = (-0.5 * (offsets / sigma).square()).exp()
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)

    def change(images: Tensor) -> Tensor:
        padded = F.pad(images.float(), (6, 6, 6, 6), mode="replicate")
        soft = F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)
        return to_bytes(soft)

    return change


def noisy(sigma: float) -> Change:
    def change(images: Tensor) -> Tensor:
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return to_bytes(images.float() + sigma * noise)

    return change


def through_vae(folder: Path) -> Change:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder).eval()

    @torch.inference_mode()
    def change(images: Tensor) -> Tensor:
        decoded = [vae.decode(vae.encode(to_unit(part)).latent_dist.mean).sample for part in images.split(50)]
        return to_bytes((torch.cat(decoded) + 1) * 127.5)

    return change


def to_bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def psnr(images: Tensor, changed: Tensor) -> float:
    """Mean over images, in dB."""
    error = (images.float() - changed.float()).square().flatten(1).mean(dim=1).clamp_min(1e-9)
    return float((10 * (255**2 / error).log10()).mean()) if bool((error > 1e-9).any()) else math.inf


def report(title: str, drawing: Drawing, species: Tensor, oracle: SpeciesOracle, changes: dict[str, Change]) -> None:
    asked = torch.where(drawing.visible, species, ABSENT)
    looks = oracle.looks[species, torch.arange(NUM_PARTS)]
    looks = torch.where(drawing.visible[:, :, None], looks, ABSENT)
    print(f"\n{title}: {len(species)} pictures of {len(oracle.looks)} species; per cent")
    names = [*oracle.part_names, "all", "color", "texture", "shape", "seen"]
    print(f"{'':<22}{'PSNR':>7}" + "".join(f"{name:>9}" for name in names))
    for name, change in changes.items():
        changed = change(drawing.images)
        reading = oracle.read(changed)
        parts, aspects = PartAccuracy(oracle), LookAccuracy(oracle)
        parts.update(reading, asked)
        aspects.update(reading, looks)
        score, look = parts.compute(), aspects.compute()
        values = [*(score[f"part/{part}"] for part in oracle.part_names), score["all"]]
        values += [look["color"], look["texture"], look["shape"], score["seen"]]
        row = "".join(f"{100 * float(value):9.2f}" for value in values)
        print(f"{name:<22}{psnr(drawing.images, changed):7.1f}{row}")


def report_missing(oracle: SpeciesOracle, images: int, seed: int) -> None:
    batches = [oracle_batch(10**6 + seed, step, 50, missing=0.1)[0] for step in range(math.ceil(images / 50))]
    there = torch.cat([batch.visible for batch in batches])
    seen = torch.cat([oracle.read(batch.images).presence for batch in batches]) >= 0.5
    print(f"\nBirds that lack parts: {len(there)} pictures; per cent")
    print(f"{'':<22}" + "".join(f"{name:>9}" for name in [*oracle.part_names, "all"]))
    for name, chosen, right in (("missing, not seen", ~there, ~seen), ("there, seen", there, seen)):
        shares = [*((right & chosen).sum(dim=0) / chosen.sum(dim=0)), right[chosen].float().mean()]
        print(f"{name:<22}" + "".join(f"{100 * float(share):9.2f}" for share in shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--species", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, default=packaged_oracle())
    parser.add_argument("--vae", type=Path, default=packaged_oracle().parents[1] / "mini" / "vae")
    given, _ = parser.parse_known_args()
    changes: dict[str, Change] = {"as drawn": lambda images: images}
    if given.vae.is_dir():
        changes["autoencoder and back"] = through_vae(given.vae)
    else:
        print(f"There is no autoencoder at {given.vae}; the round trip is left out.")
    changes |= {f"blur {sigma} px": blurred(sigma) for sigma in (0.7, 1.0, 1.5, 2.0)}
    changes |= {f"noise {sigma} of 255": noisy(sigma) for sigma in (10, 25)}

    each = math.ceil(given.images / given.species)
    creatures = Creatures(species=given.species, images_per_species=each, seed=given.seed)
    oracle = SpeciesOracle(given.weights, looks=torch.from_numpy(species_table(given.species, given.seed)))
    generator = torch.Generator().manual_seed(given.seed)
    whole = torch.tensor([creatures.label(index) for index in range(len(creatures))])[:, None].expand(-1, NUM_PARTS)
    mixed = torch.randint(given.species, whole.shape, generator=generator)
    for title, species in (("Whole species", whole), ("Hybrids, five parts for themselves", mixed)):
        drawing = creatures.render(species, range(len(creatures)))
        report(title, drawing, species, oracle, changes)
    report_missing(oracle, given.images, given.seed)


if __name__ == "__main__":
    main()
