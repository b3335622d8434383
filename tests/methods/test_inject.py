"""Part vectors behind the text encoder: what they replace, what trains, what is cached, what cannot be exported."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.backbones.prompt_cache import PromptCache
from partcraft_lit.core.errors import UserError

AFTER = "method.tokens.inject=after"
FILL = "method.tokens.fill=bird"  # the tiny vocabulary knows it


@pytest.fixture
def module(build):
    return build("method=partcraft", AFTER, FILL, "mapper.hidden=16")


def test_the_encoder_reads_the_fill_word_and_the_vectors_replace_its_states(module):
    tokens = module.method.tokenize(["a photo of a <head:1> red <wing:2>"])
    tokenizer = module.backbone.tokenizers[0]
    assert tokenizer.convert_ids_to_tokens(tokens.input_ids[0][0, 5:8].tolist()) == ["bird</w>", "red</w>", "bird</w>"]
    vectors = module.method.part_vectors(tokens)
    hidden = module.backbone.encode_prompts(tokens, vectors).encoder_hidden_states
    plain = module.backbone.encode_prompts(module.backbone.plain_tokens(["a photo of a bird red bird"]), None)
    assert torch.equal(hidden[0, [5, 7]], vectors[0])
    others = [place for place in range(77) if place not in (5, 7)]
    assert_close(hidden[0, others], plain.encoder_hidden_states[0, others])


def test_no_gradient_passes_through_the_encoder_and_all_that_trains_gets_one(module, batch_of):
    calls = []
    encoder = module.backbone.text_encoders[0]
    encoder.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    batch = batch_of(module, ["a photo of a <head:1>", "<wing:2> bird"])
    step = module.forward_step(batch)
    (step.model_pred - step.target).square().mean().backward()
    assert calls == [False, False], "each prompt alone, without gradients"
    assert module.method.mapper.codes.grad.abs().sum() > 0
    module.forward_step(batch)
    assert len(calls) == 2, "the cache knows both prompts"


def test_a_batch_is_encoded_as_each_prompt_alone(module):
    """To the bit: a run that resumes has an empty cache."""
    prompts = ["a photo of a <head:1>", "<wing:2> bird", "a red dog"]
    tokens = module.method.tokenize(prompts)
    vectors = module.method.part_vectors(tokens)
    together = module.backbone.encode_prompts(tokens, vectors).encoder_hidden_states
    module.backbone._prompts.clear()
    alone = module.method.tokenize(prompts[1:2])
    hidden = module.backbone.encode_prompts(alone, vectors[1:2, :1]).encoder_hidden_states
    assert torch.equal(hidden[0], together[1])


def test_old_prompts_leave_a_full_cache(module):
    backbone = module.backbone
    cache = PromptCache(capacity=2 * 77 * 32 * 4)
    tokens = backbone.plain_tokens(["a red dog", "a bird", "a blue cat", "a red dog"])
    first = cache.encode(tokens, lambda row: backbone.encode_text(row, None))
    assert len(first.encoder_hidden_states) == 4 and len(cache) == 3, "those of the batch stay"
    cache.encode(backbone.plain_tokens(["a bird"]), lambda row: backbone.encode_text(row, None))
    assert len(cache) == 2


def test_samples_and_baked_tokens(module):
    baked = module.method.bake()
    assert baked.shape[-1] == sum(module.backbone.context_widths)
    tokens = module.method.tokenize(["<head:1>"])
    assert_close(module.method.part_vectors(tokens)[0, 0], baked[1, 1])
    weighed, plain = module.generate(["a <head:1>*2 bird", "a <head:1> bird"], [0, 0], steps=1)
    assert not torch.equal(weighed, plain)


def test_first_vectors_are_the_states_of_words(build):
    module = build("method=textual_inversion", "method.tokens.init=[bird]", AFTER, FILL)
    assert_close(module.method.bake()[1, 0], module.backbone.word_states(["bird"])[0])


def test_norms_are_those_of_common_words(build):
    module = build("method=partcraft", "mapper.norm_match=true", AFTER, FILL)
    norm = module.method.bake()[1, 0].norm()
    assert_close(norm, module.backbone.word_states(["bird", "dog"]).norm(dim=-1).mean(), rtol=0.2, atol=0)


def test_both_encoders_of_sdxl(settings_of, fresh_backbone_xl):
    from partcraft_lit.methods.method import MethodContext
    from partcraft_lit.tokens.grammar import PartVocabulary

    settings, vocabulary = settings_of("method=partcraft", AFTER, FILL), PartVocabulary(("background", "head"), (3, 3))
    method = settings.method.build(
        MethodContext(vocabulary, fresh_backbone_xl, "bird", settings.mapper, settings.lora, 0)
    )
    method.prepare(fresh_backbone_xl)
    tokens = method.tokenize(["a <head:1>"])
    vectors = method.part_vectors(tokens)
    conditioning = fresh_backbone_xl.encode_prompts(tokens, vectors)
    assert torch.equal(conditioning.encoder_hidden_states[0, 2], vectors[0, 0])
    plain = fresh_backbone_xl.encode_prompts(fresh_backbone_xl.plain_tokens(["a bird"]), None)
    assert_close(conditioning.pooled_prompt_embeds, plain.pooled_prompt_embeds)
    assert torch.equal(conditioning.time_ids, plain.time_ids)


def test_what_does_not_go_together(settings_of, tiny_tokenizer):
    settings = settings_of("method=dreambooth", "method.text_encoder=true", AFTER)
    with pytest.raises(UserError, match=r"inject=after runs the text encoder without gradients"):
        settings.method.check(settings, "bird")
    settings = settings_of("method=partcraft", AFTER, "method.tokens.fill=xyzxyz")
    with pytest.raises(UserError, match=r"'xyzxyz' is \d tokens to this model"):
        settings.method.check_words([tiny_tokenizer], "bird")


def test_vectors_are_needed(module):
    with pytest.raises(ValueError, match="The prompts hold part tokens, so their vectors are needed"):
        module.backbone.encode_prompts(module.method.tokenize(["<head:1>"]), None)
