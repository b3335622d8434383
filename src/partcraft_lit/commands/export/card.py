"""The model card of an export: what it is, whose licences apply, and lines to paste for each tool."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from partcraft_lit.backbones.pipelines import pipeline_seed
from partcraft_lit.backbones.sampling import scheduler_class
from partcraft_lit.commands.export.bundle import Bundle
from partcraft_lit.commands.export.verify import Found
from partcraft_lit.commands.export.workflow import SAMPLER, SCHEDULE, canvas_seed, matching_steps
from partcraft_lit.core.files import atomic_write
from partcraft_lit.tokens.embedding_files import ExportedPart, Tool, renamed_prompt

CARD = "README.md"
#: Folder of the file for A1111 that holds the adapter and all embeddings.
ONE_FILE = "a1111_one_file"
#: Parts in the prompts of the card, rows of its table, images per row of its gallery.
_SHOWN, _ROWS, _COLUMNS = 4, 400, 6
#: Stands in the lines to paste for a base model that is on this machine alone.
_PLACE = "FOLDER_OR_HUB_ID_OF_THE_BASE_MODEL"


def write_card(bundle: Bundle, results: Mapping[Tool, Found], folder: Path, images: Sequence[Path]) -> list[Path]:
    """Writes ``README.md``.

    Args:
        bundle: what was exported.
        results: what reading it again gave, by tool.
        folder: of the export.
        images: thumbnails that lie in it.
    """
    sections = [
        _front_matter(bundle),
        _head(bundle),
        _gallery(bundle, folder, {path.stem: path for path in images if path.parent == folder / "thumbnails"}),
        *(_USES[target](bundle) for target in results),
        _parts(bundle),
        _proof(bundle, results),
        _licences(bundle),
    ]
    atomic_write(folder / CARD, "\n\n".join(section for section in sections if section) + "\n")
    return [folder / CARD]


def _front_matter(bundle: Bundle) -> str:
    lines = ["---", "library_name: diffusers"]
    if bundle.origin.model_is_public:
        lines += [f"base_model: {bundle.origin.model}"]
    lines += [f"license: {bundle.license}"]
    if bundle.license == "other":
        lines += ["license_name: unknown"]
    lines += [
        "tags:",
        *(f"- {tag}" for tag in ("text-to-image", "diffusers", "lora", "textual-inversion", "partcraft")),
    ]
    return "\n".join([*lines, f'instance_prompt: "{_prompt(bundle)}"', "---"])


def _head(bundle: Bundle) -> str:
    base = "the miniature model of partcraft-lit" if bundle.origin.model_is_packaged else f"`{bundle.origin.model}`"
    lora = f"LoRA of rank {bundle.rank} on {bundle.num_layers} layers" if bundle.adapters else "no LoRA"
    text = (
        f"# {bundle.name}\n\n{len(bundle.parts)} parts to compose images from, for {base} ({bundle.family.title}), "
        f"and {lora}.\nA part is one word of a prompt. **The LoRA belongs to it**: a part's embedding alone is not the "
        f"part. Trained with partcraft-lit, run `{bundle.run}`."
    )
    if not bundle.family.is_known and {"a1111", "comfyui"} & set(bundle.settings.to):
        text += (
            "\n\nThis base model is a miniature, which A1111 and ComfyUI cannot load. Their files are in the right "
            "format, and of use only as an example of it."
        )
    return text


def _gallery(bundle: Bundle, folder: Path, images: Mapping[str, Path]) -> str:
    cells = [
        f"![{part.stem}]({images[part.stem].relative_to(folder).as_posix()})<br>`{part.placeholder}`"
        for part in bundle.parts
        if part.stem in images
    ]
    if not cells:
        return ""
    columns = min(_COLUMNS, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    rows[-1] += [""] * (columns - len(rows[-1]))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    caption = f"Each from the prompt `a photo of a <part:code>` alone, seed {bundle.settings.seed}."
    return "\n".join([lines[0], f"|{' --- |' * columns}", *lines[1:], "", caption])


# How to use it.


def _diffusers(bundle: Bundle) -> str:
    sample, seed, two = bundle.settings.sample, bundle.settings.seed, len(bundle.family.embedding_keys) > 1
    scheduler = scheduler_class(sample.scheduler)[0]
    where = f'"{_PLACE}"'
    if bundle.origin.model_is_public:
        where = f'"{bundle.origin.model}"'
    extra = ""
    if bundle.origin.model_is_packaged:
        extra, where = "from partcraft_lit.backbones.loading import packaged_weights\n", 'packaged_weights("mini")'
    safety = "" if two else ", safety_checker=None"
    lines = [
        "from glob import glob",
        "import torch",
        f"from diffusers import {bundle.family.pipeline}, {scheduler}",
        f"{extra}",
        f"pipe = {bundle.family.pipeline}.from_pretrained({where}, dtype=torch.float32{safety})",
    ]
    if two:  # before the embeddings are loaded, so that nobody leaves it out
        lines += [
            "# Published text encoders look for the end of a prompt at its largest id; added words have larger ones.",
            "pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id",
        ]
    lines += [
        f'pipe.scheduler = {scheduler}.from_pretrained("diffusers/scheduler")',
        *(['pipe.load_lora_weights("diffusers", adapter_name="parts")'] if bundle.adapters else []),
        'pipe.load_textual_inversion(sorted(glob("diffusers/text_encoder/*.safetensors")))',
    ]
    if two:
        lines += [
            'pipe.load_textual_inversion(sorted(glob("diffusers/text_encoder_2/*.safetensors")),',
            "                            text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)",
        ]
    rescale = f"guidance_rescale={bundle.guidance_rescale:g}, " if bundle.guidance_rescale else ""
    lines += [
        "image = pipe(",
        f'    "{_prompt(bundle)}",',
        *([f"    negative_prompt={sample.negative_prompt!r},"] if sample.negative_prompt else []),
        f"    num_inference_steps={sample.steps}, guidance_scale={sample.guidance_scale:g}, {rescale}"
        f"height={bundle.resolution}, width={bundle.resolution},",
        f"    generator=torch.Generator().manual_seed({pipeline_seed(seed)}),  # = seed {seed} of partcraft generate",
        ").images[0]",
    ]
    code = "\n".join(line for line in lines if line)
    return (
        f"## diffusers\n\n```python\n{code}\n```\n\nThis is the image of `partcraft generate 'prompt="
        f"{_prompt(bundle)}' seed={seed}`, without any of partcraft. Load only the files of `text_encoder` that "
        f'you need. A second adapter goes on top, `pipe.load_lora_weights(..., adapter_name="style")` and '
        f'`pipe.set_adapters(["parts", "style"])`{_INPAINTING if bundle.family.is_known else ""}.'
    )


#: The miniature's latents have more channels than diffusers' inpainting takes.
_INPAINTING = "; other pipelines take this one's components, `AutoPipelineForInpainting.from_pipe(pipe)`"


def _a1111(bundle: Bundle) -> str:
    return (
        f"## A1111, Forge\n\nCopy `a1111/models` and `a1111/embeddings` into the program's folder, then:\n\n```text\n"
        f"{_prompt(bundle, 'a1111')}\n{_negative(bundle, 'a1111')}```\n\n{_limits(bundle)} "
        f"`(word:1.2)` weighs a part as any word, which is not the same as the weights of `partcraft generate`. A "
        f"click on the LoRA adds it with one variant of each part. {_PADDED}{_one_file(bundle)}"
    )


def _comfyui(bundle: Bundle) -> str:
    lora = f" with a LoraLoader for `{bundle.name}.safetensors`, strength 1" if bundle.adapters else ""
    return (
        f"## ComfyUI\n\nCopy `comfyui/models` into the program's folder; prompt{lora}:\n\n```text\n"
        f"{_prompt(bundle, 'comfyui')}\n{_negative(bundle, 'comfyui')}```\n\n{_limits(bundle)}\n\n"
        f"Or drop `comfyui/workflow.json` on the canvas and choose your checkpoint in the first node "
        f"(`workflow_api.json` is the same for scripts). It samples with `{SAMPLER}`, `{SCHEDULE}` and "
        f"{matching_steps(bundle.settings.sample.steps)} steps, and gives the image of `partcraft generate 'prompt="
        f"{_prompt(bundle)}' seed={canvas_seed(bundle.settings.seed)} sample.scheduler=euler "
        f"sample.steps={matching_steps(bundle.settings.sample.steps)}` to within a grey level.\n\n"
        f"**A name that is not found is left out without an error**, and the image shows another part: write a space "
        f"behind each `embedding:...`, never a full stop or a comma. {_PADDED}"
    )


#: What is lost without a message.
_PADDED = "Codes are zero-padded as in the table below: `-07` is a part, `-7` is ordinary text."


def _one_file(bundle: Bundle) -> str:
    if not bundle.adapters:
        return ""
    return (
        f"\n\n`{ONE_FILE}/{bundle.name}.safetensors` is the LoRA with all parts inside, for `models/Lora`, in place of "
        "the two folders: A1111 from 1.6 and Forge know its parts while the LoRA is in the prompt. ComfyUI does not."
    )


_USES: dict[Tool, Callable[[Bundle], str]] = {"diffusers": _diffusers, "a1111": _a1111, "comfyui": _comfyui}


def _limits(bundle: Bundle) -> str:
    return (
        f"Images of {bundle.resolution} x {bundle.resolution}, {bundle.settings.sample.steps} steps, CFG "
        f"{bundle.settings.sample.guidance_scale:g}. Noise differs between programs: images are alike, not equal."
    )


def prompt_in(bundle: Bundle, tool: Tool) -> str:
    """The card's prompt in a tool's words, without an adapter."""
    return _prompt(bundle, tool).removesuffix(f" <lora:{bundle.name}:1>")


def negative_in(bundle: Bundle, tool: Tool) -> str:
    """The negative prompt in a tool's words; "" without one."""
    words = {part.token: part.word(tool) for part in bundle.parts}
    prompt = renamed_prompt(bundle.settings.sample.negative_prompt, bundle.vocabulary, words)
    # ComfyUI takes all up to the next space for the name, and what has no file is left out.
    return re.sub(r"(embedding:[\w-]+)(?=[^\s\w-])", r"\1 ", prompt) if tool == "comfyui" else prompt


