"""A run on a miniature of FLUX.2 klein, through the command line."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import tiny_klein


@pytest.fixture(scope="module")
def klein(tmp_path_factory) -> tuple[str, ...]:
    from diffusers import Flux2KleinPipeline

    folder = tmp_path_factory.mktemp("klein")
    Flux2KleinPipeline(**tiny_klein.components()).save_pretrained(folder)
    return (
        "backbone=flux2_klein",
        f"backbone.source={folder}",
        "backbone.resolution=32",
        "backbone.dtype=float32",
        "backbone.text_layers=[1,2,3]",
        "backbone.text_length=64",
        "prior.weight=0",
    )


def trained(run, step):
    content = torch.load(run / "checkpoints" / f"step={step:06d}.ckpt", weights_only=True)
    return {name: value.numpy().tobytes() for name, value in content["state_dict"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("inject", ["before", "after"])
def test_continued_is_the_same_to_the_bit(klein, new_workshop, plain, inject):
    settings = (*klein, *plain, f"method.tokens.inject={inject}", "optim.lora_lr=0.01", "lora.scope=all")
    whole = new_workshop().train(*settings)
    workshop = new_workshop()
    half = workshop.train(*settings, "trainer.max_steps=2")
    ended = workshop("train", *settings, f"ckpt_path={half}")
    assert ended.code == 0, ended.out
    expected = trained(whole, 4)
    assert expected == trained(half, 4) and expected != trained(half, 2)
    assert {name.split(".")[0] for name in expected} == {"backbone", "method"}
    assert all(".lora_" in name for name in expected if name.startswith("backbone.transformer."))


@pytest.mark.slow
def test_a_whole_run(klein, workshop):
    run = workshop.train(*klein, "lora.rank=2")
    scores = json.loads((run / "scores.json").read_text())
    assert scores["eval/emr@reconstruction"] >= 0
    ranked = workshop("evaluate", f"run={run}", "layers=true", "layer_images=2")
    assert ranked.code == 0, ranked.out
    rows = (run / "evaluation" / "attention_layers.csv").read_text().splitlines()[1:]
    assert len(rows) == 8 and sum(row.startswith("single_transformer_blocks") for row in rows) == 4
    drawn = workshop("generate", f"run={run}", "prompt=a photo of a <part1:1>", "sample.steps=1", "num_images=1")
    assert drawn.code == 0, drawn.out


@pytest.mark.slow
def test_editing_is_scored_without_training(klein, workshop):
    run = workshop.train(*klein, "method=edit_references", "method.reference_size=32", "eval.untrained=0")
    scores = json.loads((run / "scores.json").read_text())
    assert "eval/emr@2_species" in scores and not any(key.startswith("untrained/") for key in scores)
    assert json.loads((run / "costs.json").read_text())["trainable_parameters"] == 0
    assert not list((run / "checkpoints").glob("*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("inject", ["before", "after"])
def test_exports_give_back_what_was_trained(klein, new_workshop, plain, tmp_path, inject):
    workshop, output = new_workshop(), tmp_path / "export"
    run = workshop.train(*klein, *plain, f"method.tokens.inject={inject}", "optim.lora_lr=0.01", "trainer.max_steps=2")
    refused = workshop("export", f"run={run}")
    assert refused.code == 2 and "a1111 cannot draw with this run" in refused.out
    assert "to=[diffusers,comfyui] writes the vectors" in refused.out
    ended = workshop(
        "export", f"run={run}", "to=[diffusers,comfyui]", "name=birds", f"output_dir={output}", "check.steps=1"
    )
    assert ended.code == 0, ended.out
    manifest = json.loads((output / "export.json").read_text())
    assert manifest["checks"]["text"] < 1e-5 and manifest["checks"]["image"] < 0.5
    assert all((output / name).is_file() for name in manifest["files"])
    _check_lora(output, run)
    _check_node(output / "comfyui" / "custom_nodes" / "birds", output / "diffusers", inject)
    embeddings = sorted((output / "comfyui" / "models").glob("embeddings/*.safetensors"))
    assert bool(embeddings) == (inject == "before")
    assert all(load_file(path)["qwen3_4b"].shape == (1, 16) for path in embeddings)
    nodes = json.loads((output / "comfyui" / "workflow_api.json").read_text())
    canvas = json.loads((output / "comfyui" / "workflow.json").read_text())
    assert {node["type"] for node in canvas["nodes"]} == {node["class_type"] for node in nodes.values()}
    assert nodes["5"]["class_type"] == "PartPrompt birds" and nodes["9"]["inputs"]["model"] == ["4", 0]


def _check_lora(output, run):
    """diffusers loads the file by itself, and its layers change by what was trained."""
    from diffusers import Flux2KleinPipeline

    pipeline = Flux2KleinPipeline(**tiny_klein.components())
    (path,) = (output / "comfyui" / "models" / "loras").glob("*.safetensors")
    assert load_file(path).keys() == load_file(output / "diffusers" / "lora.safetensors").keys()
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="parts")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    ups = {name: value for name, value in state.items() if "lora_B" in name}
    assert ups and any(bool(up.any()) for up in ups.values())
    for name, up in ups.items():
        layer = pipeline.transformer.get_submodule(name.removeprefix("backbone.transformer.").partition(".lora_B")[0])
        down = state[name.replace("lora_B", "lora_A")]
        wanted = up @ down  # alpha is the rank
        torch.testing.assert_close(layer.get_delta_weight("parts"), wanted, rtol=1e-4, atol=1e-9)


def _check_node(folder, diffusers_folder, inject):
    """The node's conditioning, by what ComfyUI does with its tokens, is that of the code for diffusers."""
    encoder, tokenizer = tiny_klein.text_encoder(), tiny_klein.tokenizer()

    def encode(tokens):
        ((row,),) = tokens.values()
        table, pad = encoder.get_input_embeddings(), tokenizer.pad_token_id
        mask = torch.tensor([[not isinstance(token, int) or token != pad for token, _ in row]])
        states = torch.stack([table.weight[t] if isinstance(t, int) else t for t, _ in row])[None]
        output = encoder(inputs_embeds=states, attention_mask=mask.long(), output_hidden_states=True)
        return [[torch.cat([output.hidden_states[n] for n in tiny_klein.LAYERS], -1), {}]]

    clip = SimpleNamespace(
        tokenizer=SimpleNamespace(qwen3_4b=SimpleNamespace(tokenizer=tokenizer)), encode_from_tokens_scheduled=encode
    )
    (node,) = _code(folder / "__init__.py").NODE_CLASS_MAPPINGS.values()
    pipeline = SimpleNamespace(tokenizer=tokenizer, text_encoder=encoder)
    part = next(iter(load_file(folder / "parts.safetensors")))
    for prompt in (f"a photo of a <{part}> red bird", f"<{part}> <{part}>", "a bird", ""):
        with torch.no_grad():
            (((states, _),),) = node().encode(clip, prompt)
        wanted, _ = _code(diffusers_folder / "partcraft_parts.py").encode(pipeline, diffusers_folder, prompt)
        torch.testing.assert_close(states, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="is not among the parts of birds"):
        node().encode(clip, "a <tusk:7>")
    with pytest.raises(ValueError, match="need the text encoder qwen3_4b"):
        node().encode(SimpleNamespace(tokenizer=SimpleNamespace()), "a bird")
    with pytest.raises(ValueError, match="the text encoder has 64"):
        node().encode(clip, "bird " * 64)


def _code(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
