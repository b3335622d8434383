"""Images from a run and prompts."""

from __future__ import annotations

from pathlib import Path

from partcraft_lit.backbones.settings import as_in_run
from partcraft_lit.commands.generate.settings import GenerateSettings
from partcraft_lit.composer.run import Run
from partcraft_lit.core.files import read_lines
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.visualization import grid, save_png, upscale
from partcraft_lit.runs.assembly import UNTRAINED

_SHOWN_SIDE = 192


def generate(settings: GenerateSettings, folder: Path, run: Run) -> list[Path]:
    """``partcraft generate``: one PNG per prompt and seed with its recipe as metadata, and a contact sheet.

    Returns:
        Paths of the images, the sheet last.

    Raises:
        UserError: for a prompt with unknown parts, before the backbone is loaded, or one that is too long.
    """
    stages = Stages()
    prompts = read_prompts(settings)
    compositions = [
        run.composition(prompt, settings.sample.negative_prompt, _where(number, prompts))
        for number, prompt in enumerate(prompts, start=1)
    ]
    with stages.stage("load"):
        run.load()
    for composition in compositions:
        for choice in composition.choices:
            if choice.code in run.untrained_codes.get(choice.part, ()):
                stages.log(f"  <{choice.part}:{choice.code}> is untrained: {UNTRAINED}.")
    seeds = [settings.seed + index for index in range(settings.num_images)]
    sample = as_in_run(settings.sample, run.settings.sample)
    if sample != settings.sample:
        stages.log(
            f"  {sample.scheduler}, {sample.steps} steps and guidance {sample.guidance_scale:g}, as in the run: name "
            "sample.scheduler to choose these."
        )
    with stages.stage("draw"):
        results = run.draw(compositions, seeds, sample=run.settings.hardware.capped(sample))
    names = [(number, seed) for number in range(len(prompts)) for seed in seeds]
    paths = [
        result.save(folder / (f"{seed:06d}.png" if len(prompts) == 1 else f"{number:03d}_{seed:06d}.png"))
        for (number, seed), result in zip(names, results, strict=True)
    ]
    sheet = [upscale(result.tensor, max(_SHOWN_SIDE, *result.tensor.shape[1:])) for result in results]
    columns = None if len(prompts) == 1 else len(seeds)  # a row per prompt
    shared = {key: value for key, value in results[0].recipe.items() if key not in _OF_EACH}
    recipe = {"prompt": "\n".join(prompts), **shared}
    paths.append(save_png(folder / "sheet.png", grid(sheet, columns=columns, pad=6, border=6), recipe))
    stages.log(f"Images: {folder}")
    return paths


#: What the images of a sheet do not share.
_OF_EACH = ("prompt", "seed", "diffusers_seed", "composition")


def read_prompts(settings: GenerateSettings) -> list[str]:
    """Prompts of the settings, in order.

    Raises:
        UserError: if the file is unreadable or empty.
    """
    if settings.prompts_file is None:
        return [settings.prompt or ""]
    return read_lines(settings.prompts_file, "prompts_file")


def _where(number: int, prompts: list[str]) -> str:
    return "the prompt" if len(prompts) == 1 else f"prompt {number}, {prompts[number - 1]!r}"
