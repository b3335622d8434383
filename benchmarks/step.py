"""The training step beside the same step done the released way: ``python benchmarks/step.py [--shape mini]``.

Both ways get equal weights and equal inputs, and the losses of their first step are printed beside each other: they are
equal up to the precision. Each way runs in a process of its own, so that its peak memory is its own. Shapes:

    mini      the packaged model, 64 px
    sd15_256  Stable Diffusion 1.5 and DINOv2-base with random weights, 256 px
    sd15_512  the same at 512 px

Images are loaded and tokenized in neither way. ``--stages`` says of one more step what each of its stages took.

float32 is compared with float32 first: the released way, the same with results of the VAE and the patch features
kept from the first step (what caching alone gives), ours, and the floor: the operations of our step at the rate of one
large matrix product. What a precision adds is said after that, with the CPU that it depends on.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from floor import matrix_rate
from reference.released_step import ReleasedInputs, ReleasedStep
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils.logging import disable_progress_bar

from partcraft_lit.backbones.lora import add_lora
from partcraft_lit.backbones.settings import SampleSettings
from partcraft_lit.backbones.stable_diffusion import StableDiffusion, load_mini
from partcraft_lit.callbacks.loss_terms import AttentionTerm
from partcraft_lit.core.allocation import keep_freed_memory
from partcraft_lit.core.types import TokenizedPrompts, TrainingBatch
from partcraft_lit.losses.attention import entropy_attention_loss
from partcraft_lit.methods.optim import OptimSettings
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.tokens.grammar import PartVocabulary
from partcraft_lit.tokens.mapper import TokenMapper

#: Foreground parts and codes, as for birds.
PARTS, CODES = 5, 256
SNR_GAMMA, LAMBDA_ATTN, RATE = 5.0, 0.01, 1e-4
#: On a CPU: times as fast, share of the memory.
GOALS = {"mini": (3.0, None), "sd15_256": (3.5, 0.5), "sd15_512": (4.0, 0.4)}


@dataclass(frozen=True)
class Shape:
    """What is trained on."""

    resolution: int
    batch_size: int
    steps: int


SHAPES = {"mini": Shape(64, 8, 20), "sd15_256": Shape(256, 1, 3), "sd15_512": Shape(512, 1, 2)}


def make_backbone(name: str, dtype: torch.dtype) -> StableDiffusion:
    """The packaged miniature, or SD1.5's shapes with random weights that depend on nothing but a seed."""
    if name == "mini":
        return load_mini(dtype=dtype)
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from partcraft_lit.backbones.model_configs import SD1

    networks = {
        "unet": _random(lambda: UNet2DConditionModel.from_config(SD1["unet"]), dtype, seed=1),
        "vae": _random(lambda: AutoencoderKL.from_config(SD1["vae"]), torch.float32, seed=2),
        "text_encoder": _random(lambda: CLIPTextModel(CLIPTextConfig(**SD1["text_encoder"])), dtype, seed=3),
    }
    scheduler = DDPMScheduler.from_config(SD1["scheduler"])
    resolution = SHAPES[name].resolution
    return StableDiffusion(
        name=name, **networks, tokenizer=None, scheduler=scheduler, resolution=resolution, dtype=dtype
    )


def _random(make: Callable[[], Any], dtype: torch.dtype, seed: int) -> Any:
    """A network whose matrices are drawn in float32 one by one, so that each precision has the same ones, rounded."""
    with torch.device("meta"):
        network = make()
    network = network.to(dtype).to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel() if "embedding" not in name else 2500
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
            else:
                parameter.fill_(float(name.endswith("weight")))
        for name, buffer in network.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1])[None])
    return network


def make_features(name: str) -> Callable[[Tensor], Tensor]:
    """(B, 3, H, W) in -1...1 -> (B, h, w, D) patch features."""
    if name == "mini":
        from partcraft_lit.world.mini_features import MiniFeatures

        mini = MiniFeatures()
        return lambda pictures: torch.stack(mini([((p + 1) * 127.5).round().to(torch.uint8) for p in pictures]))
    from transformers import Dinov2Config, Dinov2Model

    network = _random(
        lambda: Dinov2Model(Dinov2Config(hidden_size=768, patch_size=14, image_size=518)), torch.float32, 4
    )

    def features(pictures: Tensor) -> Tensor:
        resized = nn.functional.interpolate(pictures, size=(256, 256), mode="bicubic", antialias=True)
        hidden = network(resized[:, :, 16:240, 16:240], output_hidden_states=True).hidden_states[-1]
        return hidden[:, 1:].unflatten(1, (16, 16))

    return features


