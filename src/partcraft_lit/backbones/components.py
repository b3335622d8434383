"""Components of Stable Diffusion models, and messages for what cannot be loaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from partcraft_lit.core.errors import UserError

#: Files of which each tokenizer's folder must have one.
TOKENIZER_FILES = ("vocab.json", "tokenizer.json")
#: CLIP's byte-level vocabulary begins with the 256 bytes.
LEAST_TOKENS = 256


@dataclass(frozen=True)
class Layout:
    """Components of a model family in diffusers' format.

    Attributes:
        title: for messages.
        text_encoders: sub-folder of each text encoder -> its class in transformers.
        tokenizers: sub-folder of each tokenizer.
        example: a hub id.
        backbone: option of the configuration group.
    """

    title: str
    text_encoders: dict[str, str]
    tokenizers: tuple[str, ...]
    example: str
    backbone: str

    @property
    def folders(self) -> dict[str, tuple[str, ...]]:
        """Sub-folder -> files of which it must have one."""
        configs = dict.fromkeys(("unet", "vae", *self.text_encoders), ("config.json",))
        tokenizers = dict.fromkeys(self.tokenizers, TOKENIZER_FILES)
        return {**configs, **tokenizers, "scheduler": ("scheduler_config.json",)}


SD = Layout(
    title="SD 1.x and 2.x",
    text_encoders={"text_encoder": "CLIPTextModel"},
    tokenizers=("tokenizer",),
    example="stable-diffusion-v1-5/stable-diffusion-v1-5",
    backbone="sd15",
)


SDXL = Layout(
    title="SDXL",
    text_encoders={"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"},
    tokenizers=("tokenizer", "tokenizer_2"),
    example="stabilityai/stable-diffusion-xl-base-1.0",
    backbone="sdxl",
)


@dataclass(frozen=True)
class Components:
    """Networks in float32 on the CPU, tokenizers, and a scheduler with the noise schedule.

    Attributes:
        unet, vae: diffusers' networks.
        text_encoders, tokenizers: of transformers, in the order of the layout.
        scheduler: of diffusers.
        force_zeros_for_empty_prompt: as in model_index.json.
    """

    unet: Any
    vae: Any
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    scheduler: Any
    force_zeros_for_empty_prompt: bool


def check_complete(folder: Path, folders: Mapping[str, Sequence[str]], what: str, example: str) -> None:
    """Checks that all components of a model are there, before weights are read.

    Args:
        folder: of the model, in diffusers' format.
        folders: component -> names of a file, one of which it must hold.
        what: the model, for the message.
        example: hub id of a complete one.

    Raises:
        UserError: if a component is missing.
    """
    lacking = [
        f"{part}/{' or '.join(files)}"
        for part, files in folders.items()
        if not any((folder / part / file).is_file() for file in files)
    ]
    if lacking:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12])
        raise UserError(
            f"{folder} is not a complete {what} in diffusers' format: {', '.join(lacking)} missing; it holds "
            f"{found or 'nothing'}. Copy the whole repository, for example with `hf download {example} --local-dir "
            f"FOLDER`."
        )


def check_tokenizers(location: str, components: Components) -> Components:
    """Checks vocabulary sizes: transformers silently makes a tokenizer of two tokens without its files."""
    for tokenizer, text_encoder in zip(components.tokenizers, components.text_encoders, strict=True):
        known, rows = len(tokenizer), int(text_encoder.config.vocab_size)
        if known < LEAST_TOKENS or known > rows:
            raise UserError(
                f"The tokenizer of {location} has {known} tokens and the text encoder {rows}: they do not belong "
                f"together, or vocab.json and merges.txt in tokenizer/ are missing or damaged."
            )
    return components


@contextmanager
def explain_load_errors(location: str, revision: str | None = None, variant: str | None = None) -> Iterator[None]:
    """Turns errors of the hub's libraries into a ``UserError`` that says what to do."""
    try:
        with warnings.catch_warnings():
            # An argument of diffusers' own to the hub's client, on every fetch.
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks.*")
            yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(_load_error_message(location, revision, variant, error)) from error


def in_float32(
    unet: Any,
    vae: Any,
    text_encoders: Sequence[Any],
    tokenizers: Sequence[Any],
    scheduler: Any,
    force_zeros_for_empty_prompt: bool,
) -> Components:
    """Casts to float32: diffusers and transformers differ in the default dtype of half precision files."""
    encoders = tuple(encoder.float() for encoder in text_encoders)
    return Components(unet.float(), vae.float(), encoders, tuple(tokenizers), scheduler, force_zeros_for_empty_prompt)


def _load_error_message(location: str, revision: str | None, variant: str | None, error: Exception) -> str:
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if Path(location).is_dir():
        hint = f"Is there a file for variant {variant!r} in it? " if variant else ""
        return f"The model in {location} could not be read: {first_line} {hint}Copy or download the folder again."
    return f"{_hub_reason(location, revision, variant, error, first_line)} {how_to_get(location)}"


def _hub_reason(location: str, revision: str | None, variant: str | None, error: Exception, first_line: str) -> str:
    """Why a hub id could not be loaded; diffusers wraps the hub's error, so the whole chain is searched."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    chain = list(_chain(error))
    if any(isinstance(cause, GatedRepoError) for cause in chain) or "gated" in str(error).lower():
        return (
            f"The hub refuses {location!r}: the model is gated. Accept its terms on https://huggingface.co/{location}, "
            f"then log in with `hf auth login`."
        )
    if any(isinstance(cause, RevisionNotFoundError) for cause in chain):
        return f"The hub's {location!r} has no revision {revision!r}."
    if any(isinstance(cause, RepositoryNotFoundError) for cause in chain):
        return (
            f"The hub has no model {location!r} for you: it was removed or renamed, is misspelt, or is private (then "
            f"log in with `hf auth login`)."
        )
    if "401" in str(error) or "403" in str(error):
        return (
            f"The hub refuses {location!r}: the model may be gated (accept its terms on its page, then `hf auth "
            f"login`), private, or misspelt."
        )
    if _offline():
        files = f", or not with variant {variant!r}" if variant else ""
        return f"The model {location!r} is not in the local cache{files}, and HF_HUB_OFFLINE forbids fetching it."
    return f"The model {location!r} could not be loaded: {first_line}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def how_to_get(location: str) -> str:
    return (
        f"To get it: `hf download {location}` on a machine with a network (its cache, HF_HOME, can be copied), or give "
        f"a local folder or .safetensors file instead, backbone.source=PATH."
    )


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
