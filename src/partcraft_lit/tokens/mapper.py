"""The token mapper: (part, code) -> token embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.tokens.feature_codes import CodeFeatures, starting_codes


class TokenMapper(nn.Module):
    """``f(E[m, k] + pe[m])``: an embedding per code, one per part, and a shared MLP.

    Each table is initialised from a random stream of its own, so mappers of different depth start from the same
    embeddings. Absent parts have no row.

    Source: PartCraft (arXiv 2407.04604), "bottleneck encoder". Differs: the part embedding is optional (the
    paper has none, the release has one), no row for absent parts, norm matching, initialisation from features.
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
        features: CodeFeatures | None = None,
        seed: int = 0,
    ) -> None:
        """Initialises the weights.

        Args:
            num_parts: foreground parts (M); the background is one more.
            num_codes: largest number of codes of a part (K).
            widths: embedding width of each text encoder; their sum is the output width (D).
            layers: linear layers with ReLU between; 2 in the paper, 0 is textual inversion.
            position: whether each part has an embedding that is added to those of its codes.
            norm_match: norm of the output vectors, one per text encoder or one for all; usually ``mean_norm`` of the
                encoder's embeddings. None leaves norms free.
            hidden: hidden width; D if None.
            init_std: initial standard deviation of the embeddings. The default is the release's; CLIP's own embeddings
                have about 0.015.
            features: of the codes, to initialise embeddings from; None for random ones.
            seed: of the weights.

        Raises:
            UserError: for a size or norm out of range.
        """
        super().__init__()
        self.num_parts, self.num_codes, self.widths = num_parts, num_codes, tuple(int(width) for width in widths)
        self._check_sizes(layers, hidden, init_std)
        self.norm_match = _norms(norm_match, len(self.widths))
        width = sum(self.widths)
        self.codes = nn.Parameter(_normal((num_parts + 1, num_codes, width), init_std, seed, "codes"))
        self.position = nn.Parameter(_normal((num_parts + 1, width), init_std, seed, "position")) if position else None
        if features is not None:
            self._start_from(starting_codes(features, width, init_std, seed))
        sizes = [width, *[hidden or width] * (layers - 1), width] if layers else []
        self.network = nn.Sequential()
        for index in range(layers):
            if index > 0:
                self.network.append(nn.ReLU())
            self.network.append(_linear(sizes[index], sizes[index + 1], seed, index))

    def forward(self, part_ids: Tensor, code_ids: Tensor) -> Tensor:
        """Embeddings of part tokens, in the weights' precision also under autocast, as ``bake`` has them.

        Args:
            part_ids: (B, T) parts 0...M, -1 where unused.
            code_ids: (B, T) codes 0...K-1, -1 where unused.

        Returns:
            (B, T, D), zeros where unused. A code of K or more is an index error of the device.
        """
        used = (part_ids >= 0) & (code_ids >= 0)
        rows = part_ids * self.num_codes + code_ids
        # A code of K or more would be a row of the next part: an index beyond the table raises instead.
        rows = rows.masked_fill(code_ids >= self.num_codes, self.codes.shape[0] * self.num_codes)
        with torch.autocast(part_ids.device.type, enabled=False):
            # Deterministic gradient for repeated rows, unlike indexing.
            vectors = functional.embedding(rows.masked_fill(~used, 0), self.codes.flatten(0, 1))
            if self.position is not None:
                vectors = vectors + functional.embedding(part_ids.clamp_min(0), self.position)
            vectors = self._matched(self.network(vectors))
        return vectors.masked_fill(~used[..., None], 0.0)

    @torch.no_grad()
    def bake(self) -> Tensor:
        """(M + 1, K, D) embeddings of all codes of all parts."""
        parts, codes = (torch.arange(size, device=self.codes.device) for size in self.codes.shape[:2])
        baked: Tensor = self(*torch.meshgrid(parts, codes, indexing="ij"))
        return baked

    def extra_repr(self) -> str:
        names = ("num_parts", "num_codes", "widths", "norm_match")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    @torch.no_grad()
    def _start_from(self, tables: Sequence[Tensor]) -> None:
        """Embeddings of codes with features; those without keep their random ones."""
        for part, table in enumerate(tables):
            shown = table.abs().sum(dim=1) > 0
            self.codes[part, : len(table)][shown] = table[shown]

    def _matched(self, vectors: Tensor) -> Tensor:
        """Vectors rescaled to ``norm_match`` per text encoder."""
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
    """Mean norm of the rows of an embedding table (rows, width)."""
    return float(embeddings.detach().float().norm(dim=-1).mean())


def _norms(norm_match: float | Sequence[float] | None, encoders: int) -> tuple[float, ...] | None:
    if norm_match is None:
        return None
    norms = tuple(norm_match) if isinstance(norm_match, Sequence) else (norm_match,) * encoders
    if len(norms) != encoders or any(not 0 < norm < math.inf for norm in norms):
        raise UserError(f"norm_match is one norm above 0 for each of the {encoders} text encoders, got {norm_match}.")
    return tuple(float(norm) for norm in norms)


def _normal(shape: tuple[int, ...], std: float, seed: int, name: str) -> Tensor:
    return torch.randn(shape, generator=torch_generator(seed, "mapper", name)) * std


def _linear(inputs: int, outputs: int, seed: int, index: int) -> nn.Linear:
    """A linear layer with torch's default initialisation from a stream of its own."""
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    generator, bound = torch_generator(seed, "mapper", "linear", index), 1.0 / math.sqrt(inputs)
    for parameter in (linear.weight, linear.bias):
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return linear
