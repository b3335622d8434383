"""Scores of concepts: what is asked for, and that the numbers are those of the published protocol."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from partcraft_lit.core.visualization import save_png
from partcraft_lit.data.concept_prompts import ConceptSet, ConceptSubset
from partcraft_lit.evaluation.concepts import ConceptScorer, grammar_prompt
from partcraft_lit.metrics.clip import ClipEncoder
from partcraft_lit.metrics.features import PixelFeatures
from partcraft_lit.world.creatures import Creatures
from partcraft_lit.world.creatures_pair import CreaturesPair
from partcraft_lit.world.truth import right_colors

NAMES = ("background", "bird", "beast")


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("photo of <new1> cat and <mew2> dog", "photo of <cat:0> cat and <dog:0> dog"),
        ("<dog> beside <Cat>", "<dog:0> dog beside <cat:0> cat"),
        ("a cat, <new7>", "a cat,"),
    ],
)
def test_placeholders_become_tokens(published, ours):
    assert grammar_prompt(published, ("cat", "dog"), ("background", "dog", "cat")) == ours


def test_a_concept_without_a_part_of_its_name_is_the_part_in_its_place():
    assert grammar_prompt("<new2> dog", ("cat", "dog"), ("background", "left", "right")) == "<right:0> dog"


def test_what_is_asked_of_drawn_creatures():
    source = CreaturesPair(bird=3, beast=4, seed=1)
    scorer = ConceptScorer.of(source, NAMES, [PixelFeatures(8)], samples=2, seed=0)
    assert {name: request.prompts for name, request in scorer.requests.items()} == {
        "combined": ("a photo of <bird:0> bird and <beast:0> beast",),
        "concept1": ("a photo of <bird:0> bird",),
        "concept2": ("a photo of <beast:0> beast",),
    }
    assert scorer.requests["concept1"].texts == ("a photo of bird",)
    assert [request.right_colors is None for request in scorer.requests.values()] == [True, False, True]


def test_nothing_is_asked_without_concepts_pictures_or_networks():
    pair, features = CreaturesPair(), [PixelFeatures(8)]
    assert ConceptScorer.of(Creatures(species=2, images_per_species=1), NAMES, features, 2, 0) is None
    assert ConceptScorer.of(pair, NAMES, features, 0, 0) is None
    assert ConceptScorer.of(pair, NAMES, [], 2, 0) is None
    assert ConceptScorer.of(pair, ("background", "head"), features, 2, 0) is None


def test_the_truth_scores_as_high_as_the_truth(tmp_path):
    source = CreaturesPair(bird=3, beast=4, seed=1)
    scorer = ConceptScorer.of(source, NAMES, [PixelFeatures(8)], samples=4, seed=0)
    found = {}
    for creature in (0, 1):
        paths = [tmp_path / f"{creature}-{number}.png" for number in range(4)]
        for number, path in enumerate(paths):
            save_png(path, source.another(100 + number, creature))
        found[creature] = scorer.metrics("concept1", scorer.read("concept1", paths, tmp_path))
    (key,) = [key for key in found[0] if key.startswith("image@")]
    truth = found[0][f"truth_{key}"]
    assert found[0][key] > found[1][key]
    assert abs(found[0][key] - truth) < 0.1
    assert found[0]["color_accuracy"] > 0.8 > found[1]["color_accuracy"]


def test_colours_of_another_bird_are_wrong():
    one, other = CreaturesPair(bird=3, seed=1), CreaturesPair(bird=8, seed=1)
    pictures = [one.another(number, 0) for number in range(4)]
    assert right_colors(pictures, one.looks[0]).mean() > right_colors(pictures, other.looks[0]).mean()


class _Photograph:
    """One image with prompts, as ``multi_concept`` gives."""

    class_names = ("cat_dog",)

    def __init__(self, found: ConceptSet) -> None:
        self._found = found

    def concepts(self, index: int) -> ConceptSet:
        return self._found


def test_means_are_those_of_the_published_protocol(tmp_path, tiny_backbone):
    from transformers import CLIPConfig, CLIPModel

    tokenizer = tiny_backbone.tokenizers[0]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**sizes, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 77}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(
            CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 16}, projection_dim=12)
        )
    encoder = ClipEncoder(model, tokenizer, id="tiny")
    pair = CreaturesPair()
    subsets = {
        name: ConceptSubset((f"<new1> cat {name}", "a <new1> cat"), (f"cat {name}", "a cat"), pair.another(0))
        for name in ("combined", "concept1", "concept2")
    }
    found = ConceptSet("cat_dog", ("cat", "dog"), subsets)
    scorer = ConceptScorer.of(_Photograph(found), ("background", "cat", "dog"), [encoder], samples=2, seed=0)
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        save_png(path, pair.another(number))
    rows = scorer.read("concept1", paths, tmp_path)
    assert [row["prompt"] for row in rows] == ["<cat:0> cat concept1"] * 2 + ["a <cat:0> cat"] * 2
    numbers = scorer.metrics("concept1", rows)
    seen = F.normalize(encoder(torch.stack([pair.another(number) for number in range(4)])), dim=1)
    reference = F.normalize(encoder(subsets["concept1"].reference[None]), dim=1)
    texts = F.normalize(encoder.texts(["A photo depicts cat concept1"] * 2 + ["A photo depicts a cat"] * 2), dim=1)
    assert_close(numbers["image@tiny"], float((seen @ reference.T).mean()), rtol=0, atol=1e-6)
    clip_score = 2.5 * (seen * texts).sum(dim=1).clamp_min(0)
    assert_close(numbers["text@tiny"], float(clip_score.mean()), rtol=0, atol=1e-6)