class Clock:
    """Seconds (of the processor, or with a GPU by the clock) and peak memory of a step's stages, once it is armed."""

    def __init__(self) -> None:
        self.armed = False
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, whose calls count as a stage."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if not self.armed:
                return work(*args, **kwargs)
            _forget_peak()
            now = time.perf_counter if torch.cuda.is_available() else time.process_time
            _wait()
            start = now()
            result = work(*args, **kwargs)
            _wait()
            self.seconds[name] = self.seconds.get(name, 0.0) + now() - start
            self.peaks[name] = max(self.peaks.get(name, 0.0), _memory("VmHWM"))
            return result

        return run


class Tokens(nn.Module):
    """The part of a method that a step needs."""

    captures_noun_attention = False

    def __init__(self, mapper: TokenMapper) -> None:
        super().__init__()
        self.mapper = mapper
        names = ("background", *(f"part{number}" for number in range(1, PARTS + 1)))
        self.vocabulary = PartVocabulary(names, (CODES,) * (PARTS + 1))

    def part_vectors(self, tokens: TokenizedPrompts) -> Tensor:
        return self.mapper(tokens.part_ids, tokens.code_ids)

    def trainable_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"mapper": list(self.mapper.parameters())}


def make_mapper(backbone: StableDiffusion) -> TokenMapper:
    return TokenMapper(PARTS, CODES, backbone.token_widths, init_std=0.02, seed=0)


def draw_inputs(name: str, backbone: StableDiffusion) -> dict[str, Tensor]:
    """All that is random in a step, and the captions: "a photo of a" and the tokens of all parts in some order."""
    shape, generator = SHAPES[name], torch.Generator().manual_seed(0)
    batch, side = shape.batch_size, shape.resolution // backbone.vae_scale_factor
    config = backbone.text_encoders[0].config
    ids = torch.full((batch, 77), int(config.eos_token_id))
    ids[:, 0] = int(config.bos_token_id)
    ids[:, 1:5] = torch.tensor([320, 1125, 539, 320]) % int(config.bos_token_id)
    positions = torch.stack([5 + torch.randperm(PARTS + 1, generator=generator) for _ in range(batch)])
    latents = (batch, backbone.latent_channels, side, side)
    return {
        "pixel_values": torch.rand((batch, 3, shape.resolution, shape.resolution), generator=generator) * 2 - 1,
        "input_ids": ids,
        "positions": positions,
        "codes": torch.randint(CODES, (batch, PARTS + 1), generator=generator),
        "timesteps": torch.randint(50, 950, (batch,), generator=generator),
        "noise": torch.randn(latents, generator=generator),
        "posterior_noise": torch.randn(latents, generator=generator),
    }


def first_result(work: Callable[..., Any]) -> Callable[..., Any]:
    """``work``, which runs once and gives the same result ever after."""
    kept: list[Any] = []

    def run(*args: Any) -> Any:
        if not kept:
            kept.append(work(*args))
        return kept[0]

    return run


