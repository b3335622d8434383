"""From the command line to plain, checked values: where the YAML lies, how it is composed, and what its errors mean."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import platformdirs
from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from partcraft_lit.config import machine
from partcraft_lit.config.validation import join
from partcraft_lit.core import environment
from partcraft_lit.core.errors import UserError, did_you_mean, nearest_names
from partcraft_lit.core.rundir import settings_hash
from partcraft_lit.core.settings import expand_user

#: Free text: always taken as it is, with commas, brackets and all.
TEXT_KEYS = ("prompt", "sample.negative_prompt", "overrides")
#: Text that is taken as it is, except in a sweep, where a comma separates values.
WORD_KEYS = (
    "prior.prompt",
    "dataset.class_noun",
    "data_license",
    "logger.wandb.project",
    "logger.wandb.entity",
    "logger.wandb.group",
)
#: Lists of text: "1e-1" is a name there, and "wing (left)" needs no quotes.
LIST_KEYS = ("rows", "runs", "chosen", "parts.names", "dataset.classes", "dataset.pairs", "logger.wandb.tags")
#: Groups that a user does not choose from.
_UNASKED = ("hydra", "recipe")
#: Paths: taken as they are, except in a sweep, where a comma separates values.
PATH_KEYS = (
    "dataset.dir",
    "dataset.masks",
    "parts.corrections",
    "archive",
    "paths.data",
    "prior.dir",
    "backbone.source",
    "backbone.vae",
    "backbone.config",
    "run",
    "ckpt_path",
    "output_dir",
    "prompts_file",
    "captions_file",
    "paths.logs",
    "paths.store",
)

#: Per verb: what a user may write -> the key. These are groups of other verbs: Hydra would look for an option of them.
ALIASES = {"export": {"parts": "chosen"}, "table": {"backbone": "base"}}

#: Names of the parts that are found in drawn creatures, from the top of the image down, as their atlas shows.
DRAWN_NAMES = {("bird", 5): ["head", "wing", "body", "tail", "legs"]}

OmegaConf.register_new_resolver(
    "user_cache", lambda name: str(platformdirs.user_cache_path("partcraft_lit") / name), replace=True
)
# What a data set is trained with, and what depends on the machine.
OmegaConf.register_new_resolver("recipe_for", machine.recipe_for, replace=True)
OmegaConf.register_new_resolver("backbone_for", machine.backbone_for, replace=True)
OmegaConf.register_new_resolver("miniature_for", machine.miniature_for, replace=True)
OmegaConf.register_new_resolver("features_for", machine.features_for, replace=True)
OmegaConf.register_new_resolver("hardware_for", machine.hardware_for, replace=True)
OmegaConf.register_new_resolver("precision_here", machine.precision_here, replace=True)
OmegaConf.register_new_resolver("steps_here", machine.steps_here, replace=True)
# Names of a data set's parts, unless another number of parts is asked for; --resolve takes no plain list.
OmegaConf.register_new_resolver(
    "names_for",
    lambda number, *names: OmegaConf.create(list(names) if len(names) == number else []),
    replace=True,
)
OmegaConf.register_new_resolver(
    "names_of_drawn", lambda family, number: OmegaConf.create(DRAWN_NAMES.get((family, number), [])), replace=True
)
# The first of two phases of equal length.
OmegaConf.register_new_resolver("half", lambda number: max(1, int(number) // 2), replace=True)
# What an image of several concepts shows: "a cat and a dog".
OmegaConf.register_new_resolver("one_of_each", lambda names: " and ".join(f"a {name}" for name in names), replace=True)
OmegaConf.register_new_resolver(
    "short_hash", lambda text: settings_hash({"overrides": sorted(str(text).split(","))}, ()), replace=True
)


def conf_dir() -> Path:
    """The folder of the YAML files: ``conf/`` of a checkout, else the copy inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"The configuration folder is missing: neither {package / 'conf'} nor a checkout's conf/ is there.")


def renamed(override: str, verb: str) -> str:
    """An override with the key that a verb's configuration has for it."""
    key, equals, value = override.partition("=")
    return f"{ALIASES.get(verb, {}).get(key, key)}{equals}{value}"


