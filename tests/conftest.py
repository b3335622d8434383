"""Real models, small enough for a test: the classes of Stable Diffusion with widths of 8 to 32, and a CLIP tokenizer.

``tiny_backbone`` and ``tiny_sd_folder`` are shared by the whole session, so a test must not change them; a test that
trains, adds adapters or replaces processors takes ``fresh_backbone``. The same with ``_xl`` is an SDXL, and what begins
with ``each_`` runs a test once with each kind.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))  # for miniatures: pytest's importlib mode adds no folder by itself
os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of the hub's client: no test may reach for the network
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from composing import composed_once  # noqa: F401 - a fixture
from partcraft_lit.core.stopping import SIGNALS
from partcraft_lit.core.types import PartToken, TokenizedPrompts
from vocabularies import learned_merges
from workshop import new_workshop, pictures, plain, small, tiny_run, workshop  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from partcraft_lit.backbones.latent_diffusion import LatentDiffusion
    from partcraft_lit.backbones.stable_diffusion import StableDiffusion
    from partcraft_lit.backbones.stable_diffusion_xl import StableDiffusionXL


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A command that was stopped leaves its process deaf; the next test is not to be."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


TwoProcesses = Callable[[Callable[[int], Any]], list[Any]]

#: Words that the tiny tokenizer knows as one token; any other text falls apart into bytes, as in CLIP.
TINY_WORDS = (
    "a an the of in on with and photo picture rendering painting drawing cropped close up bright dark good bad clean "
    "dirty cool nice small large weird bird birds dog cat robot red blue green striped head body wing tail leg blurry"
)

#: What the tiny model is trained for: 32 px, latents 16 x 16, cross-attention at 16 x 16 and 8 x 8.
TINY_RESOLUTION = 32


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]


def clip_vocabulary(words: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """A vocabulary in CLIP's layout (bytes, bytes ending a word, merges, start, end), and the merges that build it."""
    merges = learned_merges([*word[:-1], word[-1] + "</w>"] for word in words)
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}, [" ".join(pair) for pair in merges]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """A CLIPTokenizer read from vocab.json and merges.txt, as Stable Diffusion's is."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tiny_tokenizer")
    vocabulary, merges = clip_vocabulary(TINY_WORDS.split())
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}), encoding="utf-8"
    )
    return CLIPTokenizer.from_pretrained(folder)


def _components(tokenizer: CLIPTokenizer, seed: int = 0, prediction_type: str = "epsilon") -> dict[str, Any]:
    """The components of a Stable Diffusion pipeline, with random weights."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=TINY_RESOLUTION // 2,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=TINY_RESOLUTION,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return {
        "unet": unet.eval(),
        "vae": vae.eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": tokenizer,
        "scheduler": scheduler,
    }


@pytest.fixture(scope="session")
def make_components(tiny_tokenizer: CLIPTokenizer) -> Callable[..., dict[str, Any]]:
    """``make_components(seed=0, prediction_type="epsilon")``: a pipeline's components, new at each call."""
    return partial(_components, tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_tokenizer_2(tiny_tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    """The same words, padded with "!", as the second tokenizer of SDXL."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(tiny_tokenizer.name_or_path, pad_token="!")


def _components_xl(
    tokenizer: CLIPTokenizer, tokenizer_2: CLIPTokenizer, seed: int = 0, prediction_type: str = "epsilon"
) -> dict[str, Any]:
    """The components of an SDXL pipeline, with random weights; no attention at the finest level, as in the real one."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=TINY_RESOLUTION // 2,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32 + 48,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
            norm_num_groups=8,
        )
        text_encoder_2 = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=48,
                intermediate_size=64,
                projection_dim=24,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=77,
                hidden_act="gelu",
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer_2.pad_token_id,
            )
        )
    components = _components(tokenizer, seed, prediction_type)
    components["vae"].register_to_config(scaling_factor=0.13025)
    return {
        **components,
        "unet": unet.eval(),
        "text_encoder_2": text_encoder_2.eval(),
        "tokenizer_2": tokenizer_2,
    }


@pytest.fixture(scope="session")
def make_components_xl(tiny_tokenizer: CLIPTokenizer, tiny_tokenizer_2: CLIPTokenizer) -> Callable[..., dict[str, Any]]:
    """``(seed, prediction_type) -> dict``: the components of an SDXL pipeline, new at each call."""
    return partial(_components_xl, tiny_tokenizer, tiny_tokenizer_2)


