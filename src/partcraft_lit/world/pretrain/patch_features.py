"""The embedded patch features, trained without a label, a mask or a caption.

Two views of one image - other crop, mirror, turn, colours, gratings, blur - must give the same place to the same
prototype. Prototypes are shared by all images, and every batch uses them equally, so nothing can collapse: what a
prototype stands for has to be found in other images too, whatever their colours. The targets are first averaged over
neighbours of similar colour in the image itself, since a surface tends to be one part; so borders fall on edges.

Source: prototypes and equal use from Caron et al., SwAV (arXiv 2006.09882); places that correspond from Pinheiro et
al., VADeR (arXiv 2011.05499) and Ziegler and Asano, Leopart (arXiv 2204.13101); no code was taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.world.patch_network import PatchNetwork
from partcraft_lit.world.pretrain.loop import Log, LoopSettings, train_loop
from partcraft_lit.world.zoo.scenes import PretrainingScenes


@dataclass(frozen=True)
class FeatureRecipe:
    """What decides the training beside its length.

    Attributes:
        pool: different images; each is seen many times, in new views.
        points: places per image and step, of which those count that both views show.
        plain: share of a place without contrast in the draw of places, against one of average contrast.
        dim: width of the description.
        prototypes: of each head; a coarse head asks for large kinds, a fine one for small ones.
        temperature: of the predictions.
        sharpness: entropy weight of the equal assignment; smaller is harder.
        color_reach: distance in RGB (0...1) at which neighbours stop sharing a target.
        place_reach: the same in half sides of the image.
        contrast: weight of the second loss, which separates surfaces of one image, from step ``contrast_from`` on:
            once prototypes mean something.
        contrast_temperature: of its similarities.
    """

    pool: int = 6000
    points: int = 224
    plain: float = 0.3
    dim: int = 24
    prototypes: tuple[int, ...] = (128, 32)
    temperature: float = 0.1
    sharpness: float = 0.05
    color_reach: float = 0.10
    place_reach: float = 0.35
    contrast: float = 0.5
    contrast_from: int = 200
    contrast_temperature: float = 0.2


class Pupil(nn.Module):
    """The network and the prototypes of each head."""

    def __init__(self, network: PatchNetwork, prototypes: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ParameterList(nn.Parameter(torch.randn(count, network.dim)) for count in prototypes)

    def forward(self, view: Tensor, places: Tensor) -> Tensor:
        """(B, 3, H, W), (B, P, 2) as x, y in -1...1 -> (B, P, dim) of length 1."""
        return F.normalize(sample(self.network(view).float(), places), dim=-1)

    def scores(self, embedded: Tensor, head: int) -> Tensor:
        """(..., dim) -> (..., prototypes) cosines."""
        return embedded @ F.normalize(self.heads[head], dim=-1).T


def train_patch_features(
    scenes: PretrainingScenes, settings: LoopSettings, folder: Path, log: Log, recipe: FeatureRecipe | None = None
) -> PatchNetwork:
    """Trains a network on images of the pretraining world.

    Args:
        scenes: where images come from; their masks and captions are not looked at.
        settings: length and speed.
        folder: for checkpoint and curve.
        log: where lines for people go.
        recipe: as given, else the default.

    Returns:
        The averaged network.
    """
    recipe = recipe or FeatureRecipe()
    torch.manual_seed(scenes.seed)
    pupil = Pupil(PatchNetwork(recipe.dim), recipe.prototypes)
    pool = _draw_pool(scenes, recipe.pool)
    device = torch.device(settings.device)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch_generator(scenes.seed, "patch features", step)
        chosen = torch.randint(len(pool), (settings.batch_size,), generator=generator)
        images = pool[chosen].float() / 255
        contrast = recipe.contrast if step >= recipe.contrast_from else 0.0
        return view_loss(pupil, images, recipe, contrast, generator, device)

    averaged = train_loop(pupil, loss, settings, folder / "patch_features.pt", log)
    assert isinstance(averaged, Pupil)
    return averaged.network.eval()


def _draw_pool(scenes: PretrainingScenes, number: int) -> Tensor:
    """(number, 3, size, size) uint8, the images alone."""
    starts = range(0, number, 64)
    return torch.cat([scenes.batch(range(start, min(start + 64, number)))[0].images for start in starts])


def view_loss(
    pupil: Pupil,
    images: Tensor,
    recipe: FeatureRecipe,
    contrast: float,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Tensor, dict[str, float]]:
    """Two views of each image, the same targets for both.

    Args:
        pupil: network and prototypes.
        images: (B, 3, H, W) in 0...1 on the CPU, where everything random is drawn.
        recipe: as given.
        contrast: weight of the contrast between surfaces; 0 leaves it out.
        generator: of all random choices.
        device: of the network.

    Returns:
        The loss, and the share of prototypes in use.
    """
    batch = len(images)
    first, second = (random_affine(batch, generator) for _ in range(2))
    places = draw_places(images, recipe.points, recipe.plain, generator)
    places_first, places_second = (apply_affine(invert_affine(affine), places) for affine in (first, second))
    valid = (places_first.abs().amax(dim=-1) < 1) & (places_second.abs().amax(dim=-1) < 1)  # (B, P)
    views = [recolor(warp(images, affine), generator).to(device) for affine in (first, second)]
    neighbours = affinity(sample(images, places), places, recipe.color_reach, recipe.place_reach).to(device)
    embedded = [pupil(view, at.to(device)) for view, at in zip(views, (places_first, places_second), strict=True)]
    valid = valid.to(device)
    total = torch.zeros((), device=device)
    used = 0.0
    with torch.autocast(device.type, enabled=False):
        for head in range(len(recipe.prototypes)):
            scores = [pupil.scores(item, head) for item in embedded]  # (B, P, prototypes) each
            with torch.no_grad():
                agreed = neighbours @ (scores[0] + scores[1]) / 2
                target = equal_assignment(agreed[valid], recipe.sharpness)
                used += float(target.argmax(dim=1).unique().numel()) / target.shape[1] / len(recipe.prototypes)
            for score in scores:
                predicted = F.log_softmax(score[valid] / recipe.temperature, dim=1)
                total = total - (target * predicted).sum(dim=1).mean() / 2
        total = total / len(recipe.prototypes)
        if contrast == 0:
            return total, {"used": used}
        like, near = surface_likeness(images, places, recipe.color_reach, recipe.place_reach)
        apart = surface_contrast(
            embedded[0], embedded[1], like.to(device), near.to(device), valid, recipe.contrast_temperature
        )
    return total + contrast * apart, {"used": used, "contrast": float(apart.detach())}


def surface_likeness(images: Tensor, places: Tensor, color_reach: float, place_reach: float) -> tuple[Tensor, Tensor]:
    """(B, P, P) twice, 0...1: how alike the surfaces at two places are, and whether they are near each other.

    A surface is described by mean and deviation of colour around the place, so that stripes of one surface are alike.
    """
    mean = F.avg_pool2d(F.pad(images, (3,) * 4, mode="replicate"), 7, stride=1)
    square = F.avg_pool2d(F.pad(images.square(), (3,) * 4, mode="replicate"), 7, stride=1)
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    described = sample(torch.cat([mean, deviation], dim=1), places)
    like = torch.exp(-torch.cdist(described, described).square() / (2 * color_reach**2))
    near = torch.exp(-torch.cdist(places, places).square() / (2 * place_reach**2))
    return like, near


def surface_contrast(
    first: Tensor, second: Tensor, like: Tensor, near: Tensor, valid: Tensor, temperature: float
) -> Tensor:
    """Places of one surface attract each other across the views, against all places of other surfaces of the image.

    Args:
        first, second: (B, P, dim) of length 1, the same places in two views.
        like, near: (B, P, P) from :func:`surface_likeness`. Like and near attract; like and far are left alone.
        valid: (B, P) places that count.
        temperature: of the similarities.

    Source: Henaff et al., DetCon (arXiv 2103.10957), with soft surfaces in the place of superpixels.
    """
    both = (valid[:, :, None] & valid[:, None, :]).float()
    attract = like * near * both
    attract = attract / attract.sum(dim=2, keepdim=True).clamp_min(1e-6)
    repel = (1 - like) * both
    similarity = first @ second.transpose(1, 2) / temperature
    loss = torch.zeros((), device=first.device)
    for logits in (similarity, similarity.transpose(1, 2)):
        size = logits.exp()
        rivals = (repel * size).sum(dim=2, keepdim=True)
        surprise = (attract * (torch.log(size + rivals + 1e-6) - logits)).sum(dim=2)
        loss = loss + surprise[valid].mean() / 2
    return loss


@torch.no_grad()
def equal_assignment(scores: Tensor, sharpness: float, rounds: int = 3) -> Tensor:
    """(N, K) scores -> (N, K) probabilities: rows sum to 1, columns nearly to N / K.

    Source: Sinkhorn and Knopp's iteration as Cuturi, 2013, uses it for optimal transport.
    """
    plan = torch.exp((scores - scores.max()) / sharpness)
    for _ in range(rounds):
        plan = plan / plan.sum(dim=0, keepdim=True).clamp_min(1e-12) / plan.shape[1]
        plan = plan / plan.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return plan


def affinity(colors: Tensor, places: Tensor, color_reach: float, place_reach: float) -> Tensor:
    """(B, C, P) colours at (B, P, 2) places -> (B, P, P) weights, rows sum to 1: near and of like colour."""
    apart = torch.cdist(places, places).square() / (2 * place_reach**2)
    unlike = torch.cdist(colors, colors).square() / (2 * color_reach**2)
    return torch.softmax(-apart - unlike, dim=-1)


def draw_places(images: Tensor, number: int, plain: float, generator: torch.Generator) -> Tensor:
    """(B, number, 2) places as x, y in -1...1, the likelier the more a place differs from its wider surroundings.

    Drawn evenly, most places would show background, and most prototypes would be spent on it.
    """
    batch, _, height, width = images.shape
    wide = min(height, width) // 4
    around = F.avg_pool2d(F.pad(images, (wide,) * 4, mode="reflect"), (2 * wide + 1, 1), stride=1)
    around = F.avg_pool2d(around, (1, 2 * wide + 1), stride=1)
    contrast = F.avg_pool2d((images - around).square().sum(dim=1, keepdim=True).sqrt(), 3, stride=1, padding=1)
    weight = contrast.flatten(1)
    weight = weight / weight.mean(dim=1, keepdim=True).clamp_min(1e-6) + plain
    cells = torch.multinomial(weight, number, replacement=True, generator=generator)  # (B, number)
    corner = torch.stack([cells % width, cells // width], dim=-1)
    inside = torch.rand(batch, number, 2, generator=generator)
    return (corner + inside) / torch.tensor([width, height]) * 2 - 1


def sample(maps: Tensor, places: Tensor) -> Tensor:
    """(B, C, H, W) at (B, P, 2) places as x, y in -1...1 -> (B, P, C)."""
    found = F.grid_sample(maps, places[:, :, None], align_corners=False, padding_mode="border")
    return found[..., 0].transpose(1, 2)


# --- views ------------------------------------------------------------------------------------------------------


def random_affine(batch: int, generator: torch.Generator) -> Tensor:
    """(B, 2, 3) from places in a view to places in the image: crop of 60...105 % of the side, turn, mirror."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    scale, turn = uniform(0.6, 1.05), uniform(-0.3, 0.3)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    stretch = uniform(0.85, 1.18).sqrt()
    room = (1.05 - scale).clamp_min(0)
    x, y = uniform(-1, 1) * room, uniform(-1, 1) * room
    cos, sin = scale * turn.cos(), scale * turn.sin()
    rows = [torch.stack([cos * mirror * stretch, -sin / stretch, x], dim=1)]
    rows += [torch.stack([sin * mirror * stretch, cos / stretch, y], dim=1)]
    return torch.stack(rows, dim=1)


