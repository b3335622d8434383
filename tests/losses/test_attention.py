from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attention_cases import NUM_PARTS, make_case
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.testing import assert_close

from partcraft_lit.losses.attention import (
    entropy_attention_loss,
    part_attention_maps,
)


def everything_prompted(**settings):
    """Every part once, so that both policies agree."""
    maps, _, labels = make_case(tokens=NUM_PARTS + 1, **settings)
    return maps, torch.arange(NUM_PARTS + 1).expand(maps.shape[0], -1).contiguous(), labels


def slow_loss(maps, part_ids, labels, num_parts, normalizer, unprompted, eps=1e-6):
    """The definition once more, place by place, in NumPy and double precision."""
    maps, part_ids, labels = maps.double().numpy(), part_ids.numpy(), labels.numpy()
    batch, tokens, height, width = maps.shape
    result = []
    for b in range(batch):
        prompted = sorted({int(part) for part in part_ids[b] if part >= 0})
        terms = []
        for y in range(height):
            for x in range(width):
                label = int(labels[b, y, x])
                if unprompted == "ignore" and label not in prompted:
                    continue
                attention = [
                    sum(maps[b, t, y, x] for t in range(tokens) if part_ids[b, t] == m) for m in range(num_parts + 1)
                ]
                divisor = max(sum(attention), eps) if normalizer == "parts" else 1.0
                for m in prompted if unprompted == "ignore" else range(num_parts + 1):
                    share = min(max(attention[m] / divisor, 0.0), 1.0)
                    hit = share if label == m else 1.0 - share
                    terms.append(-max(math.log(hit), -100.0) if hit > 0 else 100.0)
        result.append(np.mean(terms) if terms else 0.0)
    return torch.tensor(result)


def released_loss(maps, part_ids, labels, num_parts):
    """The released code's steps on whole tensors, with torch's own cross-entropy; one token per part at most."""
    stacked = torch.stack(
        [
            torch.stack(
                [sum(maps[b, t] * (part_ids[b, t] == m) for t in range(maps.shape[1])) for m in range(num_parts + 1)]
            )
            for b in range(len(maps))
        ]
    )
    share = (stacked / stacked.sum(dim=1, keepdim=True).clamp(min=1e-6)).clamp(0, 1)
    masks = functional.one_hot(labels.long(), num_parts + 1).permute(0, 3, 1, 2).float()
    return functional.binary_cross_entropy(share, masks, reduction="none").mean(dim=(1, 2, 3))


# -------------------------------------------------------------------------------------------------- by hand


def test_loss_by_hand():
    # Two parts, two places. Shares of part 0: 0.3 / 0.4 and 0.1 / 0.4; the first place shows part 0, the second part 1.
    maps = torch.tensor([[[[0.3, 0.1]], [[0.1, 0.3]]]])
    labels = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    loss = entropy_attention_loss(maps, torch.tensor([[0, 1]]), labels, num_parts=1)
    assert_close(loss, torch.tensor([-math.log(0.75)]))


def test_softmax_normaliser_by_hand():
    maps = torch.tensor([[[[0.3, 0.1]], [[0.1, 0.3]]]])
    labels = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    loss = entropy_attention_loss(maps, torch.tensor([[0, 1]]), labels, num_parts=1, normalizer="softmax")
    assert_close(loss, torch.tensor([-(math.log(0.3) + math.log(0.9)) / 2]))


def test_a_part_in_the_mask_and_not_in_the_prompt_by_hand():
    # Part 1 fills the second place and has no token. Part 0 is alone, so its share is 1 everywhere.
    maps = torch.tensor([[[[0.3, 0.1]]]])
    part_ids, labels = torch.tensor([[0]]), torch.tensor([[[0, 1]]], dtype=torch.uint8)
    ignoring = entropy_attention_loss(maps, part_ids, labels, num_parts=1)
    assert_close(ignoring, torch.tensor([0.0]))
    released = entropy_attention_loss(maps, part_ids, labels, num_parts=1, unprompted="released")
    assert_close(released, torch.tensor([(100.0 + 100.0) / 4]))  # its own channel, and that of part 0, whose share is 1


# -------------------------------------------------------------------------------------- independent implementation


