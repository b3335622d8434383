"""What the tests of attention losses share: random cases, and laws that every one of them keeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.testing import assert_close

NUM_PARTS = 3
Loss = Callable[..., Tensor]


def make_case(seed=0, batch=4, tokens=5, size=6, num_parts=NUM_PARTS, dtype=torch.float32):
    """Prompts with missing, repeated and padded tokens; label maps with every part."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(batch, tokens, size, size, generator=generator, dtype=dtype) / tokens
    part_ids = torch.randint(-1, num_parts + 1, (batch, tokens), generator=generator)
    labels = torch.randint(0, num_parts + 1, (batch, size, size), generator=generator, dtype=torch.uint8)
    return maps, part_ids, labels


def perfect_case(scale=0.2):
    """Every part once, and its map a multiple of its mask."""
    _, _, labels = make_case()
    maps = functional.one_hot(labels.long(), NUM_PARTS + 1).permute(0, 3, 1, 2) * scale
    return maps, torch.arange(NUM_PARTS + 1).expand(4, -1).contiguous(), labels


def check_laws(loss: Loss) -> None:
    """What holds for every attention loss that plugs in."""
    maps, part_ids, labels = make_case()
    value = loss(maps, part_ids, labels, NUM_PARTS)
    assert value.shape == (4,) and value.dtype == torch.float32 and value.isfinite().all()

    order = torch.randperm(maps.shape[1], generator=torch.Generator().manual_seed(0))
    assert_close(loss(maps[:, order], part_ids[:, order], labels, NUM_PARTS), value)
    renamed = torch.tensor([2, 0, 3, 1, -1])  # -1 picks the last: no token stays no token
    assert_close(loss(maps, renamed[part_ids], renamed[labels.long()], NUM_PARTS), value)
    alone = [loss(maps[b : b + 1], part_ids[b : b + 1], labels[b : b + 1], NUM_PARTS) for b in range(4)]
    assert_close(torch.cat(alone), value)
    assert_close(loss(maps * 0.01, part_ids, labels, NUM_PARTS), value, rtol=1e-3, atol=1e-4)
    assert_close(loss(maps, part_ids, labels, NUM_PARTS + 4), value)  # parts that no image shows

    unread = torch.where((part_ids < 0)[..., None, None], 123.0, maps)
    assert torch.equal(loss(unread, part_ids, labels, NUM_PARTS), value)
    none = torch.full_like(part_ids, -1)
    assert torch.equal(loss(maps, none, labels, NUM_PARTS), torch.zeros(4))
    empty = torch.zeros(2, 0, 4, 4)
    assert torch.equal(loss(empty, empty[:, :, 0, 0].long(), torch.zeros(2, 4, 4), 2), torch.zeros(2))


def check_precision(loss: Loss) -> None:
    """Float32 from halves and under autocast; no value is read back from the device; gradients are right and finite."""
    maps, part_ids, labels = make_case()
    halves = maps.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(halves, part_ids, labels, NUM_PARTS)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(halves.float(), part_ids, labels, NUM_PARTS))
    # Fake tensors have no values: anything that would wait for the device, or branch on data, is an error.
    with FakeTensorMode() as mode:
        assert loss(*[mode.from_tensor(tensor) for tensor in make_case()], NUM_PARTS).shape == (4,)

    maps, part_ids, labels = make_case(size=3, dtype=torch.float64)
    maps = (maps + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: loss(values, part_ids, labels, NUM_PARTS), (maps,))
    for level in (0.0, 1e-38, 0.3):
        flat = torch.full((4, 5, 6, 6), level, requires_grad=True)
        value = loss(flat, *make_case()[1:], NUM_PARTS)
        value.sum().backward()
        assert value.isfinite().all() and flat.grad.isfinite().all(), level