def as_written(override: str, multirun: bool) -> str:
    """Quotes a value that stands for itself, so that ``prompt=a photo of a <head:3> bird`` needs no second quotes."""
    key, equals, value = override.partition("=")
    if not equals or not value or _is_quoted(value):
        return override
    bare = key.lstrip("+")
    if override == "hardware=auto":
        return f"hardware={machine.hardware_here()}"
    if override == "trainer.precision=auto":
        return quoted(key, "${precision_here:${trainer.accelerator}}")
    if bare in TEXT_KEYS or (bare in WORD_KEYS and not multirun and value != "null"):
        return quoted(key, value)
    if bare in LIST_KEYS and (items := _items(value)) is not None:
        return f"{key}=[{','.join(items)}]"
    if bare in PATH_KEYS and not multirun and value not in ("null", "auto"):
        return quoted(key, str(_expanded(bare, value).resolve()) if _is_path(bare, value) else value)
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        simple = "," not in value and not value.startswith(("[", "{", "$"))
        return quoted(key, value) if simple and re.fullmatch(r"\+{0,2}[\w.@/:-]+", key) else override
    return override


def quoted(key: str, value: str) -> str:
    return f"{key}={QuotedString(text=value, quote=Quote.single).with_quotes()}"


def compose(verb: str, overrides: Sequence[str] = (), loader: ConfigLoader | None = None) -> DictConfig:
    """The configuration of a verb.

    Args:
        verb: of the command.
        overrides: of one job.
        loader: that is kept for several configurations; None for one of this configuration alone.

    Raises:
        UserError: for an unknown key, group or option, with the nearest known ones, a value that cannot be read, or one
            that the experiment leaves open, ``???``, and nobody gives.
    """
    cfg = composed(verb, overrides, loader=loader)
    for group, default in groups_of(verb).items():
        if default is not None and not isinstance(OmegaConf.select(cfg, group), DictConfig):
            raise _needed(group, verb)
    for experiment in _experiments(overrides):
        for key in _left_open(experiment):
            if OmegaConf.select(cfg, key) in (None, "", []):
                raise UserError(f"experiment={experiment} leaves {key} to you, and it has to be given: {key}=VALUE.")
    return cfg


def check_hydra_settings(overrides: Sequence[str]) -> None:
    """Raises a UserError for settings of Hydra with which a run folder could not be read again."""
    for text in overrides:
        key, _, value = text.lstrip("+").partition("=")
        if key == "hydra.job.chdir" and value.lower() == "true":
            raise UserError(
                f"{text}: relative paths are those of the folder in which a command is given. Leave it out."
            )
        # Lightning gives it to the further processes of a run that it starts: the first one writes for them.
        if key == "hydra.output_subdir" and value != ".hydra" and environment.is_first_process():
            raise UserError(f"{text}: the configuration of a run is read from .hydra in its folder. Leave it out.")


def check_package(verb: str, overrides: Sequence[str], kind: str, package: str) -> None:
    """Raises a UserError if ``--cfg KIND --package NAME`` would show nothing."""
    cfg = composed(verb, [*overrides], with_hydra=kind != "job")
    if OmegaConf.select(cfg, package) is None:
        known = list(keys_of(OmegaConf.to_container(cfg, resolve=False)))
        raise UserError(f"--package {package}: the configuration has no such key. {did_you_mean(package, known)}")


def composed(
    verb: str, overrides: Sequence[str], with_hydra: bool = False, loader: ConfigLoader | None = None
) -> DictConfig:
    """As ``compose``, with values and groups that may still be missing.

    Args:
        verb: of the command.
        overrides: of one job.
        with_hydra: whether Hydra's own configuration is part of it.
        loader: see ``compose``.

    Raises:
        UserError: see ``compose``.
    """
    with _hydra(verb) as hydra, warnings.catch_warnings():
        hydra.config_loader = loader or hydra.config_loader
        # Of a folder in hydra.searchpath that is not there.
        warnings.filterwarnings("error", message="provider=.* is not available")
        given = [text for text in overrides if not is_null_group(text, verb)]
        try:
            return hydra_compose(primary(verb), given, return_hydra_config=with_hydra)
        except (HydraException, OmegaConfBaseException, ValueError, TypeError, UserWarning) as error:
            # ValueError and TypeError are those of group=true and group=[[x]].
            raise explain(error, verb, overrides) from error


def hydra_values(verb: str, overrides: Sequence[str], key: str, resolve: bool = True) -> Any:
    """A value of Hydra's own configuration, plain.

    Args:
        verb: of the command.
        overrides: of one job.
        key: such as "sweep.dir".
        resolve: whether interpolations become what they refer to.
    """
    cfg = composed(verb, overrides, with_hydra=True)
    if not resolve:
        group, _, name = key.rpartition(".")
        values: Any = OmegaConf.to_container(OmegaConf.select(cfg, f"hydra.{group}"), resolve=False)
        return values[name]
    node = OmegaConf.select(cfg, f"hydra.{key}")
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def loader(verb: str) -> ConfigLoader:
    """Knows the options of each group."""
    with _hydra(verb) as hydra:
        return hydra.config_loader