def released_way(
    name: str, case: Path, clock: Clock, device: str, cached: bool = False
) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """Sets the released step up; writes what it computed from the images into ``case``, for the other way.

    Args:
        cached: autoencoder and patch features run at the first step only.
    """
    backbone = make_backbone(name, torch.float32).to(device)
    network, mapper = make_features(name), make_mapper(backbone).to(device)
    drawn = {key: value.to(device) for key, value in draw_inputs(name, backbone).items()}

    def features(pictures: Tensor) -> Tensor:
        """On the CPU, where the released trainer leaves them also when there is a GPU."""
        return network(pictures.cpu()).to(device)

    vocabulary = backbone.text_encoders[0].get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ids = drawn["input_ids"].scatter(
        1, drawn["positions"], vocabulary + torch.arange(PARTS + 1, device=device).expand_as(drawn["codes"])
    )
    with torch.no_grad():
        sample = features(drawn["pixel_values"][:1])[0].flatten(0, 1)
    spread = sample[:: len(sample) // 7]
    trained = [*add_lora(backbone.unet, scope="all"), *mapper.parameters()]
    step = ReleasedStep(
        unet=backbone.unet,
        vae=backbone.vae,
        text_encoder=backbone.text_encoders[0],
        mapper=mapper,
        features=features,
        foreground=spread[:2],
        parts=spread[: PARTS + 1],
        alphas_cumprod=backbone.noise_scheduler.alphas_cumprod.to(device),
        scale=float(backbone.vae.config.scaling_factor),  # type: ignore[union-attr,arg-type]
        attention_size=backbone.attention_size,
        snr_gamma=SNR_GAMMA,
        velocity=backbone.noise_scheduler.config.prediction_type == "v_prediction",
    )
    if cached:
        step.encode, step.segment = first_result(step.encode), first_result(step.segment)  # type: ignore[method-assign]
    inputs = ReleasedInputs(
        drawn["pixel_values"], ids, drawn["codes"], drawn["timesteps"], drawn["noise"], drawn["posterior_noise"]
    )
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01)
    step.encode = clock.timed("VAE", step.encode)  # type: ignore[method-assign]
    step.segment = clock.timed("patch features", step.segment)  # type: ignore[method-assign]
    step.encode_text = clock.timed("text", step.encode_text)  # type: ignore[method-assign]
    backbone.unet.forward = clock.timed("UNet forward", backbone.unet.forward)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        diffusion, attention = step.loss(inputs)
        clock.timed("backward", (diffusion + LAMBDA_ATTN * attention).backward)()
        gradient = mapper.codes.grad.norm()  # type: ignore[union-attr]
        clock.timed("optimiser", lambda: _update(optimizer, trained))()
        if not case.exists():
            save_file({key: value.cpu().contiguous() for key, value in (drawn | step.seen).items()}, case)
        return diffusion.detach(), attention.detach(), gradient

    return run


def our_way(
    name: str, case: Path, precision: str, scope: str, clock: Clock, device: str, compiled: bool = False
) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """Sets the module's own step up, on what the store would give it."""
    keep_freed_memory()  # as every command does
    weights = torch.bfloat16 if precision == "bf16" else torch.float32
    backbone, given = make_backbone(name, weights).to(device), load_file(case, device=device)
    backbone.offload_vae()  # as hardware=cpu does
    mapper = make_mapper(backbone)
    add_lora(backbone.unet, scope=scope)  # type: ignore[arg-type]
    if compiled:
        backbone.compile_blocks()
    optim = OptimSettings(
        lora_lr=RATE,
        mapper_lr=RATE,
        unet_lr=RATE,
        text_encoder_lr=RATE,
        weight_decay=0.01,
        betas=(0.9, 0.999),
        eps=1e-8,
        warmup_steps=0,
        cooldown_steps=0,
        total_steps=1,
        phases=(),
    )
    sampling = SampleSettings(steps=1, guidance_scale=1.0, scheduler="ddim", negative_prompt="", batch_size=1)
    module = PersonalizationModule(  # as the released step, for a model that predicts the velocity too
        backbone,
        Tokens(mapper),  # type: ignore[arg-type]
        optim,
        SNR_GAMMA,
        sampling,
        snr_form="released",
    )
    terms: dict[str, Tensor] = {}

    def attention_loss(maps: Tensor, part_ids: Tensor, label_map: Tensor) -> Tensor:
        terms["attention"] = entropy_attention_loss(maps, part_ids, label_map, num_parts=PARTS)
        return terms["attention"]

    module.request_attention()
    module.add_loss_term(AttentionTerm("attn", LAMBDA_ATTN, attention_loss))
    module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign] there is no trainer to log to
    module.to(device).train()
    optimizer: Any = module.configure_optimizers()
    trained = [p for p in module.parameters() if p.requires_grad]
    part_ids = torch.arange(PARTS + 1, device=device).expand_as(given["codes"])
    tokens = TokenizedPrompts((given["input_ids"],), given["positions"], part_ids, given["codes"])
    backbone.encode_prompts = clock.timed("text", backbone.encode_prompts)  # type: ignore[method-assign]
    backbone.denoise = clock.timed("UNet forward", backbone.denoise)  # type: ignore[method-assign]

    def run() -> tuple[Tensor, Tensor, Tensor]:
        latents = given["mean"] + given["std"] * given["posterior_noise"]
        sample_ids = torch.arange(len(latents))
        batch = TrainingBatch(
            latents, given["noise"], given["timesteps"], given["label_map"], tokens, [], sample_ids, sample_ids
        )
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision != "fp32"):
            total = module.training_step(batch, 0)
        clock.timed("backward", total.backward)()
        gradient = mapper.codes.grad.norm()  # type: ignore[union-attr]
        clock.timed("optimiser", lambda: _update(optimizer, trained))()
        attention = terms["attention"].detach().mean()
        return total.detach() - LAMBDA_ATTN * attention, attention, gradient

    return run


