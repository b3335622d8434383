"""Loads an export for FLUX.2 klein with ComfyUI's own code: python tools/check_comfyui.py COMFYUI EXPORT

COMFYUI is a checkout of ComfyUI whose requirements are installed beside diffusers; EXPORT is a folder that
`partcraft export 'to=[diffusers,comfyui]'` wrote. No weights are needed, and nothing is drawn:

- every key of the LoRA has to name a weight of ComfyUI's model, and what ComfyUI adds to that weight, in the names and
  the layout of diffusers (by its converter for single files), has to be up @ down of the file;
- the tokens that the exported node makes of a prompt without parts have to be those of ComfyUI's own tokenizer, and
  each part has to stand in its prompt as one vector;
- the embeddings have to be found under the names in the table of README.md.

The exit code is 1 where something differs.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-5
PROMPT = "a photo of a red bird on a branch"


def comfyui_model(lora: dict[str, Tensor]) -> Any:
    """ComfyUI's FLUX.2 of the LoRA's width and depth, without weights."""
    import comfy.model_base
    import comfy.supported_models

    downs = {name: tensor for name, tensor in lora.items() if name.endswith(".lora_A.weight")}
    width = next(t.shape[1] for name, t in downs.items() if not name.endswith("attn.to_out.lora_A.weight"))
    counts = {
        kind: 1
        + max((int(m[1]) for name in downs if (m := re.match(rf"transformer\.{kind}\.(\d+)\.", name))), default=0)
        for kind in ("transformer_blocks", "single_transformer_blocks")
    }
    mlps = [t.shape[1] / width - 1 for name, t in downs.items() if name.endswith("attn.to_out.lora_A.weight")]
    config = comfy.supported_models.Flux2(
        {
            "image_model": "flux2",
            "in_channels": 128,
            "out_channels": 128,
            "patch_size": 1,
            "hidden_size": width,
            "num_heads": 1,
            "axes_dim": [width],
            "depth": counts["transformer_blocks"],
            "depth_single_blocks": counts["single_transformer_blocks"],
            "context_in_dim": width,
            "vec_in_dim": None,
            "mlp_ratio": mlps[0] if mlps else 3.0,
            "theta": 2000,
            "guidance_embed": False,
            "global_modulation": True,
            "mlp_silu_act": True,
            "qkv_bias": False,
            "ops_bias": False,
            "txt_ids_dims": [],
        }
    )
    return comfy.model_base.Flux2(config, device=torch.device("meta"))


def lora_errors(path: Path) -> list[str]:
    """What ComfyUI reads otherwise than diffusers."""
    import comfy.lora

    lora = load_file(path)
    model = comfyui_model(lora)
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    patches: dict[str, list[Any]] = {}
    for key, patch in comfy.lora.load_lora(lora, comfy.lora.model_lora_keys_unet(model, {})).items():
        weight, rows = (key, None) if isinstance(key, str) else (key[0], key[1])
        patches.setdefault(weight, []).append((1.0, patch, 1.0, rows, None))
    wanted = {name.removesuffix(".lora_A.weight") for name in lora if name.endswith(".lora_A.weight")}
    errors, seen = [], set()
    for weight, listed in patches.items():
        change = comfy.lora.calculate_weight(listed, torch.zeros(shapes[weight]), weight)
        original = {weight.removeprefix("diffusion_model."): change}
        for name, delta in convert_flux2_transformer_checkpoint_to_diffusers(original).items():
            layer = f"transformer.{name.removesuffix('.weight')}"
            if layer not in wanted:
                if delta.any():
                    errors.append(f"{layer} is no layer of the LoRA, and ComfyUI changes it")
                continue
            seen.add(layer)
            trained = lora[f"{layer}.lora_B.weight"].float() @ lora[f"{layer}.lora_A.weight"].float()
            error = float((delta - trained).abs().max() / trained.abs().max().clamp_min(1e-30))
            if not error <= TOLERANCE:
                errors.append(f"{layer} differs by {error:.1e}")
    errors += [f"{layer} is not read by ComfyUI" for layer in sorted(wanted - seen)]
    print(f"{path.name}: {len(seen)} of {len(wanted)} layers read and compared")
    return errors


def load_node(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_node", folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prompt_errors(comfyui: Path) -> list[str]:
    """What the exported node, or an embedding in a prompt, gives otherwise than it should."""
    from comfy.text_encoders.flux import KleinTokenizer

    (folder,) = (comfyui / "custom_nodes").iterdir()
    node, tokenizer = load_node(folder), KleinTokenizer(embedding_directory=[str(comfyui / "models" / "embeddings")])
    taken: list[Any] = []
    clip = SimpleNamespace(tokenizer=tokenizer, encode_from_tokens_scheduled=lambda tokens: taken.append(tokens) or [])
    (reader,) = node.NODE_CLASS_MAPPINGS.values()
    if not hasattr(tokenizer, "qwen3_4b"):
        return ["ComfyUI's tokenizer of klein has another name than qwen3_4b"]
    reader().encode(clip, PROMPT)
    own = tokenizer.tokenize_with_weights(PROMPT)["qwen3_4b"]
    read = taken[0]["qwen3_4b"]
    if read[0][-1] != own[0][-1]:  # the padding: another tokenizer than klein's, as of a miniature in tests
        print(f"{folder.name}: its tokenizer is not klein's, so that prompts are not compared with ComfyUI's")
        read = own
    errors = [] if own == read else ["the node reads a prompt otherwise than ComfyUI's tokenizer"]
    rows = re.findall(r"\| `(<[^`]+>)` \| `(embedding:[^`]+)` \|", (comfyui / "README.md").read_text(encoding="utf-8"))
    for placeholder, word in rows:
        for tokens in (
            tokenizer.tokenize_with_weights(f"a photo of a {word} "),
            own_tokens(reader, clip, taken, placeholder),
        ):
            found = [token for token, _ in tokens["qwen3_4b"][0] if isinstance(token, torch.Tensor)]
            if len(found) != 1:
                errors.append(f"{placeholder} stands in a prompt as {len(found)} vectors")
    print(f"{folder.name}: prompts of {len(rows)} embeddings and of the node compared")
    return errors


def own_tokens(reader: Any, clip: Any, taken: list[Any], placeholder: str) -> dict[str, Any]:
    reader().encode(clip, f"a photo of a {placeholder} bird")
    tokens: dict[str, Any] = taken[-1]
    return tokens


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    checkout, export = (Path(argument).resolve() for argument in arguments)
    sys.argv = sys.argv[:1]  # ComfyUI parses it
    sys.path.insert(0, str(checkout))
    from comfy.cli_args import args

    args.cpu = True
    errors = [
        e for path in sorted((export / "comfyui" / "models" / "loras").glob("*.safetensors")) for e in lora_errors(path)
    ]
    errors += prompt_errors(export / "comfyui")
    print("\n".join(errors) or "no difference")
    return 1 if errors else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