@pytest.mark.parametrize("unprompted", ["ignore", "released"])
@pytest.mark.parametrize("normalizer", ["parts", "softmax"])
@pytest.mark.parametrize("seed", range(3))
def test_loss_is_that_of_the_slow_definition(seed, normalizer, unprompted):
    case = make_case(seed)
    loss = entropy_attention_loss(*case, NUM_PARTS, normalizer, unprompted)
    assert_close(loss.double(), slow_loss(*case, NUM_PARTS, normalizer, unprompted), rtol=1e-4, atol=1e-5)


def test_released_loss_is_that_of_torchs_cross_entropy():
    maps, _, labels = make_case(tokens=NUM_PARTS)
    part_ids = torch.tensor([[0, 1, 2], [3, 1, 0], [2, -1, -1], [-1, -1, -1]])
    loss = entropy_attention_loss(maps, part_ids, labels, NUM_PARTS, unprompted="released")
    assert_close(loss, released_loss(maps, part_ids, labels, NUM_PARTS), rtol=1e-5, atol=1e-5)
    assert float(loss[2]) > 10  # 100 per place


def test_both_policies_agree_when_every_part_is_prompted():
    case = everything_prompted()
    assert_close(
        entropy_attention_loss(*case, NUM_PARTS), entropy_attention_loss(*case, NUM_PARTS, unprompted="released")
    )


# --------------------------------------------------------------------------------------------------- laws


def test_loss_is_zero_at_the_perfect_answer():
    _, part_ids, labels = everything_prompted()
    maps = functional.one_hot(labels.long(), NUM_PARTS + 1).permute(0, 3, 1, 2) * 0.2
    for unprompted in ("ignore", "released"):
        assert torch.equal(
            entropy_attention_loss(maps, part_ids, labels, NUM_PARTS, unprompted=unprompted), torch.zeros(4)
        )


def test_loss_does_not_depend_on_the_scale_of_the_maps():
    maps, part_ids, labels = make_case()
    assert_close(
        entropy_attention_loss(maps, part_ids, labels, NUM_PARTS),
        entropy_attention_loss(maps * 0.01, part_ids, labels, NUM_PARTS),
    )


@pytest.mark.parametrize("unprompted", ["ignore", "released"])
def test_loss_follows_a_permutation_of_tokens(unprompted):
    maps, part_ids, labels = make_case()
    order = torch.randperm(maps.shape[1], generator=torch.Generator().manual_seed(0))
    assert_close(
        entropy_attention_loss(maps[:, order], part_ids[:, order], labels, NUM_PARTS, unprompted=unprompted),
        entropy_attention_loss(maps, part_ids, labels, NUM_PARTS, unprompted=unprompted),
    )


@pytest.mark.parametrize("unprompted", ["ignore", "released"])
def test_loss_follows_a_renaming_of_parts(unprompted):
    maps, part_ids, labels = make_case()
    renamed = torch.tensor([2, 0, 3, 1, -1])  # -1 picks the last: no token stays no token
    assert_close(
        entropy_attention_loss(maps, renamed[part_ids], renamed[labels.long()], NUM_PARTS, unprompted=unprompted),
        entropy_attention_loss(maps, part_ids, labels, NUM_PARTS, unprompted=unprompted),
    )


def test_a_token_that_occurs_twice_is_summed():
    maps, _, labels = make_case(tokens=3)
    twice = torch.tensor([[0, 1, 1]]).expand(4, -1)
    once = torch.stack([maps[:, 0], maps[:, 1] + maps[:, 2]], dim=1)
    assert_close(
        entropy_attention_loss(maps, twice, labels, NUM_PARTS),
        entropy_attention_loss(once, twice[:, :2], labels, NUM_PARTS),
    )


def test_samples_do_not_touch_each_other():
    maps, part_ids, labels = make_case()
    alone = [
        entropy_attention_loss(maps[b : b + 1], part_ids[b : b + 1], labels[b : b + 1], NUM_PARTS) for b in range(4)
    ]
    assert_close(entropy_attention_loss(maps, part_ids, labels, NUM_PARTS), torch.cat(alone))


def test_missing_tokens_are_not_read():
    maps, part_ids, labels = make_case()
    assert (part_ids < 0).any()
    noisy = torch.where((part_ids < 0)[..., None, None], 123.0, maps)
    assert torch.equal(
        entropy_attention_loss(noisy, part_ids, labels, NUM_PARTS),
        entropy_attention_loss(maps, part_ids, labels, NUM_PARTS),
    )


