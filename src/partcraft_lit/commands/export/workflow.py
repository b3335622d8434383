"""A workflow for ComfyUI that samples with the exported parts.

Sampler ``euler`` on the schedule ``ddim_uniform`` takes the timesteps that DDIM and Euler take here, where the number
of steps divides those of training, and the noise of a seed is that of torch's generator on the CPU in both. So the
workflow gives the image of ``partcraft generate`` with ``sample.scheduler=euler``; what is left is that ComfyUI scales
the first noise by sigma and not by sqrt(sigma^2 + 1), less than a grey level.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from partcraft_lit.backbones.pipelines import pipeline_seed
from partcraft_lit.commands.export.bundle import Bundle

#: Whole numbers below this are exact as doubles.
_EXACT = 2**53
#: Steps of the noise schedule in training.
_TRAINING_STEPS = 1000
SAMPLER, SCHEDULE = "euler", "ddim_uniform"
#: Outputs of each node: name and type.
_OUTPUTS: Mapping[str, Sequence[tuple[str, str]]] = {
    "CheckpointLoaderSimple": (("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")),
    "LoraLoader": (("MODEL", "MODEL"), ("CLIP", "CLIP")),
    "CLIPTextEncode": (("CONDITIONING", "CONDITIONING"),),
    "EmptyLatentImage": (("LATENT", "LATENT"),),
    "KSampler": (("LATENT", "LATENT"),),
    "VAEDecode": (("IMAGE", "IMAGE"),),
    "SaveImage": (),
    "UNETLoader": (("MODEL", "MODEL"),),
    "CLIPLoader": (("CLIP", "CLIP"),),
    "VAELoader": (("VAE", "VAE"),),
    "LoraLoaderModelOnly": (("MODEL", "MODEL"),),
    "EmptyFlux2LatentImage": (("LATENT", "LATENT"),),
    "Flux2Scheduler": (("SIGMAS", "SIGMAS"),),
    "CFGGuider": (("GUIDER", "GUIDER"),),
    "KSamplerSelect": (("SAMPLER", "SAMPLER"),),
    "RandomNoise": (("NOISE", "NOISE"),),
    "SamplerCustomAdvanced": (("output", "LATENT"), ("denoised_output", "LATENT")),
    "PartPrompt": (("CONDITIONING", "CONDITIONING"),),  # the node of an export, whose name stands behind
}
#: Width and height of a node, and the room between two.
_SIZE, _COLUMN, _ROW = (320, 220), 380, 280


def matching_steps(steps: int) -> int:
    """The number of steps nearest to ``steps`` for which ``ddim_uniform`` takes our timesteps: a divisor of 1000."""
    divisors = [number for number in range(1, _TRAINING_STEPS + 1) if _TRAINING_STEPS % number == 0]
    return min(divisors, key=lambda number: (abs(number - steps), -number))


def canvas_seed(seed: int) -> int:
    """The first seed from this on whose noise ComfyUI's canvas can ask for: it keeps numbers as doubles.

    The generator of seed s starts from a hash of s, of 63 bits; one in a thousand is below 2^53, and the others would
    be rounded without a message.
    """
    return next(own for own in itertools.count(seed) if pipeline_seed(own) < _EXACT)


def api_workflow(bundle: Bundle, prompt: str, negative: str, seed: int) -> dict[str, Any]:
    """The workflow as ComfyUI's ``/prompt`` takes it: number of a node -> its class and inputs.

    Args:
        bundle: what was exported.
        prompt, negative: in ComfyUI's words.
        seed: of ``partcraft generate``; see ``canvas_seed``.
    """
    sample = bundle.settings.sample
    nodes: dict[str, Any] = {
        "1": node("CheckpointLoaderSimple", ckpt_name=checkpoint_name(bundle)),
        "4": node("EmptyLatentImage", width=bundle.resolution, height=bundle.resolution, batch_size=1),
    }
    model = "1"
    if bundle.adapters:
        file = f"{bundle.name}.safetensors"
        nodes["8"] = node(
            "LoraLoader", model=["1", 0], clip=["1", 1], lora_name=file, strength_model=1.0, strength_clip=1.0
        )
        model = "8"
    nodes |= {
        "2": node("CLIPTextEncode", clip=[model, 1], text=prompt),
        "3": node("CLIPTextEncode", clip=[model, 1], text=negative),
        "5": node(
            "KSampler",
            model=[model, 0],
            positive=["2", 0],
            negative=["3", 0],
            latent_image=["4", 0],
            seed=pipeline_seed(seed),
            steps=matching_steps(sample.steps),
            cfg=sample.guidance_scale,
            sampler_name=SAMPLER,
            scheduler=SCHEDULE,
            denoise=1.0,
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix=bundle.name),
    }
    return nodes


def canvas_workflow(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The same as ComfyUI's canvas saves and loads it: nodes with places, and numbered links between them."""
    order = _in_order(nodes)
    links: list[list[Any]] = []
    placed: dict[str, dict[str, Any]] = {}
    for place, number in enumerate(order):
        made = nodes[number]
        inputs: list[dict[str, Any]] = []
        widgets: list[Any] = []
        for name, value in made["inputs"].items():
            if not _is_link(value):
                widgets.append(value)
                if name in ("seed", "noise_seed"):
                    widgets.append("fixed")  # what the canvas does with it after each image
                continue
            origin, slot = value
            kind = _outputs(nodes[origin])[slot][1]
            link = [len(links) + 1, int(origin), slot, int(number), len(inputs), kind]
            links.append(link)
            inputs.append({"name": name, "type": kind, "link": link[0]})
            placed[origin]["outputs"][slot]["links"].append(link[0])
        placed[number] = {
            "id": int(number),
            "type": made["class_type"],
            "pos": [_COLUMN * (place // 2), _ROW * (place % 2)],
            "size": list(_SIZE),
            "flags": {},
            "order": place,
            "mode": 0,
            "inputs": inputs,
            "outputs": [
                {"name": name, "type": kind, "links": [], "slot_index": slot}
                for slot, (name, kind) in enumerate(_outputs(made))
            ],
            "properties": {"Node name for S&R": made["class_type"]},
            "widgets_values": widgets,
        }
    return {
        "last_node_id": max(map(int, nodes)),
        "last_link_id": len(links),
        "nodes": list(placed.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def png_chunks(nodes: Mapping[str, Any]) -> dict[str, str]:
    """What ComfyUI writes into its images, and reads from one that is dropped on its canvas."""
    return {"prompt": json.dumps(nodes), "workflow": json.dumps(canvas_workflow(nodes))}


def checkpoint_name(bundle: Bundle) -> str:
    """The file of the base model, as it is most often called; whoever has another chooses it in the first node."""
    if bundle.family.checkpoint and bundle.origin.model_is_public:
        return bundle.family.checkpoint
    return (
        f"{(bundle.origin.model or 'partcraft-lit-mini').rpartition('/')[2].removesuffix('.safetensors')}.safetensors"
    )


def node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    """A node of ``api_workflow``; links are [number of the node, number of its output]."""
    return {"class_type": kind, "inputs": inputs}


def _outputs(made: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    return _OUTPUTS[str(made["class_type"]).partition(" ")[0]]


def _is_link(value: Any) -> bool:
    return isinstance(value, list)


def _in_order(nodes: Mapping[str, Any]) -> list[str]:
    """Numbers of the nodes, each behind those that it takes something from."""
    order: list[str] = []
    while len(order) < len(nodes):
        for number, made in nodes.items():
            needs = [value[0] for value in made["inputs"].values() if _is_link(value)]
            if number not in order and all(origin in order for origin in needs):
                order.append(number)
    return order