@pytest.fixture(scope="session")
def tiny_sdxl_folder(
    tmp_path_factory: pytest.TempPathFactory, make_components_xl: Callable[..., dict[str, Any]]
) -> Path:
    """A folder in diffusers' format that ``StableDiffusionXLPipeline.from_pretrained`` loads; do not write into it."""
    from diffusers import StableDiffusionXLPipeline

    folder = tmp_path_factory.mktemp("tiny_sdxl")
    StableDiffusionXLPipeline(**make_components_xl(), add_watermarker=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_backbone_xl(make_components_xl: Callable[..., dict[str, Any]]) -> StableDiffusionXL:
    """A whole tiny SDXL, shared: leave its weights, adapters and processors alone."""
    from partcraft_lit.backbones.stable_diffusion_xl import StableDiffusionXL

    return StableDiffusionXL(name="tiny xl", **make_components_xl(), resolution=TINY_RESOLUTION)


@pytest.fixture
def fresh_backbone_xl(tiny_backbone_xl: StableDiffusionXL) -> StableDiffusionXL:
    """A copy of ``tiny_backbone_xl`` that a test may change."""
    return copy.deepcopy(tiny_backbone_xl)


@pytest.fixture(scope="session", params=["sd", "sdxl"])
def each_backbone(request: pytest.FixtureRequest) -> LatentDiffusion:
    """Each kind of tiny backbone, shared."""
    return request.getfixturevalue({"sd": "tiny_backbone", "sdxl": "tiny_backbone_xl"}[request.param])


@pytest.fixture
def each_fresh_backbone(each_backbone: LatentDiffusion) -> LatentDiffusion:
    """A copy of each kind, which a test may change."""
    return copy.deepcopy(each_backbone)


@pytest.fixture(scope="session")
def tiny_sd_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: CLIPTokenizer) -> Path:
    """A folder in diffusers' format that ``StableDiffusionPipeline.from_pretrained`` loads; do not write into it."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        **_components(tiny_tokenizer),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("tiny_sd")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tiny_tokenizer: CLIPTokenizer) -> StableDiffusion:
    """A whole tiny backbone, shared: leave its weights, adapters and processors alone."""
    from partcraft_lit.backbones.stable_diffusion import StableDiffusion

    return StableDiffusion(name="tiny", **_components(tiny_tokenizer), resolution=TINY_RESOLUTION)


@pytest.fixture
def fresh_backbone(tiny_backbone: StableDiffusion) -> StableDiffusion:
    """A copy of ``tiny_backbone`` that a test may change."""
    return copy.deepcopy(tiny_backbone)


@pytest.fixture(scope="session")
def tiny_words() -> tuple[str, ...]:
    """Words that the tiny tokenizer knows as one token."""
    return tuple(TINY_WORDS.split())


@pytest.fixture(scope="session")
def make_tokens(tiny_tokenizer: CLIPTokenizer) -> Callable[..., TokenizedPrompts]:
    """Prompts given as pieces (text or PartToken) -> TokenizedPrompts, without the prompt grammar; one tokenizer unless
    others are given."""

    def tokenize(
        prompts: Sequence[Sequence[str | PartToken]],
        length: int = 77,
        tokenizers: Sequence[CLIPTokenizer] = (tiny_tokenizer,),
    ) -> TokenizedPrompts:
        each = [[_token_row(prompt, tokenizer, length) for prompt in prompts] for tokenizer in tokenizers]
        rows = each[0]
        most = max(len(places) for _, places in rows)

        def table(read: Callable[[tuple[int, PartToken]], int]) -> torch.Tensor:
            filled = [[read(place) for place in places] + [-1] * (most - len(places)) for _, places in rows]
            return torch.tensor(filled, dtype=torch.long).reshape(len(rows), most)

        return TokenizedPrompts(
            input_ids=tuple(torch.tensor([ids for ids, _ in rows]) for rows in each),
            part_positions=table(lambda place: place[0]),
            part_ids=table(lambda place: place[1].part),
            code_ids=table(lambda place: place[1].code),
        )

    return tokenize


def _token_row(
    prompt: Sequence[str | PartToken], tokenizer: CLIPTokenizer, length: int
) -> tuple[list[int], list[tuple[int, PartToken]]]:
    """Ids of one prompt, padded to ``length``, and the place of each part token."""
    harmless = tokenizer.convert_tokens_to_ids("a</w>")
    ids, places = [tokenizer.bos_token_id], []
    for piece in prompt:
        if isinstance(piece, PartToken):
            places.append((len(ids), piece))
            ids.append(harmless)
        else:
            ids.extend(tokenizer(piece, add_special_tokens=False).input_ids)
    ids.append(tokenizer.eos_token_id)
    return ids + [tokenizer.pad_token_id] * (length - len(ids)), places


@pytest.fixture
def two_processes(tmp_path: Path) -> TwoProcesses:
    """``two_processes(work)`` runs ``work(rank)`` in two processes of one gloo group; what each returned, by rank."""

    def run(work: Callable[[int], Any]) -> list[Any]:
        mp.start_processes(_rank, args=(work, tmp_path), nprocs=2, start_method="fork")
        return [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]

    return run


@pytest.fixture
def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _rank(rank: int, work: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)  # a forked child hangs in a pool of threads that only its parent has
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        torch.save(work(rank), folder / f"{rank}.pt")
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    """No key, server or mode of W&B that this machine may have."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
