"""Merging runs of Custom Diffusion through the command line, and what the merged run is good for."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.backbones.trainable_weights import cross_kv
from partcraft_lit.commands import merge
from partcraft_lit.config import compose as config
from partcraft_lit.config import factories, targets
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.runs import stored
from partcraft_lit.runs.assembly import load_trained
from partcraft_lit.runs.settings import TrainSettings

CUSTOM = ("method=custom_diffusion", "method.nouns=true", "method.captions.background=false", "prior.images=2")
MORE = ("prior.steps=1", "data.scale_variants=0", "trainer.max_steps=2", "optim.unet_lr=0.01", "optim.mapper_lr=0.1")
ONE = ("parts.M=1", "parts.K=1", "parts.source=discover", "dataset.class_noun=bird", "prior.prompt=a photo of a bird")


@pytest.fixture(scope="module")
def merged(new_workshop, plain):
    """A workshop with a run for each of two nouns, those runs, and the run that they were merged to."""
    workshop = new_workshop()
    runs = [workshop.train(*CUSTOM, *MORE, *ONE, *plain, f"parts.names=[{noun}]") for noun in ("bird", "robot")]
    ended = workshop("merge", f"runs=[{runs[0].name},{runs[1]}]")
    assert ended.code == 0, ended.out
    (folder,) = set(workshop.runs) - set(runs)
    return workshop, runs, folder


def module_of(run):
    values = stored.values_of_run(run)
    backbone = targets.make(values["backbone"], "backbone")
    return load_trained(factories.settings_of(TrainSettings, values), run, backbone, class_noun="")[0]


def states_of(module, prompt):
    tokens = module.method.tokenize([prompt])
    place = int(tokens.part_positions[0, 0])
    states = module.backbone.encode_prompts(tokens, module.method.part_vectors(tokens)).encoder_hidden_states
    return states[0, place : place + 2]


@pytest.mark.slow
@torch.no_grad()
def test_each_concept_is_what_its_own_run_learned(merged):
    _, runs, folder = merged
    whole = module_of(folder)
    weights = dict(cross_kv(whole.backbone.unet))
    for run, noun in zip(runs, ("bird", "robot"), strict=True):
        alone = module_of(run)
        prompt = f"a photo of a <{noun}:0> {noun}"
        texts = states_of(alone, prompt)
        assert torch.equal(states_of(whole, prompt), texts)  # the token is the same
        for name, weight in cross_kv(alone.backbone.unet):
            assert_close(texts @ weights[name].T, texts @ weight.T, rtol=1e-4, atol=1e-5)
            assert not torch.equal(weights[name], weight)
    facts = json.loads((folder / "merge.json").read_text())
    assert facts["conditions"] == 4 and facts["captions"] == 27 * 40 and facts["largest_error"] < 1e-4
    assert facts["runs"] == [run.name for run in runs] and facts["concepts"] == ["bird", "robot"]


@pytest.mark.slow
def test_the_merged_run_is_a_run(merged, tmp_path):
    workshop, _, folder = merged
    assert rundir.find_run("latest", folder.parent) == folder
    both = "prompt=a photo of a <bird:0> bird and <robot:0> robot"
    ended = workshop("generate", both, "num_images=1", "sample.steps=1", f"output_dir={tmp_path / 'pictures'}")
    assert ended.code == 0 and (tmp_path / "pictures" / "000000.png").is_file(), ended.out
    few = ("eval.reconstructions=1", "eval.compositions=0", "eval.ceiling_images=0", "sample.steps=1")
    ended = workshop("evaluate", f"run={folder.name}", *few)
    assert ended.code == 0 and "EMR" in ended.out, ended.out
    ended = workshop("export", f"run={folder.name}", "sample.steps=1", f"output_dir={tmp_path / 'files'}")
    assert ended.code == 0, ended.out
    facts = json.loads((tmp_path / "files" / "export.json").read_text())
    assert all(found["ok"] for found in facts["checks"].values()) and facts["layers"] > 0
    assert [part["token"] for part in facts["parts"]][1:] == ["<bird:0>", "<robot:0>"]
    assert "LoRA of rank 4 on" in (tmp_path / "files" / "README.md").read_text()  # two texts of two words


@pytest.mark.slow
def test_merging_keeps_the_captions_of_a_file_and_scores_with_another_data_set(merged, tmp_path):
    workshop, trained, folder = merged
    (tmp_path / "captions.txt").write_text("# ordinary\na photo of a bird\n\na robot on a hill\n")
    pair = ("dataset=creatures_pair", "dataset.image_size=32", f"captions_file={tmp_path / 'captions.txt'}")
    ended = workshop("merge", f"runs=[{trained[0].name},{trained[1].name}]", *pair, f"output_dir={tmp_path / 'both'}")
    assert ended.code == 0, ended.out
    facts = json.loads((tmp_path / "both" / "merge.json").read_text())
    assert facts["captions"] == 2 and facts["largest_error"] < 1e-4
    other, one = module_of(tmp_path / "both"), module_of(folder)
    for name, weight in cross_kv(one.backbone.unet):  # the same concepts, other captions
        assert not torch.equal(dict(cross_kv(other.backbone.unet))[name], weight)
    assert stored.values_of_run(tmp_path / "both")["dataset"]["_target_"].endswith("CreaturesPair")
    few = ("eval.reconstructions=1", "eval.compositions=0", "eval.ceiling_images=0", "sample.steps=1")
    ended = workshop("evaluate", f"run={tmp_path / 'both'}", *few)
    assert ended.code == 0 and "EMR" in ended.out, ended.out


@pytest.mark.slow
def test_what_cannot_be_merged(merged, tiny_run, tmp_path):
    workshop, (first, second), folder = merged
    for named, message in (
        (f"[{first.name}]", "wanted are two runs or more"),
        (f"[{first.name},{first.name}]", "is named twice"),
        (f"[{first.name},nowhere]", "run=nowhere: no such run"),
        (f"[{first.name},{tiny_run}]", "was trained by method=partcraft with method.unet=lora"),
        (f"[{first.name},{folder.name}]", "Two of the runs call a part 'bird'"),
    ):
        ended = workshop("merge", f"runs={named}")
        assert ended.code == 2 and message in ended.out, ended.out
    other = tmp_path / "other"
    shutil.copytree(second, other)
    for path in (other / "checkpoints").glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        torch.save({**content, "frozen": {"backbone": "sd15", "hash": "f" * 64}}, path)
        path.with_name(path.name + ".json").unlink(missing_ok=True)
    ended = workshop("merge", f"runs=[{first.name},{other}]")
    assert ended.code == 2 and "were trained on different models" in ended.out, ended.out
    shutil.rmtree(other)
    shutil.copytree(second, other)
    for path in (other / "checkpoints").glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        name = next(name for name in content["state_dict"] if name.endswith("to_k.weight"))
        content["state_dict"][name] = content["state_dict"][name][:-1]
        torch.save(content, path)
        path.with_name(path.name + ".json").unlink(missing_ok=True)
    ended = workshop("merge", f"runs=[{first.name},{other}]")
    assert ended.code == 2 and "it is damaged or of another model" in ended.out, ended.out
    ended = workshop("merge", f"runs=[{first.name},{second.name}]", f"captions_file={tmp_path / 'none.txt'}")
    assert ended.code == 2 and "there is no such file" in ended.out
    (tmp_path / "empty.txt").write_text("# nothing\n")
    ended = workshop("merge", f"runs=[{first.name},{second.name}]", f"captions_file={tmp_path / 'empty.txt'}")
    assert ended.code == 2 and "holds no text" in ended.out and not list(tmp_path.glob("both*"))
    ended = workshop("merge")
    assert ended.code == 2 and "runs" in ended.out


@pytest.mark.parametrize("choice", ["method.tokens.inject=after", "backbone=prx"])
def test_what_stands_behind_or_is_no_clip_is_not_merged(choice, monkeypatch, tmp_path):
    values = config.plain(config.compose("train", ["method=custom_diffusion", choice]))
    monkeypatch.setattr(stored, "values_of_run", lambda folder, trust: values)
    with pytest.raises(UserError, match=r"cannot be merged: that is for Stable Diffusion"):
        merge._check_run(tmp_path, trust=False)


@pytest.mark.parametrize("values", [{}, {"method": None}])
def test_a_configuration_without_a_method_is_not_of_a_training_run(values, monkeypatch, tmp_path):
    monkeypatch.setattr(merge.stored, "values_of_run", lambda folder, trust: values)
    with pytest.raises(UserError, match="names no method"):
        merge._check_run(tmp_path, trust=False)
