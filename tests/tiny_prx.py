"""A PRX of tiny widths: classes of diffusers and transformers, and a tokenizer in the manner of SentencePiece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

#: Words that are one token each, after a space.
WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "bird",
    "thing",
    "red",
    "blue",
    "green",
    "head",
    "wing",
    "dog",
    "cat",
    "house",
    "person",
    "car",
    "tree",
    "chair",
    "flower",
    "on",
    "my",
    "in",
]
RESOLUTION = 32


def make_tokenizer(padding_side: str = "right") -> Any:
    """Words with ``▁`` for the space before them, letters, and ``<bos>`` before every text, as Gemma's."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*specials, "▁", *letters, *[f"▁{word}" for word in WORDS], *[word for word in WORDS if len(word) > 1]]
    scores = [(piece, 0.0 if piece in specials else -10.0 if len(piece) == 1 else -1.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=3))
    tokenizer.normalizer = normalizers.Replace(Regex(" "), "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        model_max_length=24,
        padding_side=padding_side,
    )


def make_components(seed: int = 0, vae: str = "AutoencoderKL") -> dict[str, Any]:
    """Random weights; the zero initialisation of the modulation is undone, so that every block matters."""
    from diffusers import AutoencoderDC, AutoencoderKL, FlowMatchEulerDiscreteScheduler, PRXTransformer2DModel
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = PRXTransformer2DModel(
            in_channels=4,
            patch_size=2,
            context_in_dim=16,
            hidden_size=16,
            mlp_ratio=2.0,
            num_heads=2,
            depth=4,
            axes_dim=[4, 4],
        )
        for block in transformer.blocks:
            torch.nn.init.normal_(block.modulation.lin.weight, std=0.3)
        text_encoder = T5GemmaEncoder(
            T5GemmaModuleConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                max_position_embeddings=64,
                sliding_window=32,
                layer_types=["sliding_attention", "full_attention"],
                query_pre_attn_scalar=8,
                pad_token_id=0,
                eos_token_id=1,
                bos_token_id=2,
                dropout_rate=0.0,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            )
        )
        if vae == "AutoencoderKL":
            autoencoder = AutoencoderKL(
                block_out_channels=(8, 8),
                in_channels=3,
                out_channels=3,
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4,
                norm_num_groups=4,
                scaling_factor=0.36,
                shift_factor=0.12,
            )
        else:
            autoencoder = AutoencoderDC(
                in_channels=3,
                latent_channels=4,
                attention_head_dim=4,
                encoder_block_types=("ResBlock", "EfficientViTBlock"),
                decoder_block_types=("ResBlock", "EfficientViTBlock"),
                encoder_block_out_channels=(8, 8),
                decoder_block_out_channels=(8, 8),
                encoder_qkv_multiscales=((), (5,)),
                decoder_qkv_multiscales=((), (5,)),
                encoder_layers_per_block=(1, 1),
                decoder_layers_per_block=(1, 1),
                downsample_block_type="conv",
                upsample_block_type="interpolate",
                scaling_factor=0.41,
            )
    return {
        "transformer": transformer.eval(),
        "vae": autoencoder.eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def save(folder: Path, seed: int = 0) -> Path:
    """A folder in diffusers' format."""
    from diffusers import PRXPipeline

    PRXPipeline(**make_components(seed), default_sample_size=256).save_pretrained(folder)
    return folder
