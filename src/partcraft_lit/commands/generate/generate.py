"""Images from a run and prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from partcraft_lit.backbones.pipelines import pipeline_seed
from partcraft_lit.commands.generate.settings import GenerateSettings
from partcraft_lit.core.files import read_lines
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.types import Backbone
from partcraft_lit.core.visualization import grid, save_png, upscale
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.runs.assembly import load_trained, vocabulary_of
from partcraft_lit.runs.settings import TrainSettings
from partcraft_lit.tokens.grammar import parse

_SHOWN_SIDE = 192


def generate(
    settings: GenerateSettings,
    folder: Path,
    *,
    run_folder: Path,
    trained: TrainSettings,
    load_backbone: Callable[[], Backbone],
) -> list[Path]:
    """``partcraft generate``: one PNG per prompt and seed with its settings as metadata, and a contact sheet.

    Returns:
        Paths of the images, the sheet last.

    Raises:
        UserError: for a prompt with unknown parts, before the backbone is loaded, or one that is too long.
    """
    stages = Stages()
    prompts = read_prompts(settings)
    _check_prompts(prompts, settings.sample.negative_prompt, run_folder)
    with stages.stage("load"):
        module, _ = load_trained(trained, run_folder, load_backbone(), class_noun="")
    module.method.tokenize(prompts)  # raises for long prompts before sampling
    seeds = [settings.seed + index for index in range(settings.num_images)]
    wanted = [(index, seed) for index in range(len(prompts)) for seed in seeds]
    module.use_sampling(trained.hardware.capped(settings.sample))
    with stages.stage("draw"):
        images = module.generate([prompts[index] for index, _ in wanted], [seed for _, seed in wanted])
    recipe = {"run": run_folder.name, **_recipe(settings)}
    paths = []
    for (index, seed), image in zip(wanted, images, strict=True):
        name = f"{seed:06d}.png" if len(prompts) == 1 else f"{index:03d}_{seed:06d}.png"
        own = {"prompt": prompts[index], **recipe, "seed": seed, "diffusers_seed": pipeline_seed(seed)}
        paths.append(save_png(folder / name, image, own))
    sheet = [upscale(image, max(_SHOWN_SIDE, *image.shape[1:])) for image in images]
    columns = None if len(prompts) == 1 else len(seeds)  # a row per prompt
    recipe = {"prompt": "\n".join(prompts), **recipe}
    paths.append(save_png(folder / "sheet.png", grid(sheet, columns=columns, pad=6, border=6), recipe))
    stages.log(f"Images: {folder}")
    return paths


def read_prompts(settings: GenerateSettings) -> list[str]:
    """Prompts of the settings, in order.

    Raises:
        UserError: if the file is unreadable or empty.
    """
    if settings.prompts_file is None:
        return [settings.prompt or ""]
    return read_lines(settings.prompts_file, "prompts_file")


def _check_prompts(prompts: Sequence[str], negative_prompt: str, run_folder: Path) -> None:
    vocabulary = vocabulary_of(PartDictionary.load(run_folder / "parts"))
    parse(negative_prompt, vocabulary, "sample.negative_prompt")
    for number, prompt in enumerate(prompts, start=1):
        parse(prompt, vocabulary, "the prompt" if len(prompts) == 1 else f"prompt {number}, {prompt!r}")


def _recipe(settings: GenerateSettings) -> dict[str, object]:
    sample = settings.sample
    return {
        "steps": sample.steps,
        "guidance_scale": sample.guidance_scale,
        "scheduler": sample.scheduler,
        "negative_prompt": sample.negative_prompt,
    }
