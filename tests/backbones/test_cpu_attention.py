"""Attention by the shorter way is attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from partcraft_lit.backbones.cpu_attention import MAX_EXPLICIT_KEYS, CpuAttnProcessor, attention


def states(keys: int, dtype: torch.dtype, places: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, places, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("keys", (1, 5, MAX_EXPLICIT_KEYS, MAX_EXPLICIT_KEYS + 1))
def test_values_and_gradients_in_bfloat16_are_those_of_exact_attention(keys):
    given = states(keys, torch.bfloat16)
    exact = [state.detach().double().requires_grad_() for state in given]
    query, key, value = exact
    expected = (query @ key.transpose(-1, -2) * 8**-0.5).softmax(dim=-1) @ value
    found = attention(*given)
    assert found.dtype == torch.bfloat16
    assert_close(found.double(), expected, atol=0.02, rtol=0.02)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad((expected * weights).sum(), exact)
    for gradient, want in zip(torch.autograd.grad((found * weights.bfloat16()).sum(), given), wanted, strict=True):
        assert_close(gradient.double(), want, atol=0.06, rtol=0.05)


@pytest.mark.parametrize(
    ("keys", "dtype"), ((5, torch.float32), (5, torch.float16), (MAX_EXPLICIT_KEYS + 1, torch.bfloat16))
)
def test_elsewhere_it_is_the_fused_kernel_to_the_bit(keys, dtype):
    given = states(keys, dtype)
    assert torch.equal(attention(*given), F.scaled_dot_product_attention(*given))


def test_a_mask_is_added_to_the_scores():
    given = states(5, torch.bfloat16)
    mask = torch.where(torch.arange(5) == 2, -1e4, 0.0).bfloat16().expand(2, 1, 6, 5)
    assert torch.equal(attention(*given, mask), F.scaled_dot_product_attention(*given, attn_mask=mask))


def test_a_backbone_attends_by_it_everywhere(tiny_backbone):
    assert all(isinstance(own, CpuAttnProcessor) for own in tiny_backbone.unet.attn_processors.values())