def apply_affine(affine: Tensor, places: Tensor) -> Tensor:
    """(B, 2, 3), (B, P, 2) -> (B, P, 2)."""
    return places @ affine[:, :, :2].transpose(1, 2) + affine[:, None, :, 2]


def invert_affine(affine: Tensor) -> Tensor:
    inverse = torch.linalg.inv(affine[:, :, :2])
    return torch.cat([inverse, -inverse @ affine[:, :, 2:]], dim=2)


def warp(images: Tensor, affine: Tensor) -> Tensor:
    """The view of each image through its affine map."""
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def recolor(images: Tensor, generator: torch.Generator) -> Tensor:
    """Colours that mean nothing any more: each step touches a random share of the images. (B, 3, H, W) in 0...1."""
    steps: list[tuple[float, Callable[[Tensor, torch.Generator], Tensor]]] = [
        (0.75, _turn_colors),
        (0.35, _fold_colors),
        (0.4, _add_grating),
        (0.25, _blur),
        (0.5, _add_noise),
    ]
    for share, change in steps:
        chosen = torch.rand(len(images), generator=generator) < share
        changed = change(images, generator)
        images = torch.where(chosen[:, None, None, None], changed, images)
    return images.clamp(0, 1)


def _turn_colors(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random rotation or reflection of colour space about grey: hues, channels, lightness change places."""
    turn = torch.linalg.qr(torch.randn(len(images), 3, 3, generator=generator))[0]
    gain = 0.6 + 0.8 * torch.rand(len(images), 1, 1, generator=generator)
    shift = 0.3 * torch.rand(len(images), 3, 1, generator=generator) - 0.15
    turned = (turn * gain) @ (images.flatten(2) - 0.5) + 0.5 + shift
    return turned.view_as(images)


def _fold_colors(images: Tensor, generator: torch.Generator) -> Tensor:
    """Colours through a random smooth map that is not monotone: unlike colours may become alike, and the reverse."""
    mix = 2.5 * torch.randn(len(images), 3, 3, generator=generator)
    phase = 6.3 * torch.rand(len(images), 3, 1, generator=generator)
    return (0.5 + 0.4 * (mix @ images.flatten(2) + phase).sin()).view_as(images)


def _add_grating(images: Tensor, generator: torch.Generator) -> Tensor:
    """Stripes in a random direction, colour and width, over everything: texture means nothing either."""
    batch, _, height, width = images.shape
    angle, frequency, phase, amount = torch.rand(4, batch, 1, 1, generator=generator)
    y = torch.linspace(-1, 1, height)[None, :, None]
    x = torch.linspace(-1, 1, width)[None, None, :]
    along = x * (6.3 * angle).cos() + y * (6.3 * angle).sin()
    wave = (along * (6 + 24 * frequency) + 6.3 * phase).sin()[:, None]
    color = torch.randn(batch, 3, 1, 1, generator=generator)
    return images + 0.15 * amount[:, None] * wave * color


def _blur(images: Tensor, generator: torch.Generator) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def _add_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    amount = 0.08 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return images + amount * torch.randn(images.shape, generator=generator)
