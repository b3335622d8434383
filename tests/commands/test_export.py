"""Exports of a run that has ended, read by the tools' own rules."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from partcraft_lit.core.images import read_image
from partcraft_lit.core.randomness import derive_seed

#: Quick: few parts, few steps.
QUICK = ("parts=[part1,part2:0]", "sample.steps=2", "thumbnails=2")
PROMPT = "a photo of a <part1:1> <part2:0> bird"


@pytest.fixture(scope="session")
def exported(tiny_run, workshop, tmp_path_factory):
    """The folder of an export for all tools."""
    folder = tmp_path_factory.mktemp("exports") / "birds"
    ended = workshop("export", *QUICK, "name=birds", f"run={tiny_run}", f"output_dir={folder}")
    assert ended.code == 0 and "No LoRA keys" not in ended.out, ended.out
    return folder


@pytest.fixture
def plain_pipeline(exported, tiny_sd_folder):
    """What the model card says, in diffusers alone."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    folder = exported / "diffusers"
    pipe.scheduler = DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    pipe.load_lora_weights(folder, adapter_name="parts")
    pipe.load_textual_inversion(sorted(str(path) for path in (folder / "text_encoder").glob("*.safetensors")))
    return pipe


def draw(pipe, prompt=PROMPT, seed=0, **others):
    generator = torch.Generator().manual_seed(derive_seed(seed, "sample"))
    arguments = {"num_inference_steps": 2, "guidance_scale": 7.5, "height": 32, "width": 32, "output_type": "pt"}
    images = pipe(prompt, generator=generator, **arguments | others).images
    return (images[0] * 255).round().int()


def test_everything_is_there_and_proved(exported):
    facts = json.loads((exported / "export.json").read_text())
    assert {tool: found["ok"] for tool, found in facts["checks"].items()} == dict.fromkeys(
        ["diffusers", "a1111", "comfyui"], True
    )
    for found in facts["checks"].values():
        assert found["layers"] == facts["layers"] > 0 and found["parts"] == len(facts["parts"]) == 4
        assert found["weights"] < 1e-5 and found["text"] < 1e-5 and found["image_max"] <= 1
    present = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert {"export.json", *facts["files"]} == {name for name in present if not name.startswith((".", "run."))}