def _update(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter]) -> None:
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def measure(run: Callable[[], tuple[Tensor, ...]], steps: int, clock: Clock) -> dict[str, Any]:
    """Losses of the first step; of those after it the least seconds, by the clock and by the processor, and memory.

    The least, since whatever else the machine does only adds to them; the processor's, since with one thread they
    hardly change when other work shares the cores. With several they do: one that waits for another counts too.
    """
    weights = _memory("VmRSS")
    loading = _memory("VmHWM")
    _forget_peak()
    started = time.perf_counter()
    first = [float(value) for value in run()]
    first_seconds = time.perf_counter() - started
    seconds, own = [], []
    for _ in range(steps):
        start, own_start = time.perf_counter(), time.process_time()
        run()
        _wait()
        seconds.append(time.perf_counter() - start)
        own.append(time.process_time() - own_start)
    peak = _memory("VmHWM")
    clock.armed = True
    run()
    clock.armed = False
    with FlopCounterMode(display=False) as counter:
        run()
    return {
        "operations": counter.get_total_flops(),
        "first": first_seconds,
        "seconds": min(seconds),
        "own": min(own),
        "peak": peak,
        "stages": {name: [clock.seconds[name], clock.peaks[name]] for name in clock.seconds},
        "weights": weights,
        "loading": loading,
        "losses": first,
    }


def _memory(name: str) -> float:
    """GB of this process, by the kernel's count (0 where it keeps none), or of the GPU where there is one."""
    if torch.cuda.is_available():
        return (torch.cuda.max_memory_allocated() if name == "VmHWM" else torch.cuda.memory_allocated()) / 1e9
    status = Path("/proc/self/status")
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text(encoding="utf-8")) if status.exists() else None
    return int(found[1]) * 1024 / 1e9 if found else 0.0


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5", encoding="utf-8")


def in_process(arguments: list[str]) -> dict[str, Any]:
    """Runs one way in a process of its own."""
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *arguments],
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    result: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return result


