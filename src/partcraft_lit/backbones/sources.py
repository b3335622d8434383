"""Where a Stable Diffusion model comes from: a folder, a single file or the hub; and what to do when it is missing."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from partcraft_lit.errors import UserError, did_you_mean

#: Files of which each tokenizer's folder must have one.
TOKENIZER_FILES = ("vocab.json", "tokenizer.json")
#: CLIP's byte-level vocabulary begins with the 256 bytes.
_LEAST_TOKENS = 256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """What a kind of model consists of, by the names of diffusers' format.

    Attributes:
        title: what people call the kind.
        text_encoders: sub-folder of each text encoder -> its class in transformers.
        tokenizers: sub-folder of each tokenizer.
        example: a hub id of this kind.
        backbone: the option of the configuration group for this kind.
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
    """Networks in float32 on the CPU, the tokenizers, and any scheduler that carries the noise schedule.

    Attributes:
        unet, vae: diffusers' networks.
        text_encoders, tokenizers: of transformers, in the order of the layout.
        scheduler: of diffusers.
        zero_no_prompt: whether the model was published to take zeros for no prompt at all.
    """

    unet: Any
    vae: Any
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    scheduler: Any
    zero_no_prompt: bool


def load_components(
    source: str | Path,
    layout: Layout = SD,
    *,
    revision: str | None = None,
    variant: str | None = None,
    config: str | Path | None = None,
    mirrors: Sequence[str] = (),
    vae: str | Path | None = None,
) -> Components:
    """Loads from a local folder, a single ``.safetensors`` file or a hub id, told apart by what is on the disk.

    Args:
        source: where the model is.
        layout: what kind of model it has to be.
        revision: branch, tag or commit of a hub id.
        variant: of the weights' files.
        config: for a single file: folder with settings and tokenizers.
        mirrors: hub ids that hold the same model, tried in turn when the source is a hub id that cannot be had, unless
            a revision is asked for; "owner/name@revision" pins a mirror.
        vae: folder or hub id of another VAE.

    Raises:
        UserError: if the source is missing, incomplete, of another kind of model, or cannot be had offline.
    """
    path = Path(source).expanduser()
    if revision and path.exists():
        logger.warning(
            "backbone.revision=%s is of hub ids alone, and %s is on this machine: backbone.sha256 pins its weights.",
            revision,
            path,
        )
    if path.is_file():
        from partcraft_lit.backbones.single_file import load_single_file

        components = load_single_file(path, layout, None if config is None else Path(config).expanduser())
        return components if vae is None else _with_vae(components, vae)
    if path.is_dir():
        _check_folder(path, layout)
        return _load_pretrained(str(path), layout, None, variant, vae)
    if _looks_like_a_path(source):
        raise UserError(_missing_path_message(path))
    # A revision is a commit of one repository: with it, another repository is not what was asked for.
    others = [] if revision else [_pinned(mirror, None) for mirror in mirrors]
    return _load_from_hub([_pinned(str(source), revision), *others], layout, variant, vae)


def packaged_weights(name: str) -> Path:
    """Folder of weights that ship in the package.

    Raises:
        UserError: if they are not there.
    """
    folder = Path(str(resources.files("partcraft_lit"))) / "weights" / name
    if not (folder / "unet").is_dir():
        raise UserError(
            f"The packaged weights of backbone {name!r} are missing: {folder}. Install the package again, make them "
            f"with `partcraft pretrain`, or give a folder in diffusers' format with backbone.path=FOLDER."
        )
    return folder


