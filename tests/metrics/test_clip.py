"""CLIP scores with a real, tiny CLIP of random weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close

from partcraft_lit.core.errors import UserError
from partcraft_lit.metrics.clip import (
    ClipEncoder,
    ClipScore,
    ClipTextSimilarity,
    load_clip,
)
from partcraft_lit.metrics.features import View

TEXTS = ["a photo of a bird", "blue dog", "a painting of a robot on the nice striped tail of a cat"]


@pytest.fixture(scope="module")
def encoder(tiny_clip) -> ClipEncoder:
    return ClipEncoder(*tiny_clip, id="clip-tiny")


def test_the_view_is_pillows(pictures):
    image = pictures(1)[0].repeat(1, 6, 8)  # (3, 36, 40)
    wanted = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((18, 16), Image.Resampling.BICUBIC)
    wanted = torch.from_numpy(np.array(wanted)).permute(2, 0, 1)[:, :, 1:17].float()
    found = View(16, 16, (0.5, 0.25, 0.0), (0.5, 1.0, 2.0))(image[None])[0]
    back = (found * torch.tensor([0.5, 1.0, 2.0])[:, None, None] + torch.tensor([0.5, 0.25, 0])[:, None, None]) * 255
    assert float((back - wanted).abs().max()) <= 1.01


def test_vectors_are_those_of_the_model(encoder, pictures):
    images = pictures(3)
    text = encoder.tokenizer(TEXTS, padding=True, return_tensors="pt")
    pixels = encoder._view(images)
    with torch.no_grad():
        whole = encoder.model(input_ids=text["input_ids"], pixel_values=pixels, attention_mask=text["attention_mask"])
    assert_close(F.normalize(encoder(images), dim=1), whole.image_embeds)
    assert_close(F.normalize(encoder.texts(TEXTS), dim=1), whole.text_embeds)
    one_by_one = ClipEncoder(encoder.model, encoder.tokenizer, "clip-tiny", batch_size=1)
    assert_close(one_by_one(images), encoder(images), atol=1e-5, rtol=1e-4)
    assert_close(one_by_one.texts(TEXTS), encoder.texts(TEXTS), atol=1e-5, rtol=1e-4)


def test_long_texts_are_cut(encoder):
    assert_close(encoder.texts(["bird " * 200]), encoder.texts(["bird " * 300]))


def test_text_similarity_and_clip_score(encoder, pictures):
    images = pictures(3)
    seen, read = (F.normalize(v.double(), dim=1) for v in (encoder(images), encoder.texts(TEXTS)))
    metric = ClipTextSimilarity(encoder)
    metric.update(images[:1], TEXTS[:1])
    metric.update(encoder(images)[1:], TEXTS[1:])
    assert_close(metric.compute(), (seen * read).sum(dim=1).mean())
    score = ClipScore(encoder)
    score.update(images, TEXTS)
    prefixed = F.normalize(encoder.texts([f"A photo depicts {text}" for text in TEXTS]).double(), dim=1)
    assert_close(score.compute(), 2.5 * (seen * prefixed).sum(dim=1).clamp_min(0).mean())
    assert (metric.key, score.key) == ("clip-t@clip-tiny", "clip-score@clip-tiny")
    with pytest.raises(ValueError, match="3 images, 2 texts"):
        metric.update(images, TEXTS[:2])


def test_an_opposite_picture_scores_zero_and_not_less(encoder):
    against = -encoder.texts([ClipScore.prefix + TEXTS[0]])
    assert float(ClipScore(encoder).scores(against, TEXTS[:1])) == 0
    assert float(ClipTextSimilarity(encoder).scores(-encoder.texts(TEXTS[:1]), TEXTS[:1])) == pytest.approx(-1)


def test_two_processes_agree_with_one(encoder, pictures, two_processes):
    features = encoder(pictures(3))
    whole = ClipTextSimilarity(encoder)
    whole.update(features, TEXTS)
    read = encoder.texts(TEXTS)

    class Read:  # the texts are encoded here: a forked process had better not start a network's threads
        id = "read"

        def texts(self, texts):
            return torch.stack([read[TEXTS.index(text)] for text in texts])

    def work(rank):
        metric = ClipTextSimilarity(Read())
        metric.update(features[rank::2], TEXTS[rank::2])
        return metric.compute()

    for found in two_processes(work):
        assert_close(found, whole.compute())


def test_loading_from_a_folder(tiny_clip, encoder, tmp_path, pictures):
    model, tokenizer = tiny_clip
    model.save_pretrained(tmp_path / "tiny")
    with pytest.raises(UserError, match="has no tokenizer that fits"):
        load_clip(str(tmp_path / "tiny"))
    tokenizer.save_pretrained(tmp_path / "tiny")
    loaded = load_clip(str(tmp_path / "tiny"))
    assert loaded.id == "tiny"
    assert_close(loaded(pictures(2)), encoder(pictures(2)))
    assert_close(loaded.texts(TEXTS), encoder.texts(TEXTS))


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match=r"known name of a CLIP model\. Did you mean 'clip_base32'"):
        load_clip("clip_base3")
    with pytest.raises(
        UserError, match=r"'openai/clip-vit-base-patch32' \(a CLIP model\) could not be loaded.*hf downl"
    ):
        load_clip("clip_base32")
    with pytest.raises(UserError, match="does not say what the folder holds"):
        load_clip(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="of type 'bert', but 'clip' is wanted"):
        load_clip(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(UserError, match="could not be read as a CLIP model"):
        load_clip(str(tmp_path))
