"""A miniature of FLUX.2 klein: the classes of diffusers and transformers at widths of 4 to 32, and a Qwen tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch

from vocabularies import learned_merges

#: Words that the tokenizer knows as one token, with a space before them and without.
WORDS = (
    "a an the of in on with and photo picture rendering painting drawing cropped close up bright dark good bad clean "
    "dirty cool nice small large weird bird birds dog cat robot red blue green striped head body wing tail leg blurry "
    "user assistant think sks image first second from house person car tree chair flower thing word one"
)
#: Qwen3's template of one question without thinking, written anew for one message.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
#: Layers that are read of the encoder's four.
LAYERS = (1, 2, 3)
RESOLUTION = 32


def _alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]


def _vocabulary(words: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Bytes and the merges that build each word, as conftest's for CLIP."""
    merges = learned_merges(words)
    tokens = dict.fromkeys([*_alphabet(), *("".join(pair) for pair in merges)])
    return {token: index for index, token in enumerate(tokens)}, merges


@functools.cache
def tokenizer() -> Any:
    from transformers import Qwen2Tokenizer

    words = WORDS.split()
    vocabulary, merges = _vocabulary([*words, *(f"Ġ{word}" for word in words)])  # Ġ stands for the space
    made = Qwen2Tokenizer(
        vocab=vocabulary, merges=merges, chat_template=CHAT_TEMPLATE, additional_special_tokens=list(SPECIAL)
    )
    made.model_max_length = 512
    return made


def text_encoder(seed: int = 0) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer()),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=5,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                pad_token_id=None,
            )
        ).eval()


def transformer(seed: int = 0, **changes: Any) -> Any:
    from diffusers import Flux2Transformer2DModel

    settings = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16 * len(LAYERS),
        "timestep_guidance_channels": 16,
        "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": False,
        "mlp_ratio": 2.0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Flux2Transformer2DModel(**{**settings, **changes}).eval()


def vae(seed: int = 0) -> Any:
    """With latents of two channels per pixel, four patches of which make a token's sixteen; its statistics are not
    those of an identity."""
    from diffusers import AutoencoderKLFlux2

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoencoderKLFlux2(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=RESOLUTION,
        )
        network.bn.running_mean.normal_(std=0.3)
        network.bn.running_var.uniform_(0.5, 2.0)
    return network.eval()


def scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
        max_image_seq_len=4096, time_shift_type="exponential",
    )  # fmt: skip


def components(seed: int = 0) -> dict[str, Any]:
    """Of a Flux2KleinPipeline, new at each call."""
    return {
        "transformer": transformer(seed),
        "vae": vae(seed),
        "text_encoder": text_encoder(seed),
        "tokenizer": tokenizer(),
        "scheduler": scheduler(),
    }


def backbone(seed: int = 0, **changes: Any) -> Any:
    """The whole of it behind the Backbone protocol; texts have 48 positions."""
    from partcraft_lit.backbones.flux2_klein import Flux2Klein

    settings = {"resolution": RESOLUTION, "text_layers": LAYERS, "text_length": 48, **components(seed)}
    return Flux2Klein(name="tiny klein", **{**settings, **changes})


def full_size() -> tuple[Any, Any]:
    """Transformer and text encoder of klein-4B on the meta device."""
    from diffusers import Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.device("meta"):
        network = Flux2Transformer2DModel(
            num_layers=5,
            num_single_layers=20,
            num_attention_heads=24,
            joint_attention_dim=7680,
            guidance_embeds=False,
        )
        encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=151936,
                hidden_size=2560,
                intermediate_size=9728,
                num_hidden_layers=36,
                num_attention_heads=32,
                num_key_value_heads=8,
                head_dim=128,
                tie_word_embeddings=True,
            )
        )
    return network, encoder
