"""An export of a model with two text encoders, whose published settings name no true end of the text."""

from __future__ import annotations

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from partcraft_lit.commands import export, train
from partcraft_lit.config import compose as config
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import read_image

PROMPT = "a photo of a <part1:1> <part2:0>"


@pytest.fixture(scope="module")
def published_folder(tiny_sdxl_folder, tmp_path_factory):
    """As on the hub: ``eos_token_id`` is 2 in both text encoders, so that they read at the largest id."""
    folder = tmp_path_factory.mktemp("published") / "xl"
    shutil.copytree(tiny_sdxl_folder, folder)
    for name in ("text_encoder", "text_encoder_2"):
        path = folder / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 2}))
    return folder


@pytest.fixture(scope="module")
def workshop(new_workshop, published_folder):
    made = new_workshop()
    others = tuple(argument for argument in made.arguments if not argument.startswith("backbone"))
    chosen = ("backbone=sdxl", "backbone.resolution=32", f"backbone.source={published_folder}", "lora.alpha=6")
    return dataclasses.replace(made, arguments=(*others, *chosen))


@pytest.fixture(scope="module")
def run(workshop, plain):
    return workshop.train(*plain, "trainer.max_steps=2", "optim.lora_lr=0.05")


@pytest.fixture(scope="module")
def exported(run, workshop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "xl"
    ended = workshop("export", "parts=[part1:1,part2:0]", "name=xl", "sample.steps=2", "thumbnails=0", f"run={run}",
                     f"output_dir={folder}")  # fmt: skip
    assert ended.code == 0, ended.out
    return folder


def test_it_is_proved_for_every_tool(exported):
    facts = json.loads((exported / "export.json").read_text())
    for found in facts["checks"].values():
        assert found["layers"] == facts["layers"] > 0 and found["parts"] == 2
        assert found["weights"] < 1e-5 and found["text"] < 1e-4 and found["image_max"] <= 1
    assert "miniature in the layout of SDXL" in facts["base"]["family"]


def test_keys_are_those_of_each_tool(exported):
    adapter = load_file(exported / "a1111/models/Lora/xl.safetensors")
    assert all(key.startswith(("lora_unet_input_blocks_", "lora_unet_middle_block_1_", "lora_unet_output_blocks_"))
               for key in adapter)  # fmt: skip
    assert {float(value) for key, value in adapter.items() if key.endswith(".alpha")} == {4.0}  # the rank; alpha was 6
    for folder in ("a1111/embeddings", "comfyui/models/embeddings"):
        tensors = load_file(exported / folder / "xl-part1-1.safetensors")
        assert {key: tuple(value.shape) for key, value in tensors.items()} == {"clip_l": (1, 32), "clip_g": (1, 48)}
    for network, key in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        ours = load_file(exported / "diffusers" / network / "xl-part1-1.safetensors")
        assert list(ours) == ["<part1:1>"] and torch.equal(ours["<part1:1>"], tensors[key])


def test_the_lines_to_paste_draw_the_same_picture(exported, run, workshop, published_folder, tmp_path, monkeypatch):
    code = (exported / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(exported)
    names = {}
    exec(code.replace("FOLDER_OR_HUB_ID_OF_THE_BASE_MODEL", str(published_folder)), names)
    ended = workshop("generate", f"prompt={PROMPT}", "num_images=1", "sample.steps=2", f"run={run}",
                     f"output_dir={tmp_path}")  # fmt: skip
    assert ended.code == 0, ended.out
    theirs = torch.from_numpy(np.array(names["image"])).permute(2, 0, 1).int()
    assert (theirs - read_image(tmp_path / "000000.png").int()).abs().max() <= 1
    # What the line about the end of the text is for: without it the pooled embedding is read at the part token.
    pipe = names["pipe"]
    mended = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)[2]
    pipe.text_encoder_2.text_model.eos_token_id = 2
    assert (pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)[2] - mended).abs().max() > 0.01


def test_vectors_behind_its_text_encoders_are_refused_before_anything_is_loaded():
    overrides = ["backbone=sdxl", "dataset=folder", "dataset.dir=/x", "method.tokens.inject=after"]
    values = config.plain(config.compose("train", overrides))
    with pytest.raises(UserError, match=r"several text encoders.*`partcraft generate`"):
        export._needs_code(SimpleNamespace(to=["diffusers"]), train.check(values), values)