@dataclass(frozen=True)
class Sources:
    """Whose YAML is read beside ours, as Hydra's options on the command line say.

    Attributes:
        verb: of the command.
        name: of the primary configuration instead of the verb's, --config-name.
        folder: is looked into before ours, --config-path.
        extra: is looked into after ours, --config-dir.
    """

    verb: str = ""
    name: str | None = None
    folder: Path | None = None
    extra: Path | None = None


_sources = Sources()


def set_sources(sources: Sources) -> None:
    """From now on configurations are composed from these.

    Raises:
        UserError: for a folder or a primary configuration that is not there.
    """
    global _sources
    _sources = sources
    for option, folder in (("--config-path", sources.folder), ("--config-dir", sources.extra)):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{option} {folder}: there is no such folder.")
    if sources.name is not None:
        places = [place for place in (sources.folder, conf_dir(), sources.extra) if place is not None]
        name = sources.name.removesuffix(".yaml")
        if not any((place / f"{name}.yaml").is_file() for place in places):
            known = [path.stem for place in places for path in place.glob("*.yaml")]
            searched = ", ".join(map(str, places))
            raise UserError(f"--config-name {sources.name}: no such file in {searched}. {did_you_mean(name, known)}")


def primary(verb: str) -> str:
    """Name of the primary configuration."""
    return (_sources.name or verb).removesuffix(".yaml") if verb == _sources.verb else verb


def first_folder() -> Path:
    """Where Hydra looks first."""
    return _sources.folder or conf_dir()


class OwnConfigurations(SearchPathPlugin):
    """Our YAML stays within reach where --config-path names another folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if _sources.folder is not None:
            search_path.append("partcraft", str(conf_dir()))


Plugins.instance().register(OwnConfigurations)


@contextmanager
def _hydra(verb: str) -> Iterator[Hydra]:
    """Hydra as the command line starts it, to compose with; what was initialised before is forgotten."""
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    path = create_config_search_path(str(first_folder()))
    if _sources.extra is not None:
        path.prepend("command-line", f"file://{_sources.extra}", SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2(verb, path)
    finally:
        GlobalHydra.instance().clear()


@functools.cache
def groups_of(verb: str) -> dict[str, str | None]:
    """Groups of a verb's configuration, with the option that each begins with; None for those that may be left out."""
    found: dict[str, str | None] = {}
    values: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{verb}.yaml"))
    for entry in values["defaults"]:
        if isinstance(entry, Mapping):
            found |= {group: option for group, option in entry.items() if group.partition("/")[0] not in _UNASKED}
        elif entry != "_self_":
            found |= groups_of(entry)
    return found


def is_null_group(override: str, verb: str) -> bool:
    """Whether an override says what holds anyway, that an optional group is left out; Hydra cannot read it.

    Raises:
        UserError: for a group that cannot be left out.
    """
    group, _, option = override.partition("=")
    if option != "null" or group not in groups_of(verb):
        return False
    if groups_of(verb)[group] is not None:
        raise _needed(group, verb)
    return True


def with_empty_groups(override: str, verb: str) -> str:
    """A sweep over an optional group: Hydra reads "no option" as ``[]`` alone, where people write ``null``."""
    group, equals, options = override.partition("=")
    optional = group in groups_of(verb) and groups_of(verb)[group] is None
    return f"{group}={re.sub(r'(?<![^,( ])null(?![^,) ])', '[]', options)}" if optional and equals else override


def _needed(group: str, verb: str) -> UserError:
    options = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
    return UserError(f"{group}: {verb} needs one, {group}=NAME. Options: {', '.join(options)}.")


def _experiments(overrides: Sequence[str]) -> list[str]:
    """Names of the experiments that are chosen."""
    chosen = [text.partition("=")[2] for text in overrides if text.lstrip("+").startswith("experiment=")]
    return [name for names in chosen for name in re.findall(r"[\w/-]+", names) if name != "null"]


def _left_open(experiment: str) -> list[str]:
    """Keys that are ``???`` in an experiment, or in those that it begins with.

    OmegaConf lets a missing value pass where the group's own file has one, even an empty one.
    """
    path = conf_dir() / "experiment" / f"{experiment}.yaml"
    if not path.is_file():
        return []
    values: Any = OmegaConf.to_container(OmegaConf.load(path))
    nested = [name for name in values.pop("defaults", []) if isinstance(name, str) and name != "_self_"]
    return [*(key for name in nested for key in _left_open(name)), *_missing(values, "")]


