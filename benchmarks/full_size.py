"""What a training step costs at full size: ``python benchmarks/full_size.py [--device cuda] [--resolution 512]``.

SD1.5 (with ``--kinds sd15,sdxl,prx,flux2_klein`` others, for a GPU) with random weights built from the published
settings, so nothing is downloaded: one optimisation step of PartCraft as released (LoRA of rank 4 on all attention,
three-layer mapper, 7 + 1 parts, 256 codes, entropy attention loss) on latents that are already encoded. Each case runs
in a process of its own, so that one peak of memory does not hide another. Before that, shapes and counts of all models
are looked up without weights. Prints Markdown.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from partcraft_lit.backbones.attention import cross_attention_sides
from partcraft_lit.backbones.latent_diffusion import LatentDiffusion, Precision, choose_attention_layers
from partcraft_lit.backbones.latent_model import LatentModel
from partcraft_lit.backbones.lora import add_lora
from partcraft_lit.backbones.model_configs import SD1, SDXL_BASE
from partcraft_lit.backbones.settings import Quantization, SampleSettings
from partcraft_lit.backbones.stable_diffusion import StableDiffusion
from partcraft_lit.backbones.stable_diffusion_xl import StableDiffusionXL
from partcraft_lit.callbacks.loss_terms import AttentionLoss
from partcraft_lit.core.types import TokenizedPrompts, TrainingBatch
from partcraft_lit.losses.attention import entropy_attention_loss
from partcraft_lit.methods.optim import OptimSettings
from partcraft_lit.methods.part_tokens import PartTokens
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.tokens.captions import CaptionBuilder
from partcraft_lit.tokens.grammar import PartVocabulary
from partcraft_lit.tokens.mapper import TokenMapper

PARTS, CODES = 7, 256
OPTIM = OptimSettings(
    lora_lr=1e-4, mapper_lr=1e-4, unet_lr=1e-4, text_encoder_lr=1e-4, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8,
    warmup_steps=0, cooldown_steps=0, total_steps=1, phases=(),
)  # fmt: skip
SAMPLING = SampleSettings(steps=1, guidance_scale=1.0, scheduler="dpm++", negative_prompt="", batch_size=1)


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        kind: "sd15", "sdxl", "prx" or "flux2_klein".
        weights: number format of the frozen networks.
        autocast: whether the step runs under bfloat16 autocast.
        checkpointing: whether activations are computed again in the backward pass.
        device, batch, resolution, steps: the last are timed one by one; the first of several is not counted.
        compiled: whether the UNet's transformer blocks are.
        quantize: frozen linear layers of FLUX.2 klein.
        offloaded: whether its text encoder rests on the CPU, with part vectors behind it.
        small: tiny networks of the same classes, for PRX and FLUX.2 klein.
    """

    kind: str
    weights: Precision
    autocast: bool
    checkpointing: bool
    device: str
    batch: int
    resolution: int
    steps: int
    compiled: bool = False
    quantize: Quantization | None = None
    offloaded: bool = False
    small: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1, help="more than one: the first is not counted")
    parser.add_argument("--kinds", default="sd15", help="of sd15, sdxl, prx, flux2_klein, with commas")
    parser.add_argument("--weights", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on a CPU")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--listen", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.listen:
        listen()
        return
    if given.case:
        print(json.dumps(measure(Case(**json.loads(given.case)))))
        return
    print_counts()
    print(f"\nOne step, batch {given.batch}, {given.resolution} px, {machine(given.device)}:\n")
    print("| model | weights | autocast | checkpointing | s / step | CPU s | peak, GB | maps | loss |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in cases(given):
        print(row(case), flush=True)


def listen() -> None:
    """Measures the cases that come in, a line of JSON each, and answers with a line each: null for one that failed.

    On a GPU, where the peak of memory can be forgotten between them, and a start takes longer than a measurement.
    """
    for line in sys.stdin:
        found = None
        try:
            found = measure(Case(**json.loads(line)))
        except Exception as error:  # no memory, mostly; the next case may fit
            print(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}", file=sys.stderr, flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(json.dumps(found), flush=True)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    """On a GPU also with activations computed again, which is of no use where memory is not short."""
    on_gpu = given.device != "cpu"
    for kind in given.kinds.split(","):
        for weights, autocast in (("float32", False), ("float32", True), ("bfloat16", True)):
            if weights not in given.weights:
                continue
            for checkpointing in (False, True) if on_gpu else (False,):
                yield Case(
                    kind, weights, autocast, checkpointing, given.device, given.batch, given.resolution, given.steps
                )


def row(case: Case) -> str:
    """Runs a case in a process of its own; a case that fails, for want of memory say, is a row too."""
    threads = str(torch.get_num_threads())
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), "--threads", threads]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    autocast, again = "bf16" if case.autocast else "no", "yes" if case.checkpointing else "no"
    head = f"| {case.kind} | {case.weights} | {autocast} | {again} |"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return f"{head} failed | | | | {last[:80]} |"
    found = json.loads(done.stdout.strip().splitlines()[-1])
    spent = f"{found['seconds']:.2f} | {found['own']:.2f} | {found['gigabytes']:.2f}"
    return f"{head} {spent} | {found['maps']} | {found['loss']:.4f} |"


def measure(case: Case) -> dict[str, Any]:
    """Seconds per step and peak memory of a case, with the maps that were read."""
    torch.manual_seed(0)
    backbone = build_backbone(case)
    module = build_module(backbone, case).to(case.device).train()
    backbone.offload_vae()  # as hardware=cpu, 8gb, 12gb and 16gb do
    if case.compiled:
        backbone.compile_blocks()
    if case.offloaded:
        backbone.inject = "after"
    if case.checkpointing:
        backbone.enable_gradient_checkpointing()
    (optimizer,) = [module.configure_optimizers()]
    batch = random_batch(backbone, case)
    seconds: list[float] = []
    own: list[float] = []
    forget_peak()  # that of making the networks
    with recorded_maps(backbone) as met:
        for _ in range(case.steps):
            met.clear()
            started, own_started = time.perf_counter(), time.process_time()
            with torch.autocast(torch.device(case.device).type, torch.bfloat16, enabled=case.autocast):
                loss = module.training_step(batch, 0)
            forward = list(met) or [backbone.attention_size] * len(backbone.attention_layers)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            value = float(loss.detach())  # waits for the device
            seconds.append(time.perf_counter() - started)
            own.append(time.process_time() - own_started)
    counted, own = seconds[1:] or seconds, own[1:] or own
    assert math.isfinite(value)
    return {
        "seconds": sum(counted) / len(counted),
        "own": sum(own) / len(own),
        "gigabytes": peak_gigabytes(case.device),
        "maps": f"{len(forward)} of {'/'.join(sorted({f'{side}x{side}' for side in forward}))}",
        "loss": value,
    }


def build_backbone(case: Case) -> LatentModel:
    """Random weights, made where they are used. No tokenizer: prompts are given as ids."""
    if case.kind in ("prx", "flux2_klein"):
        from transformer_sizes import build

        return build(case)
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    settings = SDXL_BASE if case.kind == "sdxl" else SD1
    with torch.device(case.device):
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config(settings["unet"]),
            "vae": AutoencoderKL.from_config(settings["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**settings["text_encoder"])),
        }
        if case.kind == "sdxl":
            parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**settings["text_encoder_2"]))
    parts["scheduler"] = DDPMScheduler.from_config(settings["scheduler"])
    common = {"name": case.kind, "resolution": case.resolution, "dtype": case.weights, **parts}
    if case.kind == "sdxl":
        return StableDiffusionXL(tokenizer=None, tokenizer_2=None, **common)
    return StableDiffusion(tokenizer=None, **common)


def build_module(backbone: LatentModel, case: Case) -> PersonalizationModule:
    """PartCraft as released, with its attention loss in place."""
    vocabulary = PartVocabulary(("background", *(f"part{i}" for i in range(1, PARTS + 1))), (CODES,) * (PARTS + 1))
    captions = CaptionBuilder(
        vocabulary, template_prob=0.5, shuffle=True, class_noun="", drop_prob=0.0, background=True
    )
    widths = backbone.context_widths if case.offloaded else backbone.token_widths
    mapper = TokenMapper(PARTS, CODES, widths, layers=3)
    add_lora(backbone.denoiser, rank=4, scope="all", targets=backbone.lora_targets("all"))
    snr_gamma = 5.0 if backbone.flow is None else None
    module = PersonalizationModule(backbone, PartTokens(vocabulary, mapper, captions, ()), OPTIM, snr_gamma, SAMPLING)
    loss = functools.partial(entropy_attention_loss, num_parts=PARTS)
    AttentionLoss(0.01, loss).on_fit_start(None, module)  # type: ignore[arg-type]
    return module


def random_batch(backbone: LatentModel, case: Case) -> TrainingBatch:
    """Noise as latents, and a prompt of nothing but the part tokens."""
    side, tokens = case.resolution // backbone.vae_scale_factor, PARTS + 1
    ids = torch.full((case.batch, 77), 49407)
    ids[:, 0], ids[:, 1 : 1 + tokens] = 49406, 0
    each = torch.arange(tokens).expand(case.batch, tokens)
    shape = (case.batch, backbone.latent_channels, side, side)
    prompts = TokenizedPrompts((ids,) * len(backbone.text_encoders), each + 1, each, torch.zeros_like(each))
    if backbone.flow is not None:
        from transformer_sizes import prompts as prompts_of

        prompts = prompts_of(case)
    batch = TrainingBatch(
        latents=torch.randn(shape),
        noise=torch.randn(shape),
        timesteps=torch.full((case.batch,), 400),
        label_map=torch.randint(tokens, (case.batch, backbone.attention_size, backbone.attention_size)).byte(),
        tokens=prompts,
        prompts=[""] * case.batch,
        sample_ids=torch.arange(case.batch),
        image_ids=torch.arange(case.batch),
    )
    return batch.to(case.device)


@contextmanager
def recorded_maps(backbone: LatentModel) -> Iterator[list[int]]:
    """Side of the map of each layer that attention is read from, as the forward pass of a UNet meets it."""
    met: list[int] = []
    if not isinstance(backbone, LatentDiffusion):
        yield met
        return

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        met.append(math.isqrt(args[0].shape[1]))

    layers = [backbone.unet.get_submodule(name) for name in backbone.attention_layers]
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        yield met
    finally:
        for handle in handles:
            handle.remove()


def forget_peak() -> None:
    """From here on the peak is that of what follows."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if (path := Path("/proc/self/clear_refs")).exists():
        path.write_text("5", encoding="utf-8")


def peak_gigabytes(device: str) -> float:
    """Of the GPU's memory, or of the process since ``forget_peak`` where the system tells."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))):
        return int(found[1]) * 1024 / 1e9
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9


def print_counts() -> None:
    """Counts and maps of all models on the meta device: nothing is computed."""
    from transformer_sizes import counts

    print("| model | UNet | LoRA r4 cross | LoRA r4 all | mapper, 3 layers | maps at 512 px | at 1024 px |")
    print("|---|---|---|---|---|---|---|")
    for name, settings, widths in (("SD1.5", SD1, (768,)), ("SDXL", SDXL_BASE, (768, 1280))):
        cells = [count(meta_unet(settings)), *(lora_count(meta_unet(settings), scope) for scope in ("cross", "all"))]
        cells.append(count(TokenMapper(PARTS, CODES, widths, layers=3)))
        maps = [maps_of(meta_unet(settings), side) for side in (64, 128)]
        print(f"| {name} | {' | '.join(f'{cell:,}' for cell in cells)} | {' | '.join(maps)} |")
    print("\n" + "\n".join(counts()))


def meta_unet(settings: dict[str, dict[str, Any]]) -> Any:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(settings["unet"])


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def lora_count(unet: Any, scope: str) -> int:
    return sum(parameter.numel() for parameter in add_lora(unet, rank=4, scope=scope))  # type: ignore[arg-type]


def maps_of(unet: Any, latent_size: int) -> str:
    size, names = choose_attention_layers(unet, latent_size)
    assert all(cross_attention_sides(unet, latent_size)[name] == size for name in names)
    return f"{len(names)} of {size}x{size}"


def machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    main()