def test_ignored_places_and_absent_parts_change_nothing():
    maps, part_ids, labels = make_case()
    part_ids = torch.where(part_ids == 3, 2, part_ids)  # part 3 is in the masks and in no prompt
    loss = entropy_attention_loss(maps, part_ids, labels, NUM_PARTS)
    unlike = torch.where((labels == 3)[:, None], maps.flip(1), maps)
    assert_close(entropy_attention_loss(unlike, part_ids, labels, NUM_PARTS), loss)
    assert_close(entropy_attention_loss(maps, part_ids, torch.where(labels == 3, 255, labels), NUM_PARTS), loss)
    assert_close(entropy_attention_loss(maps, part_ids, labels, num_parts=7), loss)  # parts that no image shows


@pytest.mark.parametrize("unprompted", ["ignore", "released"])
def test_nothing_to_score_is_zero_with_a_finite_gradient(unprompted):
    maps, _, labels = make_case()
    maps.requires_grad_()
    loss = entropy_attention_loss(maps, torch.full((4, 5), -1), labels, NUM_PARTS, unprompted=unprompted)
    if unprompted == "ignore":
        assert torch.equal(loss, torch.zeros(4))
    loss.sum().backward()
    assert torch.equal(maps.grad, torch.zeros_like(maps))


def test_no_tokens_at_all():
    loss = entropy_attention_loss(torch.zeros(2, 0, 4, 4), torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 4, 4), 2)
    assert torch.equal(loss, torch.zeros(2))


# --------------------------------------------------------------------------------------------- gradients, precision


@pytest.mark.parametrize("unprompted", ["ignore", "released"])
@pytest.mark.parametrize("normalizer", ["parts", "softmax"])
def test_gradcheck(normalizer, unprompted):
    maps, part_ids, labels = make_case(size=3, dtype=torch.float64)
    maps = (maps + 0.01).requires_grad_()

    def loss(values):
        return entropy_attention_loss(values, part_ids, labels, NUM_PARTS, normalizer, unprompted)

    assert torch.autograd.gradcheck(loss, (maps,))


@pytest.mark.parametrize("normalizer", ["parts", "softmax"])
def test_a_step_against_the_gradient_moves_attention_to_the_own_part(normalizer):
    maps, part_ids, labels = everything_prompted()
    maps.requires_grad_()
    entropy_attention_loss(maps, part_ids, labels, NUM_PARTS, normalizer).sum().backward()
    own = functional.one_hot(labels.long(), NUM_PARTS + 1).permute(0, 3, 1, 2).bool()
    assert (maps.grad[own] < 0).all()
    if normalizer == "softmax":  # with "parts", attention to one rival lowers the share of another
        assert (maps.grad[~own] > 0).all()


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 1e-20])
@pytest.mark.parametrize("unprompted", ["ignore", "released"])
def test_gradients_stay_finite_next_to_zero(value, unprompted):
    maps, part_ids, labels = everything_prompted()
    maps = torch.where(maps < 0.1, value, maps).requires_grad_()
    loss = entropy_attention_loss(maps, part_ids, labels, NUM_PARTS, unprompted=unprompted)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 1e-12])
def test_gradients_stay_finite_where_no_part_gets_attention(value):
    maps, part_ids, labels = everything_prompted()
    maps = torch.full_like(maps, value).requires_grad_()
    loss = entropy_attention_loss(maps, part_ids, labels, NUM_PARTS)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert maps.grad.isfinite().all()
    assert_close(loss.detach().double(), slow_loss(maps.detach(), part_ids, labels, NUM_PARTS, "parts", "ignore"))