def test_the_lines_to_paste_draw_the_same_picture(exported, tiny_run, tiny_sd_folder, workshop, tmp_path, monkeypatch):
    """The card's code as it stands, in the export's folder, with nothing of ours imported."""
    code = (exported / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert "partcraft" not in code.partition("manual_seed")[0]
    monkeypatch.chdir(exported)
    names = {}
    exec(code.replace("FOLDER_OR_HUB_ID_OF_THE_BASE_MODEL", str(tiny_sd_folder)), names)
    command = ("prompt=a photo of a <part1:0> <part2:0>", "num_images=1", "sample.steps=2")
    assert workshop("generate", *command, f"run={tiny_run}", f"output_dir={tmp_path}").code == 0
    ours = read_image(tmp_path / "000000.png").int()
    theirs = torch.from_numpy(np.array(names["image"])).permute(2, 0, 1).int()
    assert (theirs - ours).abs().max() <= 1


def test_plain_diffusers_draws_the_same_picture(plain_pipeline, tiny_run, workshop, tmp_path):
    ended = workshop("generate", f"prompt={PROMPT}", "num_images=1", "seed=7", "sample.steps=2", f"run={tiny_run}",
                     f"output_dir={tmp_path}")  # fmt: skip
    assert ended.code == 0, ended.out
    ours = read_image(tmp_path / "000007.png").int()
    assert (draw(plain_pipeline, seed=7) - ours).abs().max() <= 1
    assert (draw(plain_pipeline, seed=8) - ours).abs().max() > 8  # it could tell


# Rules of the tools, written down from their sources.


def a1111_name(key):
    """A1111 and ComfyUI find an SD1 layer by diffusers' module name with "_" for "."."""
    return "lora_unet_" + key.replace(".", "_")


def test_keys_of_the_adapter_are_those_that_the_tools_look_up(exported, tiny_backbone, tiny_run):
    attention = [f"{block}.attn{n}.{end}" for block in transformer_blocks(tiny_backbone.unet) for n in (1, 2)
                 for end in ("to_q", "to_k", "to_v", "to_out.0")]  # fmt: skip
    known = {a1111_name(name) for name in attention}
    for path in (exported / "a1111/models/Lora/birds.safetensors", exported / "comfyui/models/loras/birds.safetensors"):
        tensors = load_file(path)
        layers = {key.partition(".")[0] for key in tensors}
        assert layers == {name for name in known if "_attn2_" in name}  # the run's scope is cross-attention
        assert set(tensors) == {f"{n}.{end}" for n in layers for end in ("lora_down.weight", "lora_up.weight", "alpha")}
        for name in layers:
            assert float(tensors[f"{name}.alpha"]) == len(tensors[f"{name}.lora_down.weight"])
    ours = load_file(exported / "diffusers/pytorch_lora_weights.safetensors")
    assert {key.removeprefix("unet.").rpartition(".lora_")[0] for key in ours} == {n for n in attention if "attn2" in n}
    assert {key.partition(".lora_")[2] for key in ours} == {"A.weight", "B.weight"}


def transformer_blocks(unet):
    return [name for name, _ in unet.named_modules() if name.rpartition(".")[0].endswith("transformer_blocks")]


def test_embeddings_have_the_keys_of_each_tool(exported):
    files = {path.stem: load_file(path) for path in (exported / "diffusers/text_encoder").iterdir()}
    assert {stem: list(tensors) for stem, tensors in files.items()} == {
        "birds-part1-0": ["<part1:0>"],
        "birds-part1-1": ["<part1:1>"],
        "birds-part1-2": ["<part1:2>"],
        "birds-part2-0": ["<part2:0>"],
    }
    for folder in ("a1111/embeddings", "comfyui/models/embeddings"):
        for path in (exported / folder).glob("*.safetensors"):
            (vector,) = files[path.stem].values()
            tensors = load_file(path)
            assert list(tensors) == ["emb_params"] and tensors["emb_params"].shape == (1, 32)
            assert torch.equal(tensors["emb_params"], vector)


def test_headers_say_what_calls_the_file_up_and_nothing_of_this_machine(exported, tiny_run):
    for path in exported.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            header = file.metadata()
        assert header["modelspec.trigger_phrase"] == "<part1:0>, <part1:1>, <part1:2>, <part2:0>"
        assert header["ss_network_dim"] == header["ss_network_alpha"] == "4"
        assert len(header["partcraft.base_hash"]) == 64 and header["partcraft.run"] == tiny_run.name
        assert not any("/" in value for value in header.values())


def test_the_card_names_prompts_and_licences(exported):
    card = (exported / "README.md").read_text()
    assert "a photo of a <part1:0> <part2:0>" in card
    assert "a photo of a birds-part1-0 birds-part2-0 <lora:birds:1>" in card
    assert "a photo of a embedding:birds-part1-0 embedding:birds-part2-0" in card
    assert "Training pictures: **unknown**" in card and "whose licence is not known to partcraft" in card
    assert "A1111 and ComfyUI cannot load" in card and "4/4 layers" not in card
    for line in card.splitlines():
        if line.startswith("| !["):
            assert (exported / line.partition("(")[2].partition(")")[0]).is_file()
    assert len(list((exported / "a1111/embeddings").glob("*.preview.png"))) == 2


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["parts=[part9:0]"], r"no part called 'part9'.*Did you mean"),
        (["parts=[part1:99]"], r"'part1' has no code 99; its codes are 0 to 2"),
        (["parts=[]"], r"chooses nothing to export"),
        (["to=[difusers]"], r"to\[0\]='difusers': wanted one of diffusers, a1111, comfyui\. Did you mean 'diffusers'"),
        (["to=[]"], r"names no tool"),
        (["name=my birds"], r"no spaces"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(tiny_run, workshop, monkeypatch, overrides, message):
    import re

    monkeypatch.setattr("partcraft_lit.commands.export.export.load_trained", lambda *_, **__: pytest.fail("loaded"))
    ended = workshop("export", f"run={tiny_run}", *overrides)
    assert ended.code == 2 and re.search(message, ended.out) and "Traceback" not in ended.out, ended.out


def test_a_run_without_checkpoint(new_workshop, tiny_run):
    workshop = new_workshop()
    shutil.rmtree(workshop.copy(tiny_run) / "checkpoints")
    ended = workshop("export", *QUICK)
    assert ended.code == 2 and "has no checkpoint that can be read" in ended.out, ended.out


def test_a_folder_with_other_files_is_left_alone_and_an_earlier_export_replaced(tiny_run, workshop, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("precious")
    command = ("export", *QUICK, "thumbnails=0", "to=[diffusers]", f"run={tiny_run}", f"output_dir={folder}")
    ended = workshop(*command)
    assert ended.code == 2 and "'mine.txt'; nothing is overwritten" in ended.out
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    (folder / "mine.txt").unlink()
    assert workshop(*command).code == 0
    assert workshop(*command, "parts=[part2:1]").code == 0  # the last one counts
    assert [path.stem[-7:] for path in (folder / "diffusers/text_encoder").iterdir()] == ["part2-1"]
    (folder / "diffusers" / "mine.txt").write_text("precious")
    assert workshop(*command).code == 2


def test_a_file_that_does_not_give_back_what_was_trained_fails(tiny_run, workshop, tmp_path, monkeypatch):
    from partcraft_lit.commands.export import export as exporting

    write = exporting._WRITERS["diffusers"]

    def damage(bundle, backbone, folder):
        files = write(bundle, backbone, folder)
        tensors = load_file(files[0])
        key = next(key for key in tensors if "lora_B" in key)
        save_file(tensors | {key: tensors[key] * 1.5}, files[0])
        return files

    monkeypatch.setitem(exporting._WRITERS, "diffusers", damage)
    ended = workshop("export", *QUICK, "thumbnails=0", "to=[diffusers]", f"run={tiny_run}", f"output_dir={tmp_path}")
    assert ended.code == 2 and "MISSED" in ended.out and "do not give back what was trained" in ended.out
    assert json.loads((tmp_path / "export.json").read_text())["checks"]["diffusers"]["weights"] > 0.1


# On top of it, in diffusers alone.


def test_a_second_adapter_works_beside_it(plain_pipeline, tmp_path):
    before = draw(plain_pipeline)
    other = {}
    for name, module in plain_pipeline.unet.named_modules():
        if name.endswith("attn1.to_v"):
            generator = torch.Generator().manual_seed(len(other))
            other[f"unet.{name}.lora_A.weight"] = torch.randn(2, module.in_features, generator=generator)
            other[f"unet.{name}.lora_B.weight"] = torch.randn(module.out_features, 2, generator=generator)
    save_file(other, tmp_path / "style.safetensors")
    plain_pipeline.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="style")
    plain_pipeline.set_adapters(["parts", "style"], [1.0, 0.0])
    assert (draw(plain_pipeline) - before).abs().max() <= 1
    plain_pipeline.set_adapters(["parts", "style"], [1.0, 1.0])
    assert (draw(plain_pipeline) - before).abs().max() > 1


def test_parts_work_in_inpainting(plain_pipeline):
    from diffusers import AutoPipelineForInpainting

    pipe = AutoPipelineForInpainting.from_pipe(plain_pipeline)
    picture, mask = torch.full((1, 3, 32, 32), 0.5), torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1
    some = {"image": picture, "mask_image": mask, "strength": 1.0}
    one, other = (draw(pipe, f"a photo of a <part1:{code}> bird", **some) for code in (0, 1))
    assert (one - other)[..., 20:].abs().max() > 1 >= (one - other)[..., :12].abs().float().mean()


@pytest.mark.slow
def test_the_packaged_miniature_in_diffusers_alone(new_workshop, plain, tmp_path, monkeypatch):
    """Weights that were trained in earnest: text and pictures depend on every number of the files."""
    workshop = new_workshop()
    others = tuple(argument for argument in workshop.arguments if not argument.startswith("backbone"))
    workshop.arguments = (*others, "backbone=mini", "lora.alpha=8", "mapper.norm_match=true")
    run = workshop.train(*plain, "trainer.max_steps=2", "optim.lora_lr=0.02")
    parts = ("parts=[part1:0,part2:1]", "name=mini", "sample.steps=6", "thumbnails=0", "number_format=float32")
    ended = workshop("export", *parts, f"run={run}", f"output_dir={tmp_path / 'export'}")
    assert ended.code == 0, ended.out
    card = (tmp_path / "export" / "README.md").read_text()
    assert "license: apache-2.0" in card
    monkeypatch.chdir(tmp_path / "export")
    names = {}
    exec(card.partition("```python\n")[2].partition("```")[0], names)
    command = ("prompt=a photo of a <part1:0> <part2:1>", "num_images=1", "sample.steps=6")
    assert workshop("generate", *command, f"run={run}", f"output_dir={tmp_path}").code == 0
    difference = torch.from_numpy(np.array(names["image"])).permute(2, 0, 1).int() - read_image(tmp_path / "000000.png")
    assert difference.abs().max() <= 2
    names["pipe"].unload_lora_weights()
    exec("image = pipe" + card.partition("image = pipe")[2].partition("```")[0], names)
    changed = torch.from_numpy(np.array(names["image"])).permute(2, 0, 1).int() - read_image(tmp_path / "000000.png")
    assert changed.abs().float().mean() > 1  # the adapter matters
