from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from partcraft_lit.core.errors import UserError
from partcraft_lit.tokens.mapper import TokenMapper, mean_norm

PART_IDS = torch.tensor([[0, 2, 2, -1], [1, -1, -1, -1]])
CODE_IDS = torch.tensor([[4, 0, 3, -1], [1, -1, -1, -1]])


def mapper(**settings):
    return TokenMapper(**{"num_parts": 2, "num_codes": 5, "widths": (6, 10), **settings})


@pytest.mark.parametrize("position", [False, True])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_vectors_are_the_formula_of_the_paper(layers, position):
    tokens = mapper(layers=layers, position=position)
    vectors = tokens(PART_IDS, CODE_IDS)
    assert vectors.shape == (2, 4, 16)
    linears = [module for module in tokens.network if isinstance(module, torch.nn.Linear)]
    assert len(linears) == layers
    for b, t in (
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
    ):  # written out: y = f(E[m, k] + pe[m]), ReLU between, none after the last
        part, code = int(PART_IDS[b, t]), int(CODE_IDS[b, t])
        expected = tokens.codes[part, code]
        if position:
            expected = expected + tokens.position[part]
        for index, linear in enumerate(linears):
            expected = linear.weight @ expected + linear.bias
            if index < layers - 1:
                expected = expected.clamp(min=0)
        assert_close(vectors[b, t], expected)


def test_unused_places_are_zero_and_give_no_gradient():
    tokens = mapper()
    vectors = tokens(PART_IDS, CODE_IDS)
    assert (vectors[PART_IDS < 0] == 0).all()
    vectors.square().sum().backward()
    rows = {
        (part, code)
        for part, code in zip(PART_IDS.flatten().tolist(), CODE_IDS.flatten().tolist(), strict=True)
        if part >= 0
    }
    touched = {tuple(row) for row in tokens.codes.grad.abs().sum(-1).nonzero().tolist()}
    assert touched == rows


def test_a_code_that_occurs_twice_gathers_both_gradients():
    tokens = mapper(layers=0, position=False)
    tokens(torch.tensor([[1, 1, 0]]), torch.tensor([[2, 2, 2]])).sum().backward()
    assert_close(tokens.codes.grad[1, 2], torch.full((16,), 2.0))
    assert_close(tokens.codes.grad[0, 2], torch.full((16,), 1.0))


def test_gradients_of_repeated_codes_are_the_same_bits_each_time():
    tokens = mapper(widths=(768,), layers=0)
    generator = torch.Generator().manual_seed(0)
    codes, weights = (
        torch.randint(0, 5, (16, 64), generator=generator),
        torch.randn(16, 64, 768, generator=generator),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        sums = [
            torch.autograd.grad((tokens(torch.ones_like(codes), codes) * weights).sum(), tokens.codes)[0]
            for _ in range(8)
        ]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(sums[0], other) for other in sums[1:])


def test_no_value_is_read_back_from_the_device():
    tokens = mapper(norm_match=0.4)
    # Fake tensors have no values: anything that would wait for the device, or branch on data, is an error.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        vectors = tokens(mode.from_tensor(PART_IDS), mode.from_tensor(CODE_IDS))
    assert vectors.shape == (2, 4, 16)


def test_no_tokens_give_no_vectors():
    empty = torch.empty(3, 0, dtype=torch.long)
    assert mapper()(empty, empty).shape == (3, 0, 16)


def test_a_code_beyond_the_table_is_an_error_not_the_next_part():
    with pytest.raises(IndexError):
        mapper()(torch.tensor([[0]]), torch.tensor([[5]]))


@pytest.mark.parametrize("norm_match", [None, 0.4, (0.4, 0.7)])
@pytest.mark.parametrize("layers", [0, 2])
def test_baked_vectors_are_those_of_training(layers, norm_match):
    tokens = mapper(layers=layers, norm_match=norm_match)
    baked = tokens.bake()
    assert baked.shape == (3, 5, 16)
    assert not baked.requires_grad
    assert_close(baked[PART_IDS, CODE_IDS][PART_IDS >= 0], tokens(PART_IDS, CODE_IDS).detach()[PART_IDS >= 0])