def compare(name: str, given: argparse.Namespace) -> None:
    shape = SHAPES[name]
    print(
        f"\n{name}: {shape.resolution} px, batch {shape.batch_size}, {given.device}, {given.threads} thread(s)",
        flush=True,
    )
    columns = {
        "first s": 9,
        "s/step": 9,
        "CPU s": 9,
        "peak GB": 9,
        "weights": 9,
        "diffusion": 11,
        "attention": 11,
        "gradient": 11,
    }
    print(" " * 24 + "".join(f"{title:>{width}}" for title, width in columns.items()))
    with tempfile.TemporaryDirectory() as folder:
        common = ["--shape", name, "--case", str(Path(folder) / "case.safetensors"), "--threads", str(given.threads)]
        common += ["--steps", str(given.steps or shape.steps), "--device", given.device, "--batch", str(given.batch)]
        released = in_process([*common, "--way", "released"])
        _row("released way, fp32", released)
        _row("the same, cached", cached := in_process([*common, "--way", "cached"]))
        rows = {}
        for precision in ["fp32", *(other for other in given.precision if other != "fp32")]:
            own = ["--precision", precision, "--scope", given.scope, *(["--compile"] if given.compile else [])]
            rows[precision] = in_process([*common, "--way", "ours", *own])
            _row(f"ours, {precision}{', compiled' if given.compile else ''}", rows[precision])
    ours = rows.pop("fp32")
    floor = ours["operations"] / matrix_rate(given.device, torch.float32) / 1e9
    print(
        f"fp32 against fp32: {_ratio(released, ours)}; caching alone {_ratio(released, cached)}; "
        f"at the machine's floor ({floor:.3f} s) {released['seconds'] / floor:.2f} times"
    )
    for precision, row in rows.items():
        faster, smaller = GOALS[name]
        goal = f"goal: {faster} times" + (f", {smaller} of the memory" if smaller else "")
        goal = goal if given.device == "cpu" else "goal: 10 times, at most 8 GB with batch 2"
        print(
            f"{precision} adds {_ratio(ours, row)}; against the released way {_ratio(released, row)}, "
            f"{row['peak'] / released['peak']:.2f} of its memory ({goal})",
            flush=True,
        )
    if given.stages:
        for row in (ours, *rows.values()):
            _print_stages(released["stages"], row["stages"])


def _ratio(slow: dict[str, Any], fast: dict[str, Any]) -> str:
    by_clock, by_processor = (slow[key] / fast[key] for key in ("seconds", "own"))
    return f"{by_clock:.2f} times as fast ({by_processor:.2f} by CPU s)"


def processor() -> str:
    """The CPU by name, and which of the instructions it has that training in a precision depends on."""
    listed = Path("/proc/cpuinfo")
    text = listed.read_text(encoding="utf-8") if listed.exists() else ""
    name = re.search(r"model name\s*:\s*(.+)", text)
    flags = set(found[1].split()) if (found := re.search(r"flags\s*:\s*(.+)", text)) else set()
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return f"{name[1] if name else platform.processor() or platform.machine()}: " + (
        ", ".join(flag if flag in flags else f"no {flag}" for flag in wanted) if flags else "flags unknown"
    )


def _print_stages(released: dict[str, list[float]], ours: dict[str, list[float]]) -> None:
    print("\n| stage | released, CPU s | GB | ours, CPU s | GB |\n|---|---|---|---|---|")
    for name, (seconds, peak) in released.items():
        mine = "{:.2f} | {:.2f}".format(*ours[name]) if name in ours else "from the store |"
        print(f"| {name} | {seconds:.2f} | {peak:.2f} | {mine} |")
    print(flush=True)


def _row(title: str, result: dict[str, Any]) -> None:
    losses = "".join(f"{value:11.6f}" for value in result["losses"])
    print(
        f"{title:<24}{result['first']:9.2f}{result['seconds']:9.3f}{result['own']:9.3f}{result['peak']:9.2f}{result['weights']:9.2f}{losses}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["mini"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=0, help="timed steps after the first; 0: as the shape says")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16-mixed", "bf16"), default=["bf16"])
    parser.add_argument("--scope", choices=("cross", "all"), default="cross", help="of our adapter")
    parser.add_argument("--compile", action="store_true", help="our transformer blocks, as hardware.compile does")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=0, help="0: as the shape says")
    parser.add_argument("--stages", action="store_true", help="also what each stage takes")
    parser.add_argument("--way", choices=("released", "cached", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    disable_progress_bar()
    logging.set_verbosity_error()
    if given.batch:
        SHAPES.update({name: replace(SHAPES[name], batch_size=given.batch) for name in given.shape})
    clock = Clock()
    if given.way in ("released", "cached"):
        run = released_way(given.shape[0], given.case, clock, given.device, cached=given.way == "cached")
        print(json.dumps(measure(run, given.steps, clock)))
    elif given.way == "ours":
        run = our_way(given.shape[0], given.case, given.precision[0], given.scope, clock, given.device, given.compile)
        print(json.dumps(measure(run, given.steps, clock)))
    else:
        print(processor())
        for name in given.shape:
            compare(name, given)


if __name__ == "__main__":
    main()