def tokenizers_without_networks(
    source: str | Path, *, config: str | Path | None = None, revision: str | None = None
) -> list[Any]:
    """Tokenizers alone, for a look at words before gigabytes are read; arguments as in ``load_components``.

    Returns:
        One or two; none where they cannot be had, which loading the model will explain.

    Raises:
        UserError: if a single file has no tokenizer anywhere, or one cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        from partcraft_lit.backbones.single_file import first_tokenizer

        return [first_tokenizer(path, None if config is None else Path(config).expanduser())]
    if path.is_dir():
        found = [_tokenizer(str(path), name, None) for name in SDXL.tokenizers if (path / name).is_dir()]
    else:
        location, commit = _pinned(str(source), revision)
        found = [] if _looks_like_a_path(source) else [_tokenizer(location, SD.tokenizers[0], commit)]
    return [tokenizer for tokenizer in found if tokenizer is not None and len(tokenizer) >= _LEAST_TOKENS]


def _tokenizer(location: str, subfolder: str, revision: str | None) -> Any | None:
    """Of a folder or a hub id; None where there is none."""
    from transformers import CLIPTokenizer

    try:
        with explained(location, revision):
            return CLIPTokenizer.from_pretrained(location, subfolder=subfolder, revision=revision)
    except UserError:
        return None


def check_tokenizers(location: str, components: Components) -> Components:
    """transformers makes a tokenizer of two tokens out of files it does not find, without a word."""
    for tokenizer, text_encoder in zip(components.tokenizers, components.text_encoders, strict=True):
        known, rows = len(tokenizer), int(text_encoder.config.vocab_size)
        if known < _LEAST_TOKENS or known > rows:
            raise UserError(
                f"The tokenizer of {location} has {known} tokens and the text encoder {rows}: they do not belong "
                f"together, or vocab.json and merges.txt in tokenizer/ are missing or damaged."
            )
    return components


@contextmanager
def explained(location: str, revision: str | None = None, variant: str | None = None) -> Iterator[None]:
    """Turns what the hub's libraries raise into what a person can do about it."""
    try:
        with warnings.catch_warnings():
            # An argument of diffusers' own to the hub's client, on every fetch.
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks.*")
            yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(_load_error_message(location, revision, variant, error)) from error


def _load_from_hub(
    places: Sequence[tuple[str, str | None]], layout: Layout, variant: str | None, vae: str | Path | None
) -> Components:
    """The first hub id that can be had; if none, why each could not."""
    failures: list[UserError] = []
    for number, (location, revision) in enumerate(places):
        try:
            components = _load_pretrained(location, layout, revision, variant, vae)
        except UserError as error:
            failures.append(error)
            continue
        if number:
            logger.warning("The model %s could not be had; its mirror %s is used instead.", places[0][0], location)
        return components
    if len(failures) == 1:
        raise failures[0]
    reasons = " ".join(f"({number}) {_short(error)}" for number, error in enumerate(failures, start=1))
    raise UserError(f"Neither the model nor a mirror of it could be had. {reasons} {_how_to_get(places[0][0])}")


def _load_pretrained(
    location: str, layout: Layout, revision: str | None, variant: str | None, vae: str | Path | None = None
) -> Components:
    """A folder or a hub id; small parts first, so that a wrong id fails before gigabytes are fetched."""
    import transformers
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    chosen: dict[str, Any] = {"revision": revision}
    with explained(location, revision, variant):
        scheduler = DDPMScheduler.from_pretrained(location, subfolder="scheduler", **chosen)
        tokenizers = [
            transformers.CLIPTokenizer.from_pretrained(location, subfolder=part, **chosen) for part in layout.tokenizers
        ]
        zero_no_prompt = _zero_no_prompt(location, revision) if len(tokenizers) > 1 else False
        text_encoders = [
            getattr(transformers, kind).from_pretrained(location, subfolder=part, variant=variant, **chosen)
            for part, kind in layout.text_encoders.items()
        ]
        if vae is None:
            autoencoder = AutoencoderKL.from_pretrained(location, subfolder="vae", variant=variant, **chosen)
        else:
            autoencoder = load_vae(vae)
        unet = UNet2DConditionModel.from_pretrained(location, subfolder="unet", variant=variant, **chosen)
    components = in_float32(unet, autoencoder, text_encoders, tokenizers, scheduler, zero_no_prompt)
    return check_tokenizers(location, components)


def in_float32(
    unet: Any, vae: Any, text_encoders: Sequence[Any], tokenizers: Sequence[Any], scheduler: Any, zero_no_prompt: bool
) -> Components:
    """Half precision files come up to float32: the two libraries differ in what they do without being told."""
    encoders = tuple(encoder.float() for encoder in text_encoders)
    return Components(unet.float(), vae.float(), encoders, tuple(tokenizers), scheduler, zero_no_prompt)


