"""Open vision-language models that answer questions about images, checked before their weights are loaded."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from partcraft_lit.core.errors import UserError
from partcraft_lit.metrics.networks.pretrained import cannot_load, load_network, locate

#: Short names of hub ids.
MODELS = {
    "qwen3_vl_2b": "Qwen/Qwen3-VL-2B-Instruct",
    "qwen3_vl_4b": "Qwen/Qwen3-VL-4B-Instruct",
    "qwen3_vl_8b": "Qwen/Qwen3-VL-8B-Instruct",
    "qwen2_5_vl_7b": "Qwen/Qwen2.5-VL-7B-Instruct",
}
_WHAT = "a vision-language model"
#: What is fetched from a hub.
_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
#: Of a file of weights that is too large to be read twice, so many pieces of so many bytes decide its hash.
_PIECES, _PIECE = 64, 1 << 16


@dataclass(frozen=True)
class ChatModel:
    """A vision-language model that is complete, and not loaded yet.

    Attributes:
        name: the last part of its folder or hub id.
        hash: of its files.
        processor: images and conversations -> inputs; pads on the left.
        load: loads the weights, frozen.
    """

    name: str
    hash: str
    processor: Any
    load: Callable[[], Any]


def find_chat_model(source: str, dtype: str, device: str) -> ChatModel:
    """Looks for a model and all that it needs.

    Args:
        source: one of ``MODELS``, a hub id, which is downloaded, or a folder.
        dtype: of the weights, as torch writes it; "auto" is as they are stored.
        device: where it is to run.

    Raises:
        UserError: if files are missing, it is no image-text model of transformers, or it needs what is not installed.
    """
    location = locate(source, MODELS, _WHAT)
    folder = _folder_of(location)
    config = _config_of(folder)
    weights = _weights_of(folder)

    def load() -> Any:
        from transformers import AutoModelForImageTextToText

        model = load_network(AutoModelForImageTextToText, str(folder), _WHAT, dtype)
        return model.requires_grad_(False).eval().to(device)

    return ChatModel(Path(location).name, _hash_of(folder, weights), _processor_of(folder, config), load)


def answer_tokens(tokenizer: Any, word: str) -> list[int]:
    """Ids of the tokens that are a word by themselves: small, with a capital or in capitals, after a space or not.

    Raises:
        UserError: if there is none.
    """
    spellings = [space + text for text in (word, word.capitalize(), word.upper()) for space in ("", " ")]
    found = [tokenizer.encode(text, add_special_tokens=False) for text in spellings]
    ids = sorted({ids[0] for ids in found if len(ids) == 1})
    if not ids:
        raise UserError(
            f"This model's tokenizer has no token for {word!r}, so its answers cannot be read; try another."
        )
    return ids


def _folder_of(location: str) -> Path:
    if Path(location).is_dir():
        return Path(location)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(location, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        raise UserError(cannot_load(location, _WHAT, error)) from error


def _config_of(folder: Path) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(cannot_load(str(folder), _WHAT, error)) from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise UserError(
            f"{folder} holds a model of type {config.model_type!r}, which answers no questions about images. Wanted "
            f"is one that AutoModelForImageTextToText of transformers loads, for instance {', '.join(MODELS.values())}."
        )
    return config


def _weights_of(folder: Path) -> list[Path]:
    """Files of the weights.

    Raises:
        UserError: if one is missing.
    """
    index = folder / "model.safetensors.index.json"
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except FileNotFoundError:
        names = ["model.safetensors"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(cannot_load(str(folder), _WHAT, error)) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks weights: {len(missing)} of {len(names)} files are missing, the first is {missing[0]}. "
            "Copy or download the folder again."
        )
    return [folder / name for name in names]


def _hash_of(folder: Path, weights: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    described = sorted(path for pattern in ("*.json", "*.jinja", "*.txt") for path in folder.glob(pattern))
    for path in [*described, *weights]:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            if size <= _PIECES * _PIECE:
                digest.update(file.read())
            for piece in range(_PIECES if size > _PIECES * _PIECE else 0):
                file.seek(piece * (size - _PIECE) // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    return digest.hexdigest()


def _processor_of(folder: Path, config: Any) -> Any:
    """The model's own processor, put together here: transformers' loader wants torchvision for films.

    Raises:
        UserError: if a part of it is missing or wants what is not installed.
    """
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        kind = _for_images(PROCESSOR_MAPPING[type(config)])
        makers = _makers(folder)
        if unknown := [name for name in kind.get_attributes() if name not in makers]:
            raise ValueError(f"its processor takes {unknown[0]}, not images and texts alone.")
        settings, _ = kind.get_processor_dict(folder)
        processor = kind.from_args_and_dict([makers[name]() for name in kind.get_attributes()], settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(
            f"The processor of {folder} cannot be loaded: {_first_line(error)} Wanted are its tokenizer and "
            "preprocessor_config.json, as the hub has them beside the weights."
        ) from error
    if not (getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)):
        raise UserError(f"{folder} has no chat template, so it cannot be asked: use a model trained to chat.")
    processor.tokenizer.padding_side = "left"  # the answer follows the last place
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _makers(folder: Path) -> Mapping[str, Callable[[], Any]]:
    """Constructors of what a processor consists of."""
    from transformers import AutoImageProcessor, AutoTokenizer  # noqa: TID251 - with Pillow it needs no torchvision
    from transformers.video_processing_utils import VideoProcessorMixin

    class NoFilms(VideoProcessorMixin):
        """Fills the place of what reads films, which nobody asks about."""

    return {
        "tokenizer": functools.partial(AutoTokenizer.from_pretrained, folder),
        "image_processor": functools.partial(AutoImageProcessor.from_pretrained, folder, backend="pil"),
        "video_processor": NoFilms,
    }


def _for_images(kind: Any) -> Any:
    """A processor whose place for films takes ``NoFilms``: transformers would ask torchvision what fits there."""

    class ForImages(kind):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return type(argument)
            return super().check_argument_for_proper_class(argument_name, argument)

    return ForImages


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