def _prompt(bundle: Bundle, tool: Tool = "diffusers") -> str:
    """A prompt with one variant of each of the first parts."""
    first: dict[int, ExportedPart] = {}
    for part in bundle.parts:
        first.setdefault(part.token.part, part)
    words = [part.word(tool) for part in list(first.values())[:_SHOWN]]
    lora = f" <lora:{bundle.name}:1>" if tool == "a1111" and bundle.adapters else ""
    return f"a photo of a {' '.join(words)}{lora}"


def _negative(bundle: Bundle, tool: Tool) -> str:
    """A line with the negative prompt in a tool's words, as A1111 writes it; empty without one."""
    prompt = negative_in(bundle, tool)
    return f"Negative prompt: {prompt}\n" if prompt else ""


# What is in it.


def _parts(bundle: Bundle) -> str:
    tools = [target for target in _USES if target in bundle.settings.to]
    lines = [f"| {' | '.join(tools)} |", f"|{' --- |' * len(tools)}"]
    lines += [f"| {' | '.join(f'`{part.word(tool)}`' for tool in tools)} |" for part in bundle.parts[:_ROWS]]
    more = len(bundle.parts) - _ROWS
    return "\n".join(["## Parts\n", *lines, *([f"\n... and {more} more, in `export.json`."] if more > 0 else [])])


