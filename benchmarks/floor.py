"""What a step cannot do without, by arithmetic: ``python benchmarks/floor.py [--device cuda]``.

Networks of SD1.5's and DINOv2-base's shapes run on torch's meta device, where operations are counted and nothing is
computed. Bytes are those of the weights, read once forward and once backward, and of what the backward pass needs,
written and read once. Seconds follow from what the machine does at its best on one large matrix product and one large
copy, both measured here, with the same number of threads: a step is at least the longer of the two.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from partcraft_lit.backbones.lora import add_lora
from partcraft_lit.backbones.model_configs import SD1


def count(work: Callable[[], Any]) -> float:
    """Floating-point operations of a call, in units of 10^12; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e12


def kept_bytes(work: Callable[[], Any], frozen: nn.Module) -> float:
    """GB in bfloat16 that a forward pass keeps for the backward pass, weights not counted, each tensor once."""
    weights = {parameter.untyped_storage()._cdata for parameter in frozen.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    del result
    return sum(tensor.numel() for tensor in kept.values()) * 2 / 1e9


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """10^9 operations per second of a product of large square matrices."""
    side = 2048 if device == "cpu" else 8192
    one = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / best_seconds(lambda: one @ one, device) / 1e9


def copy_rate(device: str) -> float:
    """10^9 bytes per second, read and written."""
    one = torch.zeros(1 << 28, dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    return 2 * one.numel() / best_seconds(lambda: other.copy_(one), device) / 1e9


def best_seconds(work: Callable[[], Any], device: str, times: int = 7) -> float:
    """The least of several; of one thread the processor's seconds, which other work on its core does not change."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    found = []
    for _ in range(times):
        start = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        found.append(clock() - start)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--measured", type=float, nargs=2, default=(0.0, 0.0), help="seconds of our step, 256 and 512 px"
    )
    given, _ = parser.parse_known_args()
    torch.set_num_threads(given.threads)
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, Dinov2Config, Dinov2Model

    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(SD1["unet"]), AutoencoderKL.from_config(SD1["vae"])
        text, dino = CLIPTextModel(CLIPTextConfig(**SD1["text_encoder"])), Dinov2Model(Dinov2Config(patch_size=14))
    for network in (vae, text, dino):
        network.requires_grad_(False)
    weights = 2 * sum(p.numel() for network in (unet, text) for p in network.parameters()) / 1e9
    add_lora(unet, scope="cross")
    rates = {dtype: matrix_rate(given.device, dtype) for dtype in (torch.bfloat16, torch.float32)}
    copied = copy_rate(given.device)
    print(
        f"{given.threads} thread(s) of {given.device}: {rates[torch.bfloat16]:.0f} GFLOP/s in bfloat16, "
        f"{rates[torch.float32]:.0f} in float32, {copied:.1f} GB/s"
    )
    print(f"UNet and text encoder: {weights:.2f} GB in bfloat16. 10^12 operations, batch 1:")
    print(
        "| px | VAE | DINOv2 | text forward | UNet forward | backward | ours | released | ours, GB moved | floor, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for resolution, measured in zip((256, 512), given.measured, strict=True):
        latents = torch.empty(1, 4, resolution // 8, resolution // 8, device="meta")
        context = torch.empty(1, 77, 768, device="meta", requires_grad=True)
        timestep, ids = torch.empty(1, device="meta"), torch.empty(1, 77, dtype=torch.long, device="meta")
        kept: list[Tensor] = []

        def forward(latents: Tensor = latents, timestep: Tensor = timestep, context: Tensor = context) -> Tensor:
            result: Tensor = unet(latents, timestep, encoder_hidden_states=context).sample
            return result

        texts = count(lambda: text(ids))  # noqa: B023
        unet_forward = count(lambda: kept.append(forward()))  # noqa: B023
        backward = count(lambda: kept[0].sum().backward()) + texts  # noqa: B023
        encoder = count(lambda: vae.encode(torch.empty(1, 3, resolution, resolution, device="meta")))  # noqa: B023
        patches = count(lambda: dino(torch.empty(1, 3, 224, 224, device="meta")))
        ours = unet_forward + backward + texts
        moved = 2 * weights + 2 * kept_bytes(forward, unet)
        floor = max(ours * 1e3 / rates[torch.bfloat16], moved / copied)
        cells = [encoder, patches, texts, unet_forward, backward, ours, ours + encoder + patches, moved, floor]
        print(f"| {resolution} | {' | '.join(f'{cell:.2f}' for cell in cells)} |", flush=True)
        if measured:
            print(f"    measured {measured:g} s: {measured / floor:.1f} times the floor")


if __name__ == "__main__":
    main()
