"""Generation parameters as A1111 and Forge write them into PNGs, and read them from one that is dropped on them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from partcraft_lit.backbones.pipelines import pipeline_seed
from partcraft_lit.backbones.settings import SampleSettings

#: Text chunk of a PNG that holds them.
INFOTEXT_KEY = "parameters"
#: Our samplers as these tools call them: sampler and schedule.
SAMPLERS: Mapping[str, tuple[str, str]] = {
    "dpm++": ("DPM++ 2M", "Uniform"),
    "dpm++_trailing": ("DPM++ 2M", "SGM Uniform"),
    "unipc": ("UniPC", "Automatic"),
    "ddim": ("DDIM", "Automatic"),
    "euler": ("Euler", "Uniform"),
    "ddpm": ("Euler a", "Uniform"),
}


def infotext(prompt: str, negative: str, sample: SampleSettings, seed: int, size: tuple[int, int], model: str) -> str:
    """The text of the chunk.

    Args:
        prompt: in the words of these tools.
        negative: likewise; "" for none.
        sample: how the image was sampled.
        seed: ours; the text has that of a pipeline of diffusers, which draws the same noise.
        size: width and height in pixels.
        model: name of the base model; "" for the miniature.
    """
    sampler, schedule = SAMPLERS[sample.scheduler]
    fields = {
        "Steps": sample.steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": f"{sample.guidance_scale:g}",
        "Seed": pipeline_seed(seed),
        "Size": f"{size[0]}x{size[1]}",
        "Model": model.rpartition("/")[2] or "partcraft-lit mini",
        "RNG": "CPU",
        "Version": "partcraft-lit",
    }
    lines = [prompt, *([f"Negative prompt: {negative}"] if negative else [])]
    return "\n".join([*lines, ", ".join(f"{name}: {_quoted(str(value))}" for name, value in fields.items())])


def _quoted(value: str) -> str:
    """In quotes where signs between fields occur in a value."""
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ',:\n"') else value