def load_vae(source: str | Path) -> Any:
    """A VAE in diffusers' format: a folder or a hub id with the VAE itself, or with a whole model around it.

    Raises:
        UserError: if it is not there or cannot be read.
    """
    from diffusers import AutoencoderKL

    path = Path(source).expanduser()
    if not path.is_dir() and _looks_like_a_path(source):
        raise UserError(f"backbone.vae={source}: {_missing_path_message(path)}")
    location = str(path) if path.is_dir() else str(source)
    inside = "vae" if (path / "vae" / "config.json").is_file() else None
    with explained(location):
        return AutoencoderKL.from_pretrained(location, subfolder=inside)


def _with_vae(components: Components, vae: str | Path) -> Components:
    return replace(components, vae=load_vae(vae).float())


def _zero_no_prompt(location: str, revision: str | None) -> bool:
    """What model_index.json says; a folder without one is taken for the published base model, which says yes."""
    from diffusers import DiffusionPipeline

    if Path(location).is_dir() and not (Path(location) / DiffusionPipeline.config_name).is_file():
        return True
    index = DiffusionPipeline.load_config(location, revision=revision)
    return bool(index.get("force_zeros_for_empty_prompt", True))


def _pinned(place: str, revision: str | None) -> tuple[str, str | None]:
    """ "owner/name@revision" -> its two halves."""
    name, at, own = place.partition("@")
    return name, own if at else revision


def _looks_like_a_path(source: str | Path) -> bool:
    """A hub id is ``name`` or ``owner/name``; all else means a place on the disk."""
    text = str(source)
    is_marked = text.startswith((".", "/", "~")) or "\\" in text or text.count("/") > 1
    return isinstance(source, Path) or is_marked or text.endswith((".safetensors", ".ckpt", ".pt", ".bin"))


def _missing_path_message(path: Path) -> str:
    wanted = "a folder in diffusers' format (model_index.json, unet/, vae/, ...), a .safetensors file, or a hub id"
    parent = path.parent
    if not parent.is_dir():
        return f"No model at {path}: the folder {parent} does not exist either. Give {wanted}."
    siblings = [entry.name for entry in parent.iterdir() if entry.is_dir() or entry.suffix == ".safetensors"]
    return f"No model at {path}. Give {wanted}. {did_you_mean(path.name, siblings)}".rstrip()


def _check_folder(folder: Path, layout: Layout) -> None:
    """Everything must be there before any weights are read."""
    has_two = (folder / "text_encoder_2").is_dir()
    if has_two != ("text_encoder_2" in layout.text_encoders) and (folder / "text_encoder").is_dir():
        found, other = ("two text encoders", SDXL) if has_two else ("one text encoder", SD)
        raise UserError(
            f"{folder} holds a model with {found} ({other.title}); this backbone takes {layout.title}. Use "
            f"backbone={other.backbone}."
        )
    lacking = [
        f"{part}/{' or '.join(files)}"
        for part, files in layout.folders.items()
        if not any((folder / part / file).is_file() for file in files)
    ]
    if lacking:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12])
        raise UserError(
            f"{folder} is no complete model in diffusers' format: {', '.join(lacking)} missing; it holds "
            f"{found or 'nothing'}. Copy the whole repository, for example with `hf download {layout.example} "
            f"--local-dir FOLDER`."
        )


def _load_error_message(location: str, revision: str | None, variant: str | None, error: Exception) -> str:
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if Path(location).is_dir():
        hint = f"Is there a file for variant {variant!r} in it? " if variant else ""
        return f"The model in {location} could not be read: {first_line} {hint}Copy or download the folder again."
    return f"{_hub_reason(location, revision, variant, error, first_line)} {_how_to_get(location)}"


def _hub_reason(location: str, revision: str | None, variant: str | None, error: Exception, first_line: str) -> str:
    """One sentence on why a hub id could not be had. diffusers hides the hub's own error behind another, so all of the
    chain is looked at."""
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


def _how_to_get(location: str) -> str:
    return (
        f"To get it: `hf download {location}` on a machine with a network (its cache, HF_HOME, can be copied), or give "
        f"a local folder or .safetensors file instead, backbone.source=PATH."
    )


def _short(error: UserError) -> str:
    return str(error).partition(" To get it:")[0]


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
