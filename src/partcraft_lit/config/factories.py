"""From nodes of a configuration to objects, or to callables that make them when they are needed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

from partcraft_lit.backbones.settings import LoraSettings
from partcraft_lit.config import machine, mistakes, targets
from partcraft_lit.config.validation import missing, unknown, validate
from partcraft_lit.core import environment
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.settings import Count, NonNegative, Positive

if TYPE_CHECKING:
    from partcraft_lit.core.types import Backbone, ImageSource, PatchFeatures
    from partcraft_lit.judges.judge import PartJudge
    from partcraft_lit.loggers.identity import RunIdentity
    from partcraft_lit.losses.settings import LossSettings
    from partcraft_lit.methods.method import RecipeSettings
    from partcraft_lit.metrics.features import ImageFeatures


T = TypeVar("T")
#: Top-level keys that are read by the command line itself, or become objects.
_OTHER_KEYS = (
    "debug",
    "trust",
    "objective",
    "objective_if_nan",
    "run",
    "ckpt_path",
    "dataset",
    "download",
    "backbone",
    "features",
    "attention",
    "metrics",
    "judges",
    "trainer",
    "logger",
    "callbacks",
    "loss_terms",
)

#: Of these, those that are true or false.
_SWITCHES = frozenset({"debug", "trust"})
#: Of Lightning's own, those that the models here run on.
_Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
#: Keys of the trainer whose range Lightning does not check, or only in its own words.
_TRAINER_NUMBERS: Mapping[str, Any] = {
    "max_steps": Positive,
    "log_every_n_steps": Count,
    "gradient_clip_val": NonNegative | None,
    "accumulate_grad_batches": Positive,
}
#: Of terms that a run may have by itself.
_LOSS_NAMES = ("diffusion", "prior", "attn")
#: Groups of settings that are objects.
_OBJECTS = frozenset({"method"})


def settings_of(cls: type[T], values: Mapping[str, Any]) -> T:
    """Settings of those top-level keys that ``cls`` has; the other keys are nodes of objects.

    Raises:
        UserError: for a key that is neither (``+key=...`` adds any), one that is missing, or a wrong value.
    """
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known and key not in _OTHER_KEYS:
            raise unknown(key, key, [*known, *_OTHER_KEYS])
    for key in known:
        if key not in values:
            raise missing(key)
    for key in _SWITCHES & values.keys():
        validate(values[key], bool, key)
    if "trainer" in values:
        validate(values["trainer"].get("accelerator", "auto"), _Accelerator, "trainer.accelerator")
        validate(values["trainer"].get("num_nodes", 1), Positive, "trainer.num_nodes")
    # What needs no object first: making one loads libraries, and a person waits for the message.
    hints = get_type_hints(cls, include_extras=True)
    checked = {key: validate(values[key], hints[key], key) for key in known if key not in _OBJECTS}
    return cls(**checked, **{key: _object(values[key], key) for key in known if key in _OBJECTS})


def _object(value: Any, key: str) -> Any:
    """The keys become what their ``_target_`` names; what is not a group of keys stays as it is."""
    return targets.make(value, key) if isinstance(value, Mapping) else value


def value_of(values: Mapping[str, Any], key: str, hint: Any) -> Any:
    """The value of "group.name", checked.

    Raises:
        UserError: if it is missing, or of another type.
    """
    group, _, name = key.partition(".")
    if name not in values[group]:
        raise missing(key)
    return validate(values[group][name], hint, key)


def check_choices(values: Mapping[str, Any]) -> None:
    """Values that name a row of a table of objects.

    Raises:
        UserError: if there is no such row.
    """
    if "features" in values:
        targets.choose(values["features"], value_of(values, "parts.features", str), "parts.features")
    networks = value_of(values, "eval.pictures", tuple[str, ...]) if "metrics" in values else ()
    for name in networks:
        targets.choose(values["metrics"], str(name), "eval.pictures")
    check_judges(values)
    if "loss" in values and (attention := value_of(values, "loss.attention", str)) != "none":
        targets.choose(values["attention"], attention, "loss.attention")


def check_judges(values: Mapping[str, Any]) -> None:
    """Judges that are asked for, and the networks that these name.

    Raises:
        UserError: if there is no such row, or one has an unknown key or a wrong value.
    """
    for name in value_of(values, "eval.judge", tuple[str, ...]) if "judges" in values else ():
        node = targets.choose(values["judges"], name, "eval.judge")
        targets.later(node, f"judges.{name}")
        if "features" in node:
            where = f"judges.{name}.features"
            targets.choose(values["metrics"], validate(node["features"], str, where), where)


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Numbers that Lightning would take and then train for ever, not at all, or not as it says.

    Raises:
        UserError: for one that is out of range.
    """
    for key, hint in _TRAINER_NUMBERS.items():
        value_of({"trainer": trainer}, f"trainer.{key}", hint)