def test_norm_matching_sets_the_length_of_each_encoders_share():
    free, matched = mapper(), mapper(norm_match=[0.4, 0.7])
    vectors, lengths = free.bake(), matched.bake()
    assert_close(lengths[..., :6].norm(dim=-1), torch.full((3, 5), 0.4))
    assert_close(lengths[..., 6:].norm(dim=-1), torch.full((3, 5), 0.7))
    assert_close(torch.cosine_similarity(vectors[..., :6], lengths[..., :6], dim=-1), torch.ones(3, 5))
    assert_close(mapper(norm_match=0.5).bake()[..., :6].norm(dim=-1), torch.full((3, 5), 0.5))


def test_vectors_keep_their_precision_under_autocast():
    tokens = mapper(norm_match=0.4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = tokens(PART_IDS, CODE_IDS)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, tokens(PART_IDS, CODE_IDS))


def test_gradients_are_right():
    tokens = mapper(widths=(3, 2), hidden=4, norm_match=0.4).double()

    def vectors(codes, position):
        parameters = {**dict(tokens.named_parameters()), "codes": codes, "position": position}
        return torch.func.functional_call(tokens, parameters, (PART_IDS, CODE_IDS))

    assert torch.autograd.gradcheck(vectors, (tokens.codes, tokens.position))


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = mapper(layers=2)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second, deeper = mapper(layers=2), mapper(layers=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)
    assert torch.equal(deeper.codes, first.codes)
    assert torch.equal(deeper.network[0].weight, first.network[0].weight)
    assert not torch.equal(mapper(seed=1).codes, first.codes)
    assert not torch.equal(first.network[0].weight, first.network[2].weight)


@pytest.mark.parametrize(("layers", "norm"), [(1, 23), (2, 9), (3, 4)])
def test_lengths_at_the_start_are_those_of_the_release(layers, norm):
    # Known from a simulation of the released mapper at the width of SD 1.5: about 23, 9 and 4.
    tokens = TokenMapper(num_parts=2, num_codes=16, widths=(768,), layers=layers)
    assert float(tokens.bake().norm(dim=-1).mean()) == pytest.approx(norm, rel=0.1)


def test_parameters_have_the_sizes_of_the_paper():
    count = sum(p.numel() for p in TokenMapper(num_parts=5, num_codes=256, widths=(768,)).parameters())
    assert count == 6 * 256 * 768 + 6 * 768 + 2 * (768 * 768 + 768)


def test_hidden_width_and_spread_are_settings():
    narrow = mapper(hidden=3, layers=3, init_std=0.01)
    assert [tuple(m.weight.shape) for m in narrow.network if isinstance(m, torch.nn.Linear)] == [
        (3, 16),
        (3, 3),
        (16, 3),
    ]
    assert float(narrow.codes.detach().std()) == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_parts": 0}, "num_parts must be 1 or more, got 0"),
        ({"num_codes": 0}, "num_codes must be 1 or more, got 0"),
        ({"layers": -1}, "layers must be 0 or more, got -1"),
        ({"hidden": 0}, "hidden must be 1 or more, got 0"),
        ({"widths": ()}, "widths must be 1 or more"),
        ({"init_std": 0.0}, "init_std must be above 0"),
        ({"norm_match": (0.4,)}, "one norm above 0 for each of the 2 text encoders"),
        ({"norm_match": 0.0}, "one norm above 0"),
        ({"norm_match": float("nan")}, "one norm above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        mapper(**settings)


def test_mean_norm():
    table = torch.tensor([[3.0, 4.0], [0.0, 1.0]], requires_grad=True)
    assert mean_norm(table) == 3.0
