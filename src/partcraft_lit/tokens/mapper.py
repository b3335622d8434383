"""The token mapper: from (part, code) to the vector that takes the place of a token's embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import torch_generator


class TokenMapper(nn.Module):
    """``f(E[m, k] + pe[m])``: an embedding per code, a position per part, and a small network shared by all.

    Weights are drawn from ``seed`` alone, each table from its own stream: mappers that differ in depth start from the
    same embeddings, and nothing that happened before matters. There is no row for an absent part.

    Source: PartCraft (arXiv 2407.04604), "bottleneck encoder". Differs: the position is optional (the paper has none,
    the release has one), no row for absent parts, norm matching.
    """

    def __init__(
        self,
        num_parts: int,
        num_codes: int,
        widths: Sequence[int],
        layers: int = 2,
        position: bool = True,
        norm_match: float | Sequence[float] | None = None,
        hidden: int | None = None,
        init_std: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Draws the weights.

        Args:
            num_parts: foreground parts (M); the background is one more.
            num_codes: codes of the part that has most (K).
            widths: width of the token embeddings of each text encoder; the output is their sum wide (D).
            layers: linear layers, with ReLU between them; 2 is the paper's, 0 is the identity, which is plain textual
                inversion.
            position: whether every part has a learned vector of its own beside those of its codes.
            norm_match: length that each vector is brought to, one per text encoder or one for all; usually
                ``mean_norm`` of the encoder's embeddings. None leaves the length free.
            hidden: width between the layers; D if None.
            init_std: standard deviation of the embeddings and positions at the start. The default is the release's;
                the embeddings of CLIP's own tokens have about 0.015.
            seed: of the weights.

        Raises:
            UserError: if a size or a length is out of range.
        """
        super().__init__()
        self.num_parts, self.num_codes, self.widths = num_parts, num_codes, tuple(int(width) for width in widths)
        self._check_sizes(layers, hidden, init_std)
        self.norm_match = _norms(norm_match, len(self.widths))
        width = sum(self.widths)
        self.codes = nn.Parameter(_normal((num_parts + 1, num_codes, width), init_std, seed, "codes"))
        self.position = nn.Parameter(_normal((num_parts + 1, width), init_std, seed, "position")) if position else None
        sizes = [width, *[hidden or width] * (layers - 1), width] if layers else []
        self.network = nn.Sequential()
        for index in range(layers):
            if index > 0:
                self.network.append(nn.ReLU())
            self.network.append(_linear(sizes[index], sizes[index + 1], seed, index))

    def forward(self, part_ids: Tensor, code_ids: Tensor) -> Tensor:
        """Vectors of part tokens.

        Computed in the weights' precision, also under autocast, so that a vector is the same in training and baked.

        Args:
            part_ids: (B, T) parts 0...M, -1 where there is no token.
            code_ids: (B, T) codes 0...K-1, -1 where there is no token.

        Returns:
            (B, T, D), zeros where there is no token. A code of K or more is an index error of the device.
        """
        used = (part_ids >= 0) & (code_ids >= 0)
        rows = part_ids * self.num_codes + code_ids
        # A code that is too large would be a row of the next part: send it off the end of the table instead.
        rows = rows.masked_fill(code_ids >= self.num_codes, self.codes.shape[0] * self.num_codes)
        with torch.autocast(part_ids.device.type, enabled=False):
            # The gradient of functional.embedding adds up repeated rows in a fixed order; that of indexing does not.
            vectors = functional.embedding(rows.masked_fill(~used, 0), self.codes.flatten(0, 1))
            if self.position is not None:
                vectors = vectors + functional.embedding(part_ids.clamp_min(0), self.position)
            vectors = self._matched(self.network(vectors))
        return vectors.masked_fill(~used[..., None], 0.0)

    @torch.no_grad()
    def bake(self) -> Tensor:
        """(M + 1, K, D): the vector of every code of every part, ready to be an ordinary embedding."""
        parts, codes = (torch.arange(size, device=self.codes.device) for size in self.codes.shape[:2])
        grid = torch.meshgrid(parts, codes, indexing="ij")
        return self(*grid)

    def extra_repr(self) -> str:
        names = ("num_parts", "num_codes", "widths", "norm_match")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _matched(self, vectors: Tensor) -> Tensor:
        """The vectors at the lengths that are wanted of each text encoder's share."""
        if self.norm_match is None:
            return vectors
        shares = zip(vectors.split(self.widths, dim=-1), self.norm_match, strict=True)
        return torch.cat([functional.normalize(share, dim=-1) * norm for share, norm in shares], dim=-1)

    def _check_sizes(self, layers: int, hidden: int | None, init_std: float) -> None:
        wanted = {
            "num_parts": (self.num_parts, 1),
            "num_codes": (self.num_codes, 1),
            "layers": (layers, 0),
            "hidden": (1 if hidden is None else hidden, 1),
            "widths": (min(self.widths, default=0), 1),
        }
        for name, (value, least) in wanted.items():
            if value < least:
                raise UserError(f"The token mapper's {name} must be {least} or more, got {value}.")
        if not init_std > 0:
            raise UserError(f"The token mapper's init_std must be above 0, got {init_std}.")


def mean_norm(embeddings: Tensor) -> float:
    """Mean length of the rows of an embedding table (rows, width); what ``norm_match`` usually is."""
    return float(embeddings.detach().float().norm(dim=-1).mean())


def _norms(norm_match: float | Sequence[float] | None, encoders: int) -> tuple[float, ...] | None:
    if norm_match is None:
        return None
    norms = tuple(norm_match) if isinstance(norm_match, Sequence) else (norm_match,) * encoders
    if len(norms) != encoders or any(not 0 < norm < math.inf for norm in norms):
        raise UserError(f"norm_match is one length above 0 for each of the {encoders} text encoders, got {norm_match}.")
    return tuple(float(norm) for norm in norms)


def _normal(shape: tuple[int, ...], std: float, seed: int, name: str) -> Tensor:
    return torch.randn(shape, generator=torch_generator(seed, "mapper", name)) * std


def _linear(inputs: int, outputs: int, seed: int, index: int) -> nn.Linear:
    """A linear layer at torch's usual distribution, drawn from a stream of its own."""
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    generator, bound = torch_generator(seed, "mapper", "linear", index), 1.0 / math.sqrt(inputs)
    for parameter in (linear.weight, linear.bias):
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return linear
