"""Exports of a run that has ended, read by the tools' own rules."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from partcraft_lit.commands.export.publish import check_output, publish
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
    assert {"export.json", *facts["files"]} == present
    assert not list(exported.parent.glob(".birds*"))  # where it was made


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


TRIGGERS = {
    "diffusers/pytorch_lora_weights.safetensors": "<part1:0>, <part2:0>",
    "diffusers/text_encoder/birds-part1-1.safetensors": "<part1:1>",
    "a1111/models/Lora/birds.safetensors": "birds-part1-0, birds-part2-0",
    "comfyui/models/embeddings/birds-part2-0.safetensors": "embedding:birds-part2-0",
}


def test_headers_say_what_calls_the_file_up_and_nothing_of_this_machine(exported, tiny_run):
    for path in exported.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            header = file.metadata()
        assert len(header["partcraft.base_hash"]) == 64 and header["partcraft.run"] == tiny_run.name
        assert header["modelspec.resolution"] == "32x32" and header["modelspec.prediction_type"] == "epsilon"
        assert header["modelspec.implementation"] in ("diffusers", "https://github.com/Stability-AI/generative-models")
        assert not any(str(folder) in value for value in header.values() for folder in (exported, Path.home()))
        is_adapter = path.stem in ("birds", "pytorch_lora_weights")
        assert ("ss_network_dim" in header) == is_adapter == ("partcraft.settings" in header)
        if is_adapter:
            assert header["ss_network_dim"] == header["ss_network_alpha"] == "4"
    headers = {path.relative_to(exported).as_posix(): header_of(path) for path in exported.rglob("*.safetensors")}
    assert {name: headers[name]["modelspec.trigger_phrase"] for name in TRIGGERS} == TRIGGERS


def test_headers_of_sd2_and_sdxl_say_what_a1111_asks_for(exported):
    from partcraft_lit.backbones.model_families import _SD1, _SD2, _SDXL

    assert _SD2.is_v2 and not _SD1.is_v2 and not _SDXL.is_v2
    assert [_SD2.architecture_of(v) for v in (False, True)] == ["stable-diffusion-v2-512", "stable-diffusion-v2-768-v"]
    assert [family.architecture_of(False) for family in (_SD1, _SDXL)] == [_SD1.architecture, _SDXL.architecture]


def header_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_the_card_names_prompts_and_licences(exported):
    card = (exported / "README.md").read_text()
    assert "a photo of a <part1:0> <part2:0>" in card
    assert "a photo of a birds-part1-0 birds-part2-0 <lora:birds:1>" in card
    assert "a photo of a embedding:birds-part1-0 embedding:birds-part2-0" in card
    assert "Training images: **unknown**" in card and "whose licence is not known to partcraft" in card
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
        (
            ["parts=['<part1:1>*1.3']"],
            r"'<part1:1>\*1.3' in parts: a file holds the variant as trained, without a weight",
        ),
        (
            ["parts=[part1:1]", "sample.negative_prompt=a <part2:0>"],
            r"names <part2:0>, which is not exported: add part2:0",
        ),
        (["parts=[part1:1]", "sample.negative_prompt=<part1:1>*2"], r"<part1:1>\*2 has a weight"),
        (["parts=[part1:1]", "sample.negative_prompt=<part9:1>"], r"no part called 'part9'"),
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


def test_an_export_that_was_interrupted_leaves_the_earlier_one_and_can_be_repeated(
    tiny_run, workshop, tmp_path, monkeypatch
):
    from partcraft_lit.commands.export import export as exporting

    folder = tmp_path / "out"
    command = ("export", "sample.steps=2", "thumbnails=0", "to=[diffusers]", f"run={tiny_run}", f"output_dir={folder}")
    assert workshop(*command, "parts=[part1:0]").code == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "x"))

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "write_card", full)
        ended = workshop(*command, "parts=[part2:0]")
        assert ended.code == 2 and "The disk is full" in ended.out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert workshop(*command, "parts=[part2:0]").code == 0
    assert [path.stem[-7:] for path in (folder / "diffusers/text_encoder").iterdir()] == ["part2-0"]


@pytest.mark.parametrize("moves", range(4))
def test_an_export_that_was_stopped_while_it_moved_is_finished_by_the_next(tmp_path, monkeypatch, moves):
    def made(*names):
        folder = tmp_path / "made"
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        (folder / "export.json").write_text(json.dumps({"files": names}))
        return folder

    folder = tmp_path / "out"
    publish(made("a.txt", "old/b.txt"), folder)
    replace, count = Path.replace, itertools.count()

    def stopped(self, target):
        if self.parent.name == "made" and next(count) == moves:
            raise KeyboardInterrupt
        return replace(self, target)

    new = made("a.txt", "c.txt", "d.txt")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            publish(new, folder)
    check_output(folder)  # still known as an export
    shutil.rmtree(tmp_path / "made")
    publish(made("a.txt", "c.txt", "d.txt"), folder)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert present == {"export.json", "a.txt", "c.txt", "d.txt"}


@pytest.mark.parametrize("name", ["../precious.txt", "{tmp}/precious.txt", "link/precious.txt"])
def test_a_manifest_that_lists_files_outside_removes_nothing(tiny_run, workshop, tmp_path, name):
    precious, folder = tmp_path / "precious.txt", tmp_path / "out"
    precious.write_text("precious")
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    (folder / "export.json").write_text(json.dumps({"files": [name.format(tmp=tmp_path)]}))
    ended = workshop("export", *QUICK, f"run={tiny_run}", f"output_dir={folder}")
    assert ended.code == 2 and "which is not in its folder" in ended.out, ended.out
    assert precious.read_text() == "precious"


def test_a_part_in_the_negative_prompt_is_written_in_each_tools_words(tiny_run, workshop, tmp_path):
    command = (*QUICK, "thumbnails=0", "name=birds", "sample.negative_prompt=a <part2:0>, blurry")
    ended = workshop("export", *command, f"run={tiny_run}", f"output_dir={tmp_path / 'out'}")
    assert ended.code == 0, ended.out  # the check compares the image that each tool gives with it
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Negative prompt: a birds-part2-0, blurry\n" in card
    assert "Negative prompt: a embedding:birds-part2-0 , blurry\n" in card
    assert "negative_prompt='a <part2:0>, blurry'" in card


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
    kept = tmp_path.with_name(f".{tmp_path.name}.partial") / "files" / "export.json"
    assert str(kept) in ended.out and not list(tmp_path.iterdir())
    assert json.loads(kept.read_text())["checks"]["diffusers"]["weights"] > 0.1


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
    """Weights that were trained in earnest: text and images depend on every number of the files."""
    workshop = new_workshop()
    others = tuple(argument for argument in workshop.arguments if not argument.startswith("backbone"))
    workshop.arguments = (*others, "backbone=mini", "lora.alpha=8", "mapper.norm_match=true")
    run = workshop.train(*plain, "trainer.max_steps=2", "optim.lora_lr=0.02", "optim.cooldown_steps=0")
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
