"""What is changed in the parts of a training sample: pasted, swapped, dropped, degraded.

Images of a species show its parts together, and nothing in a plain sample says which token stands for which of them.
Each change here tears parts and tokens apart in another way, in a share of the samples; none is the plain sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import ABSENT
from partcraft_lit.data.recomposition import View, recompose
from partcraft_lit.data.settings import DataSettings, MixSettings
from partcraft_lit.losses.settings import LossSettings

#: Exponent of the decay of ``degrade``: the strength stays until the end of training is near.
_DECAY = 32


@dataclass(frozen=True)
class PartMixing:
    """The changes, in this order. Every one draws from a stream of its own, so each can be switched on alone.

    Args:
        settings: shares of samples.
        total_samples: of the whole training, for what decays.
    """

    settings: MixSettings
    total_samples: int

    def __call__(
        self,
        view: View,
        sample_id: int,
        candidates: Callable[[int, int], View],
        codes: Tensor,
        generator: Callable[[str], torch.Generator],
    ) -> View:
        """Changes one sample.

        Args:
            view: the plain sample.
            sample_id: its number.
            candidates: (replacement, number of the candidate) -> another image in a random crop.
            codes: (N, M + 1) codes of all images.
            generator: purpose -> the sample's random stream for it.
        """
        mix = self.settings
        if _chosen(mix.recompose, generator("recompose?")):

            def others(turn: int) -> Sequence[View]:
                return [candidates(turn, number) for number in range(mix.candidates)]

            view = recompose(view, others, mix.most_parts, mix.seam, generator("recompose"))
        if _chosen(mix.swap, generator("swap?")):
            view = swap_codes(view, codes, generator("swap"))
        if _chosen(mix.drop, generator("drop?")):
            view = drop_parts(view, generator("drop"))
        if mix.degrade:
            view = degrade(view, self.strength(sample_id), generator("degrade"))
        return view

    def strength(self, sample_id: int) -> float:
        """Standard deviation of the noise of ``degrade``, which decays to 0 at the end of training.

        Source: MagicTailor (arXiv 2410.13370), eq. 4, with its exponent. Differs: no.
        """
        return self.settings.degrade * (1.0 - min(1.0, sample_id / self.total_samples) ** _DECAY)


def check_mixing(data: DataSettings, loss: LossSettings) -> None:
    """Checks that samples can be changed as the settings ask.

    Raises:
        UserError: if latents that are to be changed or read are encoded in the training step, or are of scaled views;
            or if nothing of a sample without a caption would count.
    """
    if data.crops == "encode" and (data.mix.recompose or data.mix.degrade or loss.predictor):
        raise UserError(
            "data.mix.recompose, data.mix.degrade and loss.predictor work on cached latents, and data.crops=encode has "
            "none before the training step. Use data.crops=cut, or a number of cached crops."
        )
    if data.mix.is_used and data.scale_variants:
        raise UserError(
            f"data.scale_variants={data.scale_variants} and data.mix both say which latents count in the loss. Set "
            "data.scale_variants=0, or all of data.mix to 0."
        )
    if data.empty_captions and loss.region == "prompted":
        raise UserError(
            f"data.empty_captions={data.empty_captions}: with loss.region=prompted only the parts of the caption "
            "count, and an empty one has none. Set loss.region=all, or data.empty_captions=0."
        )


def swap_codes(view: View, codes: Tensor, generator: torch.Generator) -> View:
    """A counterfactual caption: tokens of some parts are those of other images, and the places of these do not count.

    What counts is drawn whatever the other tokens are, so the model learns that a token stands for its part alone.
    Nothing is pasted, so all that counts is real.

    Args:
        view: the sample.
        codes: (N, M + 1) codes of all images.
        generator: draws how many parts keep their token, which, and the others' tokens.
    """
    kept = _kept_parts(view, generator)
    changed, counts = view.codes.clone(), view.counts
    donors = torch.randint(len(codes), (codes.shape[1],), generator=generator).tolist()
    for part, donor in enumerate(donors):
        if view.codes[part] == ABSENT or part in kept:
            continue
        code = codes[donor, part]
        if code != ABSENT and code != view.codes[part]:
            changed[part] = code
            counts = counts & (view.label_map != part)
    return replace(view, codes=changed, counts=counts)


def drop_parts(view: View, generator: torch.Generator) -> View:
    """Leaves some parts out of the caption; their places do not count.

    Source: union sampling of Break-a-Scene (arXiv 2305.16311), section 3.
    """
    kept = _kept_parts(view, generator)
    codes, counts = view.codes.clone(), view.counts
    for part in range(len(codes)):
        if codes[part] != ABSENT and part not in kept:
            codes[part] = ABSENT
            counts = counts & (view.label_map != part)
    return replace(view, codes=codes, counts=counts)


def degrade(view: View, strength: float, generator: torch.Generator) -> View:
    """Adds noise to latents that do not count: what lies beside the parts is seen dimly instead of not at all."""
    noise = strength * torch.randn(view.latents.shape, generator=generator)
    return replace(view, latents=torch.where(view.counts, view.latents, view.latents + noise))


def _chosen(share: float, generator: torch.Generator) -> bool:
    return share > 0 and bool(torch.rand((), generator=generator) < share)


def _kept_parts(view: View, generator: torch.Generator) -> list[int]:
    """k of the n parts that a view shows, with k uniform in 1...n - 1 (all of one)."""
    shown = (view.codes != ABSENT).nonzero().flatten()
    order = torch.randperm(len(shown), generator=generator)
    share = float(torch.rand((), generator=generator, dtype=torch.float64))
    number = 1 + int(share * max(1, len(shown) - 1))
    kept: list[int] = shown[order[:number]].tolist()
    return kept