def _missing(values: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _missing(value, join(where, key))
        elif value == "???":
            yield join(where, key)


def plain(cfg: Any) -> dict[str, Any]:
    """Dicts, lists and scalars, interpolations resolved.

    Raises:
        UserError: for a value that has to be given and was not, or an interpolation that leads nowhere.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        form = "PATH" if key in PATH_KEYS else "[A,B]" if key in LIST_KEYS else "VALUE"
        raise UserError(f"{key} has to be given: {key}={form}.") from error
    except OmegaConfBaseException as error:
        raise UserError(f"The configuration cannot be resolved at '{error.full_key}': {first_line(error)}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def to_yaml(values: Mapping[str, Any]) -> str:
    """A configuration as ``load`` reads it."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))


def sweep_points(verb: str, overrides: Sequence[str]) -> Iterator[list[str]]:
    """Overrides of enough jobs of a sweep that each value of each swept key occurs once.

    Not every combination: the check of a sweep of 1,000 jobs must not take longer than its first job.
    """
    parser = OverridesParser.create(config_loader=loader(verb))
    parsed = [parse(text, parser) for text in overrides]
    swept = [i for i, override in enumerate(parsed) if override.is_sweep_override()]
    choices = {i: _sweep_values(parsed[i]) for i in swept}
    first = [choices[i][0] if i in choices else text for i, text in enumerate(overrides)]
    yield first
    for i in swept:
        for value in choices[i][1:]:
            yield [*first[:i], value, *first[i + 1 :]]


def is_unresolvable(error: Exception) -> bool:
    """Whether an error is OmegaConf's, about an interpolation that names nothing."""
    return isinstance(error, InterpolationResolutionError)


def explain(error: Exception, verb: str, overrides: Sequence[str] = ()) -> UserError:
    """What an error of composing with these overrides means to the person who typed the command."""
    text = str(error) or str(error.__cause__ or "")
    if isinstance(error, OverrideParseException):
        return _explain_unreadable(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = list(error.options or [])
        return UserError(
            f"{group}={option}: no such option. {nearest_names(option, options)}Options: {', '.join(options)}."
        )
    if isinstance(error, UserWarning) and (found := re.search(r"path=(.*) is not available", text)):
        return UserError(f"hydra.searchpath: there is no folder {found[1]}.")
    if found := re.search(r"Sweep parameters '(.+?)' requires --multirun", text, re.DOTALL):
        return UserError(f"'{found[1]}' has several values. For a sweep add -m.")
    if found := re.search(r"(\S+) appears more than once in the final defaults list", text):
        return UserError(f"{found[1]} is chosen twice. A choice stands without +, {found[1]}=NAME, and once.")
    if found := re.search(r"Could not override '([^'@]+)@([^']+)'", text):
        return UserError(
            f"{found[1]}@{found[2]}: nothing is there to override; a further one is +{found[1]}@{found[2]}=NAME."
        )
    if found := re.search(r"(?:Could not override|config group|Could not delete from config\.) '([^']+)'", text):
        return UserError(f"Unknown key '{found[1]}'. {_nearest_key(found[1], verb, overrides)}")
    if found := re.search(r"You must specify '([^']+)'", text):
        group = found[1]
        options = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        return UserError(f"{group} has to be given: {group}=NAME. Options: {', '.join(options)}.")
    if "Config group override must be" in text or isinstance(error, TypeError):
        chosen = [given for given in overrides if given.lstrip("+").partition("=")[0] in groups_of(verb)]
        return UserError(f"{' '.join(chosen)}: give the name of an option, as partcraft {verb} --help lists them.")
    if "Ambiguous value for argument" in text:
        given = re.search(r"argument '(.+?)'\n", text)
        return UserError(
            f"'{given[1] if given else '...'}' has several values. For a sweep add -m; for a list write [a,b]; "
            "for text with a comma put it in quotes inside the quotes."
        )
    if found := re.search(r"Key '([^']+)' (?:is not in struct|not in)", text + str(error.__cause__ or "")):
        return UserError(f"Unknown key '{found[1]}'. {_nearest_key(found[1], verb, overrides)}")
    return UserError(f"The configuration cannot be composed: {first_line(error.__cause__ or error)}")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def keys_of(values: Any, where: str = "") -> Iterator[str]:
    """All dotted keys of nested mappings, groups included."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield join(where, str(key))
            yield from keys_of(value, join(where, str(key)))


def _explain_unreadable(error: OverrideParseException) -> UserError:
    if "=" not in error.override and not error.override.startswith("~"):
        return UserError(f"'{error.override}' is not an override: wanted key=value, for instance parts.M=5.")
    key, _, value = error.override.partition("=")
    return UserError(
        f"The value of '{key}' cannot be read: {value!r}. Put text with special signs in quotes inside the quotes: "
        f"'{key}=\"...\"'."
    )


def _nearest_key(given: str, verb: str, overrides: Sequence[str]) -> str:
    """Sentences: which option of the group has the key, else where one of its name is, else the nearest spelling."""
    group, _, rest = given.partition(".")
    if group == "hydra":
        known = [f"hydra.{key}" for key in keys_of(_hydra_node(verb))]
        return f"{nearest_names(given, known)}All keys: partcraft {verb} --cfg hydra."
    if having := _options_with(group, rest):
        options = " and ".join(f"{group}={option}" for option in having)
        return f"It is a key of {options}. All keys: partcraft {verb} --help."
    known = _known_keys(verb, _choices(overrides))
    elsewhere = [key for key in known if key.rpartition(".")[2].lower() == given.rpartition(".")[2].lower()]
    inner = [key for key in known if key.startswith(f"{group}.")]
    if elsewhere:
        nearest = sorted(elsewhere, key=lambda key: -SequenceMatcher(None, given, key).ratio())
        own = dict.fromkeys(key.split(".")[1] for key in inner if not key.split(".")[1].startswith("_"))
        listed = f" Keys of {group}: {', '.join(own)}." if own else ""
        return f"Did you mean {' or '.join(repr(key) for key in nearest[:3])}?{listed}"
    # In the group itself first. The list of all known keys would be long.
    near = nearest_names(given, inner).rstrip() or nearest_names(given, known).rstrip()
    near = near or did_you_mean(given, inner or [key for key in known if "." not in key])
    return f"{near} All keys: partcraft {verb} --help."


def _hydra_node(verb: str) -> Any:
    return OmegaConf.to_container(composed(verb, (), with_hydra=True).hydra, resolve=False)


def _known_keys(verb: str, choices: Sequence[str]) -> list[str]:
    """Keys of the configuration with these choices, or without them if they do not compose together."""
    with _hydra(verb):
        try:
            cfg = hydra_compose(primary(verb), list(choices))
        except (HydraException, OmegaConfBaseException):
            cfg = hydra_compose(primary(verb))
    return list(keys_of(OmegaConf.to_container(cfg, resolve=False)))


def _choices(overrides: Sequence[str]) -> list[str]:
    """Those overrides that choose an option that exists, so that its keys are known."""
    pairs = [override.partition("=")[::2] for override in overrides]
    return [f"{group}={option}" for group, option in pairs if (conf_dir() / group / f"{option}.yaml").is_file()]


def _options_with(group: str, key: str) -> list[str]:
    """Options of a group whose own YAML has a key."""
    files = sorted((conf_dir() / group).glob("*.yaml")) if key else []
    return [file.stem for file in files if key in keys_of(OmegaConf.to_container(OmegaConf.load(file)))]


def parse(text: str, parser: OverridesParser) -> Override:
    """One override.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return parser.parse_overrides([text])[0]
    except OverrideParseException as error:
        raise _explain_unreadable(error) from error


def _sweep_values(override: Override) -> list[str]:
    key = override.get_key_element()
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise UserError(f"{override.input_line}: nothing of this name is there to choose from.")
    return values


def _items(value: str) -> list[str] | None:
    """The items of one list, each in quotes; None for what is no such list, or a list of more than text."""
    if not re.fullmatch(r"\[[^][]*\]", value) or "${" in value:
        return None
    items = re.findall(r"\s*('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^,]+)\s*(?:,|$)", value[1:-1])
    return [item if _is_quoted(item) else quoted("", item.strip())[1:] for item in items]


def _is_path(key: str, value: str) -> bool:
    """Made absolute, so that a run can be read from any folder; a hub id or the name of a run is none."""
    may_exist = key.startswith("backbone.") or key == "ckpt_path"
    return key in ("dataset.dir", "dataset.masks", "prior.dir", "archive", "paths.data") or (
        may_exist and _expanded(key, value).exists()
    )


def _expanded(key: str, value: str) -> Path:
    try:
        return expand_user(Path(value))
    except ValueError as error:
        raise UserError(f"{key}={value}: {error}.") from None


def _is_quoted(value: str) -> bool:
    return len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