def check_model_sizes(values: Mapping[str, Any]) -> None:
    """What the backbone's own sizes allow, as far as they are known without loading it.

    Raises:
        UserError: for a resolution or attention size that it does not have, an adapter wider than its layers, or more
            workers or images at once than this machine could hold.
    """
    node = values["backbone"]
    resolution = value_of(values, "backbone.resolution", Positive)
    attention = value_of(values, "backbone.attention_size", Positive | None)
    if (sizes := machine.model_sizes(node)) is not None:
        factor = sizes.vae_factor * 2 ** (sizes.levels - 1)
        if resolution % factor:
            raise UserError(f"backbone.resolution={resolution}: wanted a multiple of {factor} for this backbone.")
        maps = [-(-resolution // sizes.vae_factor // 2**level) for level in range(sizes.levels)]
        if attention is not None and attention not in maps:
            raise UserError(
                f"backbone.attention_size={attention}: at {resolution} px the attention maps of this backbone have "
                f"sides of {', '.join(map(str, maps))}."
            )
        rank = validate(values["lora"], LoraSettings, "lora").rank
        if rank > sizes.width:
            raise UserError(
                f"lora.rank={rank}: the widest layer of this backbone has {sizes.width} channels, and an adapter of a "
                "larger rank adds nothing but memory. Common are 4 to 64."
            )
    workers = value_of(values, "data.num_workers", Count)
    if workers > (most := max(64, 8 * (os.cpu_count() or 1))):
        raise UserError(f"data.num_workers={workers}: with {os.cpu_count()} cores, {most} is more than ever helps.")
    _check_batch(values, resolution)


def _check_batch(values: Mapping[str, Any], resolution: int) -> None:
    """A batch whose pixels alone are more than the memory of this machine."""
    memory = environment.memory_gib()
    for key in ("data.batch_size", "data.encode_batch_size", "sample.batch_size"):
        images = value_of(values, key, Positive)
        needed = images * 3 * resolution**2 * 4 / 2**30
        if memory is not None and needed > memory:
            raise UserError(
                f"{key}={images}: the pixels of so many images at {resolution} px take {needed:,.0f} GiB, and this "
                f"machine has {memory:,.0f}. 'partcraft doctor' says what fits."
            )


def make_source(values: Mapping[str, Any]) -> ImageSource:
    if lacking := machine.dataset_lacking(values):
        raise UserError(lacking)
    source: ImageSource = targets.make(values["dataset"], "dataset")
    return source


def is_drawn(values: Mapping[str, Any]) -> bool:
    """Whether the data set is of the embedded world: nobody's photographs."""
    return str(values["dataset"].get("_target_", "")).startswith("partcraft_lit.world.")


def check_words(values: Mapping[str, Any], settings: RecipeSettings, class_noun: str) -> None:
    """Words of the method against the model's tokenizers, where these can be had without its networks.

    Raises:
        UserError: for instance for a noun of several tokens.
    """
    from partcraft_lit.backbones.loading import packaged_weights, tokenizers_without_networks

    settings.method.check(settings, class_noun)
    node = values["backbone"]
    if not {"source", "path"} & node.keys() or not reads_clip(node):
        return
    place = node.get("source", node.get("path")) or packaged_weights(node.get("packaged", "mini"))
    tokenizers = tokenizers_without_networks(place, config=node.get("config"), revision=node.get("revision"))
    if tokenizers:
        settings.method.check_words(tokenizers, class_noun)


def check_backbone_kind(values: Mapping[str, Any]) -> None:
    """Samplers and loss weights against what the backbone was trained for.

    Raises:
        UserError: for a sampler of diffusion with a model of flow matching or the reverse, or min-SNR weights with the
            latter.
    """
    from partcraft_lit.backbones.sampling import check_scheduler
    from partcraft_lit.losses.objective import refuse_snr_weights

    flows = getattr(backbone_class(values["backbone"]), "flow", None) is not None
    check_scheduler(values["sample"]["scheduler"], flows)
    if values["prior"]["weight"]:
        check_scheduler(values["prior"]["scheduler"], flows)
    if flows:
        refuse_snr_weights(values["loss"]["snr_gamma"])


def backbone_class(node: Mapping[str, Any]) -> Any:
    """What the loader is annotated to return; None where it is not."""
    annotation = inspect.signature(targets.target_of(node, "backbone"), eval_str=True).return_annotation
    return annotation if inspect.isclass(annotation) else None


def reads_clip(node: Mapping[str, Any]) -> bool:
    """Whether the backbone's tokenizers are CLIP's; those of others are checked when they are loaded."""
    from partcraft_lit.backbones.latent_diffusion import LatentDiffusion
    from partcraft_lit.backbones.latent_model import LatentModel

    kind = backbone_class(node)
    return kind is None or issubclass(kind, LatentDiffusion) or not issubclass(kind, LatentModel)


def backbone_loader(values: Mapping[str, Any]) -> Callable[[], Backbone]:
    return _on_device(targets.later(values["backbone"], "backbone"), values)


def features_loader(values: Mapping[str, Any]) -> Callable[[], PatchFeatures]:
    choice = values["parts"]["features"]
    node = targets.choose(values["features"], choice, "parts.features")
    return _on_device(targets.later(node, f"features.{choice}"), values)


def image_features_loader(values: Mapping[str, Any]) -> Callable[[], list[ImageFeatures]]:
    """Loads the networks that score whole images."""
    nodes = {name: targets.choose(values["metrics"], name, "eval.pictures") for name in values["eval"]["pictures"]}
    loaders = [_on_device(targets.later(node, f"metrics.{name}"), values) for name, node in nodes.items()]
    return lambda: [load() for load in loaders]


def judges_loader(values: Mapping[str, Any]) -> Callable[[], dict[str, PartJudge]]:
    """Makes the judges of parts, by name; one that compares features gets the network that it names."""
    chosen = {name: targets.choose(values["judges"], name, "eval.judge") for name in values["eval"]["judge"]}
    loaders = {name: _judge_loader(name, node, values) for name, node in chosen.items()}
    return lambda: {name: load() for name, load in loaders.items()}


def _judge_loader(name: str, node: Mapping[str, Any], values: Mapping[str, Any]) -> Callable[[], PartJudge]:
    where = f"judges.{name}"
    if "features" not in node:
        load = targets.later(node, where)
        return load if node.get("device") is not None else _on_device(load, values)
    choice = node["features"]
    network = targets.choose(values["metrics"], choice, f"{where}.features")
    load = targets.later({key: value for key, value in node.items() if key != "features"}, where)
    load_network = _on_device(targets.later(network, f"metrics.{choice}"), values)
    return lambda: load(features=load_network())


def make_callbacks(values: Mapping[str, Any], settings: LossSettings) -> list[Any]:
    """The callbacks of a run and its loss terms; those that need the run are bound to it after discovery.

    Raises:
        UserError: for a key or value that one of them does not take, or two that would overwrite each other's files.
    """
    from partcraft_lit.callbacks.binding import check_folders
    from partcraft_lit.callbacks.loss_terms import AddLossTerm

    nodes = values["callbacks"] or {}
    made = [targets.make(node, f"callbacks.{name}") for name, node in nodes.items() if node is not None]
    check_folders(made)
    attention = make_attention_loss(values, settings)
    terms = [_loss_term(name, node) for name, node in (values.get("loss_terms") or {}).items() if node is not None]
    return [*made, *([] if attention is None else [attention]), *map(AddLossTerm, terms)]


def make_attention_loss(values: Mapping[str, Any], settings: LossSettings) -> Any:
    """The callback that adds the attention loss; None where there is none."""
    if not settings.uses_attention:
        return None
    from partcraft_lit.callbacks.loss_terms import AttentionLoss

    kind = settings.attention
    if settings.balance != "none" and "balance" not in values["attention"][kind]:
        raise UserError(
            f"loss.balance={settings.balance}: loss.attention={kind} does not take it. Use loss.attention=entropy, or "
            "loss.balance=none."
        )
    return AttentionLoss(
        settings.lambda_attn,
        targets.later(values["attention"][kind], f"attention.{kind}"),
        end=settings.lambda_end,
        timesteps=settings.attention_timesteps,
    )


def _loss_term(name: str, node: Mapping[str, Any]) -> Any:
    """An entry of ``loss_terms``: a function of the step with its arguments, and a weight."""
    from partcraft_lit.callbacks.loss_terms import StepTerm

    where = f"loss_terms.{name}"
    if name in _LOSS_NAMES:
        raise UserError(f"{where}: a term of the run has this name; call it otherwise.")
    if not isinstance(node, Mapping) or "weight" not in node:
        raise UserError(f"{where}.weight has to be given: what the term is multiplied with, for instance 0.1.")
    weight = validate(node["weight"], NonNegative, f"{where}.weight")
    arguments = {key: value for key, value in node.items() if key != "weight"}
    return StepTerm(name, weight, targets.later(arguments, where))


def make_loggers(values: Mapping[str, Any], folder: Path, replay: RunIdentity | None = None) -> list[Any]:
    """Loggers of a command that works in ``folder``; what they have parameters for, they get too.

    Args:
        values: the configuration.
        folder: of the run.
        replay: for the loggers of a run that has ended, its identity.
    """
    from partcraft_lit.config.identity import run_identity

    identity = run_identity(values, folder) if replay is None else replay
    at_run_time = {"folder": folder, "identity": identity, "replay": replay is not None}
    nodes = {f"logger.{name}": node for name, node in (values["logger"] or {}).items() if node is not None}
    return [targets.make(node, where, **_taken(node, where, at_run_time)) for where, node in nodes.items()]


def _taken(node: Mapping[str, Any], where: str, at_run_time: Mapping[str, Any]) -> dict[str, Any]:
    """``folder``, and of the other arguments those that the target of a node has."""
    known = inspect.signature(targets.target_of(node, where)).parameters
    return {name: value for name, value in at_run_time.items() if name == "folder" or name in known}


def device(values: Mapping[str, Any]) -> str:
    """The device of the kind that the trainer will use: the first, or that of this process among several."""
    import torch

    accelerator = values.get("trainer", {}).get("accelerator", "auto")
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return f"cuda:{environment.local_number() % torch.cuda.device_count()}"
    if accelerator in ("gpu", "cuda"):
        raise UserError(
            f"trainer.accelerator={accelerator}: torch sees no CUDA device here. Use trainer=cpu, or look at what "
            "nvidia-smi says and at whether torch is a CUDA build."
        )
    if accelerator == "mps" and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def trainer_maker(values: Mapping[str, Any], passes: int = 1) -> Callable[..., Any]:
    """Makes Lightning's trainer; one is made here and thrown away, so that a setting it refuses is told at once.

    Args:
        values: the configuration.
        passes: each batch is taken in so many.

    Raises:
        UserError: with Lightning's words.
    """
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    trainer = {**values["trainer"]}
    device(values)
    make = targets.later({**trainer, "accumulate_grad_batches": trainer["accumulate_grad_batches"] * passes}, "trainer")
    try:
        make(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer: {mistakes.first_line(error)} All keys: partcraft train --help.") from error
    return make


def time_limit(values: Mapping[str, Any]) -> float | None:
    """Seconds of ``trainer.max_time``, in any of Lightning's forms; None for no limit."""
    from lightning.pytorch.callbacks import Timer

    return Timer(values["trainer"]["max_time"]).time_remaining()


def _on_device(load: Callable[..., Any], values: Mapping[str, Any]) -> Callable[[], Any]:
    if "device" not in inspect.signature(load).parameters:
        return load

    @functools.wraps(load.func if isinstance(load, functools.partial) else load)
    def loaded() -> Any:
        return load(device=device(values))

    return loaded


def pretrainer(lengths: Mapping[str, Any], pool: Any, device: str) -> Callable[..., Path]:
    """``partcraft pretrain``'s work in the embedded world.

    Args:
        lengths: network -> keys of ``LoopSettings``, but for the device.
        pool: keys of ``PoolSettings``.
        device: where to train, as torch writes it.
    """
    from partcraft_lit.world.pretrain.loop import LoopSettings
    from partcraft_lit.world.pretrain.pool import PoolSettings
    from partcraft_lit.world.pretrain.stages import pretrain  # diffusers' pipelines take seconds to import

    loops = {name: LoopSettings(**dataclasses.asdict(length), device=device) for name, length in lengths.items()}
    return functools.partial(pretrain, loops=loops, pool=PoolSettings(**dataclasses.asdict(pool)))
