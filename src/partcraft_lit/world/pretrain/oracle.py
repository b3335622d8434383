"""Trains the oracle that judges generated birds, on renders with their ground truth, each seen once.

The packaged weights come from ``partcraft pretrain stage=oracle``: two stages, with missing parts in the second only.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.files import atomic_path
from partcraft_lit.core.images import to_unit
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.world.oracle import SIZE, LookNetwork, NetworkOutput, load_network
from partcraft_lit.world.pretrain.loop import Log, LoopSettings, train_loop
from partcraft_lit.world.zoo.draw import POSE_SIZE, Drawing, draw
from partcraft_lit.world.zoo.looks import COLORS, NUM_PARTS, NUM_SHAPES, TEXTURES
from partcraft_lit.world.zoo.shapes import BIRD_PLAN, BodyPlan

#: Weight of finding the parts (cross-entropy per place) against reading them.
PLACES_WEIGHT = 2.0
#: Share of parts that are left out of a bird; a third as many images have no bird.
MISSING = 0.06
_BLOCK = 4  # side of the blocks whose coefficients are disturbed


def oracle_batch(seed: int, step: int, batch_size: int, missing: float = MISSING) -> tuple[Drawing, Tensor]:
    """Birds of random looks from both worlds, every part for itself, and the looks (B, parts, 3).

    The zoo seldom leaves a part out, a generative model often: so some birds here lack parts, and some scenes a bird.
    """
    generator = torch_generator(seed, "oracle", step)
    values = (NUM_SHAPES, len(COLORS), len(TEXTURES))
    columns = [torch.randint(count, (batch_size, NUM_PARTS), generator=generator) for count in values]
    looks = torch.stack(columns, dim=2)
    pose = torch.rand(batch_size, POSE_SIZE, generator=generator)
    left_out = torch.rand(batch_size, NUM_PARTS, generator=generator) < missing
    left_out |= torch.rand(batch_size, 1, generator=generator) < missing / 3
    shapes = torch.where(left_out, NUM_SHAPES, looks[:, :, 0])
    drawn = torch.cat([shapes[:, :, None], looks[:, :, 1:]], dim=2)
    return draw(_plan_with_nothing(), drawn, pose, SIZE), looks


@functools.cache
def _plan_with_nothing() -> BodyPlan:
    """The bird's plan with one more shape of every part: none."""
    plan = BIRD_PLAN
    nothing = torch.tensor([0.0, 0.0, -9.0, 0.0, 0.0, -9.0])  # a capsule of negative radius covers no place
    none = nothing.expand(NUM_PARTS, 1, plan.capsules.shape[2], -1)
    return replace(
        plan,
        capsules=torch.cat([plan.capsules, none], dim=1),
        joints=torch.cat([plan.joints, plan.joints[:1]]),
        eye=torch.cat([plan.eye, plan.eye[:1]]),
        beak=torch.cat([plan.beak, nothing[None]]),
    )


def degrade(pixel_values: Tensor, generator: torch.Generator) -> Tensor:
    """What can happen to an image on its way through a generative model, to each image in another measure.

    Blur or sharpening, block coefficients that are weakened and disturbed (as an autoencoder with downsampling 4 does),
    noise, and a shift of colours. One image in six stays as it is.

    Args:
        pixel_values: (B, 3, H, W) in -1...1, sides divisible by 4.
        generator: a CPU generator.

    Returns:
        The same shape and range.
    """

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        drawn = torch.rand(len(pixel_values), channels, 1, 1, generator=generator)
        return (low + (high - low) * drawn).to(pixel_values)

    image = pixel_values + uniform(-0.6, 1.0) * (_blurred(pixel_values) - pixel_values)
    image = image + uniform(-0.7, 1.0).clamp_min(0) * (_through_blocks(image, generator) - image)
    white = torch.randn(image.shape, generator=generator).to(image)
    image = image + uniform(-0.04, 0.12).clamp_min(0) * white
    image = image * uniform(0.92, 1.08, 3) + uniform(-0.06, 0.06, 3)
    untouched = uniform(0, 1) < 1 / 6
    return torch.where(untouched, pixel_values, image).clamp(-1, 1)


