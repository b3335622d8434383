"""DisenDiff's protocol on a miniature copy of its data."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.visualization import save_png
from partcraft_lit.metrics.alignment import ConceptAlignment, plain_text, read_concepts, score_concepts
from partcraft_lit.metrics.clip import ClipEncoder

PROMPTS = {
    "global": "photo of <new1> cat and <mew2> dog\n\n<cat> beside <dog>",
    "subject1": "a blue <new1> cat\n",
    "subject2": "<new2> dog \nclean <new2> dog",
}


@pytest.fixture(scope="module")
def encoder(tiny_clip) -> ClipEncoder:
    return ClipEncoder(*tiny_clip, id="clip-tiny")


@pytest.fixture
def folder(tmp_path, pictures):
    path = tmp_path / "cat_dog"
    for index, (suffix, prompts) in enumerate(PROMPTS.items()):
        path.mkdir(exist_ok=True)
        (path / f"prompts_{suffix}.txt").write_text(prompts)
        save_png(path / f"eval_{suffix}.png", pictures(1, index)[0].repeat(1, 2, 2 + index))
    return path


def test_placeholders_go_and_nouns_stay():
    assert plain_text("Photo of a <new1> cat, <mew2> dog ", ["cat", "dog"]) == "Photo of a cat, dog"
    assert plain_text("<chair> and <lamp> in snow", ["chair", "lamp"]) == "chair and lamp in snow"
    assert plain_text("<new1>") == ""


def test_a_folder_is_read(folder):
    found = read_concepts(folder)
    assert (found.name, found.nouns, list(found.subsets)) == (
        "cat_dog",
        ("cat", "dog"),
        ["combined", "concept1", "concept2"],
    )
    assert found.subsets["combined"].prompts == ("photo of <new1> cat and <mew2> dog", "<cat> beside <dog>")
    assert found.subsets["combined"].texts == ("photo of cat and dog", "cat beside dog")
    assert found.subsets["concept2"].texts == ("dog", "clean dog")
    assert found.subsets["concept2"].reference.shape == (3, 12, 20)


def test_scores_by_hand(folder, encoder, pictures):
    concepts = read_concepts(folder)
    metric = ConceptAlignment(concepts, encoder)
    shown: dict[str, torch.Tensor] = {}

    def generate(prompt, seeds):
        images = pictures(len(seeds), seeds[0] % 2**31)
        shown[prompt] = torch.cat([shown[prompt], images]) if prompt in shown else images
        return images

    found = score_concepts(metric, generate, samples=3, batch_size=2)
    assert all(len(images) == 3 for images in shown.values())
    image, text = {}, {}
    for name, subset in concepts.subsets.items():
        reference = F.normalize(encoder(subset.reference[None]), dim=1)
        rows = [F.normalize(encoder(shown[prompt]), dim=1) for prompt in subset.prompts]
        read = F.normalize(encoder.texts([f"A photo depicts {text}" for text in subset.texts]), dim=1)
        image[name] = float(torch.stack([(row @ reference.T).mean() for row in rows]).mean())
        text[name] = float(torch.stack([2.5 * (r @ t).clamp_min(0).mean() for r, t in zip(rows, read)]).mean())
    for kind, values in (("image", image), ("text", text)):
        assert found[f"{kind}/mean"] == pytest.approx(sum(values.values()) / 3, abs=1e-5)
        for name, value in values.items():
            assert found[f"{kind}/{name}"] == pytest.approx(value, abs=1e-5)


def test_the_reference_itself_is_aligned(folder, encoder):
    concepts = read_concepts(folder)
    metric = ConceptAlignment(concepts, encoder)
    for name, subset in concepts.subsets.items():
        metric.update(subset.reference[None], name, 0)
    found = metric.compute()
    assert_close(found["image/mean"], torch.tensor(1.0, dtype=torch.float64))
    metric.reset()
    metric.update(concepts.subsets["concept1"].reference[None], "concept1", 0)
    assert metric.compute()["image/concept2"].isnan() and not metric.compute()["text/concept1"].isnan()


def test_seeds_belong_to_the_picture(folder, encoder, pictures):
    seen: list[list[int]] = [[], []]
    for run, batch_size in enumerate((1, 3)):

        def generate(prompt, seeds, run=run):
            seen[run] += seeds
            return pictures(len(seeds))

        score_concepts(ConceptAlignment(read_concepts(folder), encoder), generate, samples=3, batch_size=batch_size)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 15


class Colours:
    """Features without a network: a forked process had better not start one's threads."""

    id, dim = "colours", 3

    def __call__(self, images):
        return images.float().mean(dim=(2, 3))

    def texts(self, texts):
        return torch.tensor([[len(text), 1.0, 2.0] for text in texts])


def test_two_processes_agree_with_one(folder, pictures, two_processes):
    concepts = read_concepts(folder)

    def work(rank, step=2):
        metric = ConceptAlignment(concepts, Colours())
        for index, (name, subset) in enumerate(concepts.subsets.items()):
            for prompt in range(len(subset.prompts)):
                metric.update(pictures(5, index)[rank::step], name, prompt)
        return metric.compute()

    expected = work(0, 1)
    assert not any(value.isnan() for value in expected.values())
    for found in two_processes(work):
        assert_close(found, expected)


def test_mistakes_are_named(folder, encoder):
    with pytest.raises(UserError, match=r"no folder .*dog_cat\. Known: cat_dog"):
        read_concepts(folder.parent / "dog_cat")
    metric = ConceptAlignment(read_concepts(folder), encoder)
    with pytest.raises(ValueError, match=r"no prompt 1 of 'concept1' in cat_dog: it has combined 0\.\.\.1, concept1 0"):
        metric.update(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "concept1", 1)
    (folder / "prompts_subject2.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"prompts_subject2\.txt holds no prompts"):
        read_concepts(folder)
    (folder / "eval_subject1.png").unlink()
    with pytest.raises(UserError, match=r"set of 2 concepts \(cat, dog\): it lacks one picture eval_subject1\.\*"):
        read_concepts(folder)
