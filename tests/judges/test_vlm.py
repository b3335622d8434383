"""A vision-language model of random weights is asked, and its first token read."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from parts_in_view import comparison, view
from torch.testing import assert_close

from partcraft_lit.core.errors import UserError
from partcraft_lit.judges.chat_models import answer_tokens
from partcraft_lit.judges.vlm import QUESTIONS, load_vlm

RED, BLUE = view((200, 0, 0)), view((0, 0, 200))
SMALL = {"min_pixels": 256, "max_pixels": 1024, "dtype": "float32"}


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "vlm")


@pytest.mark.parametrize("shown", ["crops", "whole"])
def test_the_answer_is_read_off_the_first_token(tiny_vlm, shown):
    judge = load_vlm(str(tiny_vlm), view=shown, batch_size=3, **SMALL)
    questions = [comparison(RED, BLUE), comparison(RED, RED, name="long_tail"), comparison(BLUE, RED)]
    scores = judge(questions)
    assert scores.dtype == torch.float64 and bool(((scores > 0) & (scores < 1)).all())
    assert len(set(scores.tolist())) == 3
    one_by_one = load_vlm(str(tiny_vlm), view=shown, batch_size=1, **SMALL)
    assert_close(torch.cat([one_by_one([question]) for question in questions]), scores, atol=1e-5, rtol=1e-4)


def test_the_score_is_that_of_the_model_asked_by_hand(tiny_vlm):
    from transformers import Qwen3VLForConditionalGeneration

    judge = load_vlm(str(tiny_vlm), view="whole", **SMALL)
    asked = comparison(RED, BLUE)
    images, text = judge._images(asked), judge._text(asked)
    assert text == QUESTIONS["whole"].replace("{part}", "wing").replace("{noun}", "bird")
    processor = judge._chat.processor
    places = 2 * "<|vision_start|><|image_pad|><|vision_end|>"
    prompt = f"<|im_start|>user\n{places}{text}<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(text=[prompt], images=images, return_tensors="pt")
    model = Qwen3VLForConditionalGeneration.from_pretrained(tiny_vlm, dtype=torch.float32).eval()
    with torch.no_grad():
        chances = model(**inputs).logits[0, -1].double().softmax(dim=0)
    yes, no = (
        sum(float(chances[processor.tokenizer.convert_tokens_to_ids(form)]) for form in forms)
        for forms in (("yes", "Yes"), ("no", "No"))
    )
    assert float(judge([asked])) == pytest.approx(yes / (yes + no), rel=1e-5)


def test_a_crop_needs_the_part_and_a_whole_image_does_not(tiny_vlm):
    elsewhere = view((0, 0, 200), part=2)
    questions = [comparison(RED, elsewhere), comparison(elsewhere, RED)]
    assert load_vlm(str(tiny_vlm), **SMALL)(questions).isnan().tolist() == [True, True]
    assert load_vlm(str(tiny_vlm), view="whole", **SMALL)(questions).isnan().tolist() == [False, True]


def test_the_hash_is_of_the_files_and_the_settings(tiny_vlm, tmp_path):
    first = load_vlm(str(tiny_vlm), **SMALL)
    other = copied(tiny_vlm, tmp_path)
    assert load_vlm(str(other), **SMALL).hash == first.hash
    assert load_vlm(str(other), fade=0.5, **SMALL).hash != first.hash
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(bytes(weights))
    assert load_vlm(str(other), **SMALL).hash != first.hash


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "lacks weights.*model.safetensors"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "processor .* cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "processor .* cannot be loaded|no token for"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
        (
            lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "clip"})),
            "answers no questions",
        ),
        (lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "qwen9"})), "could not be read"),
        (lambda folder: (folder / "config.json").unlink(), "could not be read"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})
            ),
            "1 of 2 files",
        ),
    ],
)
def test_what_is_missing_is_told_before_weights_are_loaded(tiny_vlm, tmp_path, spoil, message, monkeypatch):
    folder = copied(tiny_vlm, tmp_path)
    spoil(folder)
    monkeypatch.setattr("partcraft_lit.judges.chat_models.load_network", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match=message):
        load_vlm(str(folder), **SMALL)


def test_settings_that_make_no_sense_are_refused(tiny_vlm):
    with pytest.raises(UserError, match=r"does not name \{part\}"):
        load_vlm(str(tiny_vlm), question="Is it the same?")
    with pytest.raises(UserError, match="above max_pixels"):
        load_vlm(str(tiny_vlm), min_pixels=100, max_pixels=10)
    with pytest.raises(UserError, match="qwen3_vl_8b"):
        load_vlm("qwen3_vl_8")


def test_a_tokenizer_that_spells_its_answers_is_refused():
    with pytest.raises(UserError, match="no token for 'yes'"):
        answer_tokens(SimpleNamespace(encode=lambda text, add_special_tokens: list(text.encode())), "yes")
    ids = {"yes": [1], " yes": [2], "Yes": [3], " Yes": [2], "YES": [4, 5], " YES": [6, 7]}
    tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: ids[text])
    assert answer_tokens(tokenizer, "yes") == [1, 2, 3]