def _proof(bundle: Bundle, results: Mapping[Tool, Found]) -> str:
    lines = ["| files | layers | weights | text | image |", "| --- | --- | --- | --- | --- |"]
    for target, found in results.items():
        lines.append(
            f"| {target} | {found.layers}/{bundle.num_layers} | {found.weights:.1e} | {found.text:.1e} | "
            f"{found.image:.2f} |"
        )
    return "\n".join(
        [
            "## Checked\n",
            "Every file was read again and compared with the trained model: the largest error of a layer's change and "
            "of the text encoders' output, as a share of the largest number, and the mean difference of an image in "
            "grey levels of 255. Files for A1111 and ComfyUI were read by diffusers and by those tools' rules for "
            "names, not by the tools.",
            "",
            *lines,
        ]
    )


def _licences(bundle: Bundle) -> str:
    origin, family = bundle.origin, bundle.family
    if origin.model_is_packaged:
        model = "the miniature model of partcraft-lit, under Apache-2.0."
    elif family.is_known:
        model = (
            f"`{origin.model}`. Models of {family.title} were first published under [{family.license}]"
            f"({family.license_address}), whose limits on use pass on to this LoRA; a descendant may have terms of its "
            f"own. Look at those of yours."
        )
    else:
        model = f"`{origin.model}`, whose licence is not known to partcraft. Look it up before you share this."
    if bundle.settings.data_license:
        data = f"{bundle.settings.data_license}."
    elif origin.data_is_drawn:
        data = "drawn by partcraft-lit itself; nobody else has rights in them."
    else:
        data = (
            "**unknown**. partcraft does not know who made them or under which licence. Share this only if you have "
            "the right to, and say so here (`data_license=...`)."
        )
    return f"## Licences\n\n- Base model: {model}\n- Training images: {data}"