def _blurred(image: Tensor, sigma: float = 1.3) -> Tensor:
    offsets = torch.arange(-3, 4, dtype=image.dtype, device=image.device)
    kernel = (-0.5 * (offsets / sigma).square()).exp()
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(image, (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def _through_blocks(image: Tensor, generator: torch.Generator) -> Tensor:
    """Cosine coefficients of 4 x 4 blocks, the higher ones weakened at random and all disturbed a little."""
    basis, height = (value.to(image) for value in _cosine_blocks())
    coefficients = F.conv2d(image.flatten(0, 1)[:, None], basis, stride=_BLOCK)  # (B * 3, 16, h, w)
    coefficients = coefficients.unflatten(0, image.shape[:2])
    weakening = 1.5 * torch.rand(len(image), 1, 1, 1, 1, generator=generator).to(image)
    noise = torch.randn(coefficients.shape, generator=generator).to(image)
    amount = 0.2 * torch.rand(len(image), 1, 1, 1, 1, generator=generator).to(image)
    kept = (-weakening * height[None, None, :, None, None]).exp()
    changed = coefficients * kept + amount * noise
    return F.conv_transpose2d(changed.flatten(0, 1), basis, stride=_BLOCK).view_as(image)


@functools.cache
def _cosine_blocks() -> tuple[Tensor, Tensor]:
    """Orthonormal basis (16, 1, 4, 4) of a block, and how high the frequency of each row is (16,), 0 for the mean."""
    place = torch.arange(_BLOCK) + 0.5
    rows = torch.stack([(math.pi * k * place / _BLOCK).cos() for k in range(_BLOCK)])
    rows = rows / rows.norm(dim=1, keepdim=True)
    basis = torch.einsum("ay,bx->abyx", rows, rows).flatten(0, 1)[:, None]
    steps = torch.arange(_BLOCK, dtype=torch.float32)
    height = (steps[:, None].square() + steps[None].square()).sqrt().flatten() / 2
    return basis, height


def oracle_loss(output: NetworkOutput, drawing: Drawing, looks: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropies of places, presence and, where a part is visible, of colour, texture and shape.

    Returns:
        The scalar loss, and the shares of visible parts whose colour, texture and shape are right.
    """
    visible = drawing.visible.to(output.presence)
    truth = F.one_hot(drawing.label_maps.long(), NUM_PARTS + 1).movedim(3, 1).to(output.places)
    truth = F.avg_pool2d(truth, truth.shape[-1] // output.places.shape[-1])  # a place may hold several parts
    loss = PLACES_WEIGHT * F.cross_entropy(output.places, truth)
    loss = loss + 0.5 * F.binary_cross_entropy_with_logits(output.presence, visible)
    numbers = {}
    for name, column, weight in (("color", 1, 1.0), ("texture", 2, 1.0), ("shape", 0, 0.5)):
        logits, target = getattr(output, name), looks[:, :, column]
        nats = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(visible)
        loss = loss + weight * (nats * visible).sum() / visible.sum()
        right = (logits.argmax(dim=-1) == target).to(visible)
        numbers[name] = float((right * visible).sum() / visible.sum())
    return loss, numbers


def train_oracle(
    settings: LoopSettings,
    folder: Path,
    log: Log,
    seed: int = 0,
    missing: float = MISSING,
    start: Path | None = None,
) -> LookNetwork:
    """Trains on fresh renders.

    Args:
        settings: of the loop.
        folder: where checkpoint and curve go; an earlier checkpoint there is resumed.
        log: where a line for people goes.
        seed: decides the images and, without ``start``, the first weights.
        missing: share of parts that are left out.
        start: weights to start from.
    """
    torch.manual_seed(seed)
    network = LookNetwork() if start is None else load_network(start).train().requires_grad_(True)
    device = torch.device(settings.device)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        drawing, looks = oracle_batch(seed, step, settings.batch_size, missing)
        pixels = degrade(to_unit(drawing.images), torch_generator(seed, "oracle degradation", step))
        drawing = Drawing(drawing.images, drawing.label_maps.to(device))
        pixels = pixels.to(device, memory_format=torch.channels_last)  # a fifth faster on a CPU
        return oracle_loss(network(pixels), drawing, looks.to(device))

    averaged = train_loop(network, loss, settings, folder / "oracle.pt", log)
    assert isinstance(averaged, LookNetwork)
    return averaged


def save_oracle(network: LookNetwork, path: Path) -> None:
    """Writes the weights in half precision, atomically."""
    weights = {name: value.detach().half().cpu().contiguous() for name, value in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(weights, temporary)