def test_a_share_that_rounds_to_one_still_has_a_value_and_a_gradient():
    # In float32 1 - share would be 0 here: a loss of 100 and no way back.
    maps = torch.tensor([[[[0.9]], [[1e-9]]]], requires_grad=True)
    loss = entropy_attention_loss(maps, torch.tensor([[0, 1]]), torch.ones(1, 1, 1, dtype=torch.uint8), num_parts=1)
    assert_close(loss, torch.tensor([-math.log(1e-9 / 0.9)]))
    loss.sum().backward()
    assert float(maps.grad[0, 1]) < 0 < float(maps.grad[0, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_float32_from_halves_and_under_autocast(dtype):
    maps, part_ids, labels = make_case()
    halves = maps.to(dtype)
    expected = entropy_attention_loss(halves.float(), part_ids, labels, NUM_PARTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = entropy_attention_loss(halves, part_ids, labels, NUM_PARTS)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("unprompted", ["ignore", "released"])
def test_no_value_is_read_back_from_the_device(unprompted):
    # Fake tensors have no values: anything that would wait for the device, or branch on data, is an error.
    with FakeTensorMode() as mode:
        case = [mode.from_tensor(tensor) for tensor in make_case()]
        assert entropy_attention_loss(*case, NUM_PARTS, unprompted=unprompted).shape == (4,)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs CUDA, where torch's own cross-entropy refuses autocast"
)
def test_loss_under_cuda_autocast():
    maps, part_ids, labels = (tensor.cuda() for tensor in make_case())
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = entropy_attention_loss(maps, part_ids, labels, NUM_PARTS)
    assert_close(loss.cpu(), entropy_attention_loss(*make_case(), NUM_PARTS))


# ---------------------------------------------------------------------------------------------------- pieces


def test_part_maps_and_who_is_prompted():
    maps = torch.arange(1.0, 5.0).view(1, 4, 1, 1)
    part_ids = torch.tensor([[2, 0, 2, -1]])
    summed, prompted = part_attention_maps(maps, part_ids, num_parts=3)
    assert summed.flatten().tolist() == [2.0, 0.0, 4.0, 0.0]
    assert prompted.tolist() == [[True, False, True, False]]


def test_maps_and_masks_of_unlike_sizes_meet_at_the_maps():
    maps, part_ids, labels = make_case()
    large = labels.repeat_interleave(4, dim=1).repeat_interleave(2, dim=2)
    assert torch.equal(
        entropy_attention_loss(maps, part_ids, large, NUM_PARTS),
        entropy_attention_loss(maps, part_ids, labels, NUM_PARTS),
    )


def test_errors():
    maps, part_ids, labels = make_case()
    with pytest.raises(ValueError, match=r"one part id per token, got \(4, 5, 6, 6\) and part_ids \(4, 4\)"):
        entropy_attention_loss(maps, part_ids[:, :4], labels, NUM_PARTS)
    with pytest.raises(ValueError, match=r"label_map must be \(batch, height, width\) .* got \(3, 6, 6\)"):
        entropy_attention_loss(maps, part_ids, labels[:3], NUM_PARTS)
    with pytest.raises(ValueError, match=r"normalizer must be one of .*got 'max'"):
        entropy_attention_loss(maps, part_ids, labels, NUM_PARTS, normalizer="max")
    with pytest.raises(ValueError, match=r"unprompted must be one of .*got 'skip'"):
        entropy_attention_loss(maps, part_ids, labels, NUM_PARTS, unprompted="skip")


def test_balanced_over_parts_by_hand() -> None:
    """Three places of part 0 and one of part 1, attention one half everywhere: log 2 for each part and place."""
    label_map = torch.tensor([[[0, 0], [0, 1]]])
    even = torch.full((1, 2, 2, 2), 0.25)
    part_ids = torch.tensor([[0, 1]])
    for balance in ("none", "area", "hardest"):
        value = entropy_attention_loss(even, part_ids, label_map, 1, balance=balance)
        assert_close(value, torch.tensor([0.6931472]))
    wrong = even.clone()
    wrong[0, :, 1, 1] = torch.tensor([0.3, 0.1])  # the one place of part 1 looks at part 0: shares 3/4 and 1/4
    hard, easy = -torch.tensor(0.25).log(), torch.tensor(2.0).log()
    expected = {
        "none": (3 * easy + hard) / 4,
        "area": (easy + hard) / 2,
        "hardest": (easy**2 + hard**2) / (easy + hard),
    }
    for balance, value in expected.items():
        assert_close(entropy_attention_loss(wrong, part_ids, label_map, 1, balance=balance), value[None])


def test_balance_leaves_parts_outside_the_prompt_out() -> None:
    label_map = torch.tensor([[[0, 2], [0, 1]]])
    maps, part_ids = torch.full((1, 2, 2, 2), 0.25), torch.tensor([[0, 1]])
    other = torch.tensor([[[0, 255], [0, 1]]])
    values = [entropy_attention_loss(maps, part_ids, labels, 2, balance="area") for labels in (label_map, other)]
    assert torch.equal(*values)
    with pytest.raises(ValueError, match=r"balance='area' leaves out parts"):
        entropy_attention_loss(maps, part_ids, label_map, 2, unprompted="released", balance="area")
