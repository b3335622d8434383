"""Pictures from a run and a prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.pictures import grid, save_png, upscale
from partcraft_lit.run.assembly import vocabulary_of
from partcraft_lit.run.scoring import load_trained
from partcraft_lit.run.stages import Stages
from partcraft_lit.settings import GenerateSettings, TrainSettings
from partcraft_lit.tokens.grammar import parse
from partcraft_lit.types import Backbone

_SHOWN_SIDE = 192


def generate(
    settings: GenerateSettings,
    folder: Path,
    *,
    run_folder: Path,
    trained: TrainSettings,
    load_backbone: Callable[[], Backbone],
) -> list[Path]:
    """``partcraft generate``: one PNG per seed with its recipe inside, and a sheet of all.

    Returns:
        The pictures' paths, the sheet last.

    Raises:
        UserError: for a prompt with unknown parts, before the backbone is loaded, or one that is too long.
    """
    stages = Stages()
    parse(settings.prompt, vocabulary_of(PartDictionary.load(run_folder / "parts")))
    with stages.stage("load"):
        module, _ = load_trained(trained, run_folder, load_backbone(), class_noun="")
    prompts = [settings.prompt] * settings.num_images
    module.method.tokenize(prompts[:1])  # a prompt that is too long is told before anything is drawn
    seeds = [settings.seed + index for index in range(settings.num_images)]
    module.use_sampling(settings.sample)
    with stages.stage("draw"):
        images = module.generate(prompts, seeds)
    recipe = {"prompt": settings.prompt, "run": run_folder.name, **_recipe(settings)}
    paths = [
        save_png(folder / f"{seed:06d}.png", image, {**recipe, "seed": seed})
        for seed, image in zip(seeds, images, strict=True)
    ]
    sheet = [upscale(image, max(_SHOWN_SIDE, *image.shape[1:])) for image in images]
    paths.append(save_png(folder / "sheet.png", grid(sheet, pad=6, border=6), recipe))
    stages.say(f"Pictures: {folder}")
    return paths


def _recipe(settings: GenerateSettings) -> dict[str, object]:
    sample = settings.sample
    return {
        "steps": sample.steps,
        "guidance_scale": sample.guidance_scale,
        "scheduler": sample.scheduler,
        "negative_prompt": sample.negative_prompt,
    }
