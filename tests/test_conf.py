"""Every YAML file composes, and every node binds to the constructor that it names."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import get_object
from omegaconf import OmegaConf

import partcraft_lit
from partcraft_lit import cli
from partcraft_lit.commands import train
from partcraft_lit.config import cmdline, factories, sources, targets
from partcraft_lit.config import compose as config
from partcraft_lit.config.validation import join
from partcraft_lit.core.errors import UserError
from partcraft_lit.losses.attention import entropy_attention_loss
from partcraft_lit.runs.settings import TrainSettings

CONF = sources.conf_dir()
#: What has to be given by hand.
NEEDED = {
    "dataset=folder": ["dataset.dir=/x"],
    "dataset=imagefolder": ["dataset.dir=/x"],
    "dataset=multi_concept": ["dataset.dir=/x"],
    "recipe/miniature=flow": ["backbone=mini_dit"],
    "recipe/miniature=demo_dit": ["backbone=mini_dit"],
    "recipe/miniature=any_method_dit": ["backbone=mini_dit"],
    "experiment=textual_inversion": ["dataset.dir=/x", "dataset.class_noun=cat"],
    "experiment=custom_diffusion": ["dataset.dir=/x", "dataset.class_noun=cat"],
    "experiment=disendiff": ["dataset.dir=/x", "parts.names=[cat,dog]"],
    "experiment=break_a_scene": ["dataset.dir=/x", "dataset.masks=/y", "parts.M=2"],
    "experiment=dreambooth": ["dataset.dir=/x", "dataset.class_noun=cat"],
}


def options() -> list[tuple[str, str]]:
    """Every option of every group that ``train`` chooses from."""
    paths = [path.relative_to(CONF).with_suffix("") for path in CONF.rglob("*.yaml")]
    depth = {path: 2 if path.parts[:1] == ("recipe",) and len(path.parts) > 2 else 1 for path in paths}
    return sorted(
        ("/".join(path.parts[: depth[path]]), "/".join(path.parts[depth[path] :]))
        for path in paths
        if len(path.parts) > 1 and path.parts[0] not in ("hydra", "table", "slurm", "pruning")
    )


def nodes(values: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(values, dict):
        if "_target_" in values:
            yield where, values
        for key, value in values.items():
            yield from nodes(value, join(where, key))


def required_of(target: Any) -> set[str]:
    parameters = inspect.signature(target).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name for p in parameters if p.default is p.empty and p.kind in kinds}


@pytest.mark.parametrize(("group", "option"), options(), ids="=".join)
def test_every_option_composes_and_binds(group, option):
    choice = f"{group}={option}"
    values = config.plain(config.compose("train", [choice, *NEEDED.get(choice, [])]))
    train.check(values)
    found = list(nodes(values))
    assert found
    for where, node in found:
        targets.later(node, where)


#: Tables of the embedded world alone.
EMBEDDED = ("arena", "backbones", "beyond", "early", "transfer")
#: Those of the paper; concepts have a scale of their own.
QUESTIONS = sorted({path.stem for path in (CONF / "table").glob("*.yaml")} - {"multi_concept", *EMBEDDED})


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_has_the_scale_of_the_paper_by_one_override(question):
    table = yaml.safe_load((CONF / "table" / f"{question}.yaml").read_text())
    assert table["scales"]["paper"] == [f"experiment={question}/paper"]
    values = config.plain(config.compose("train", table["scales"]["paper"]))
    scores, trained = values["eval"], values["trainer"]["max_steps"] * values["data"]["batch_size"]
    assert (scores["reconstructions"], scores["compositions"], scores["species"]) == (5994, 500, [1, 2, 3, 4])
    assert trained == 100 * 5994  # epochs of CUB's training images
    assert "load_sd15" in values["backbone"]["_target_"] and values["dataset"]["_target_"].endswith("Cub")
    assert {"inception", "clip_base32", "dino_small16"} <= set(scores["pictures"])
    assert "://" in values["metrics"]["inception"]["source"]


@functools.cache
def sampler_of(*overrides: str) -> str:
    return json.dumps(config.plain(config.compose("train", overrides))["sample"])


@pytest.mark.parametrize(
    ("name", "scale"),
    [*[(question, "small") for question in (*QUESTIONS, "multi_concept", *EMBEDDED)], ("multi_concept", "paper")],
)
def test_all_rows_of_a_table_are_sampled_alike(name, scale):
    table = yaml.safe_load((CONF / "table" / f"{name}.yaml").read_text(encoding="utf-8"))
    samplers, models = {}, set()
    for row, chosen in table["rows"].items():
        overrides = [*table["scales"][scale], *chosen.get("overrides", []), *chosen.get(scale, [])]
        decisive = [o for o in overrides if "." not in o.partition("=")[0] or o.startswith("sample.")]
        samplers[row] = sampler_of(*decisive)
        models |= {override for override in overrides if override.startswith("backbone=")}
    # No sampler draws for diffusion and flow matching.
    assert len(set(samplers.values())) == max(1, len(models)), samplers


def test_all_questions_are_there():
    wanted = "ablation convergence lambda_attn lora_scope num_parts_codes reconstruction species_mix token_space"
    assert wanted.split() == QUESTIONS
    listed = (Path(__file__).parents[1] / "experiments" / "README.md").read_text()
    assert all(f"experiment={question}/paper" in listed for question in QUESTIONS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_a_configuration_and_a_module(verb, tmp_path):
    given = {
        "generate": ["prompt=x"],
        "fetch": ["dataset=cub"],
        "table": ["table=lambda_attn", "rows=['0']"],
        "merge": ["runs=[latest,latest]"],
        "app": ["run=nowhere"],  # without any run it starts all the same: one can be trained in it
    }
    needed = given.get(verb, [])
    values = config.plain(config.compose(verb, [*needed, f"paths.logs={tmp_path}"]))
    for where, node in nodes(values):
        targets.later(node, where)
    module = __import__(f"partcraft_lit.commands.{verb}", fromlist=["check"])
    if any(values.get(key) is not None for key in ("run", "runs")):
        with pytest.raises(UserError, match=r"Train one first|no such run"):
            module.check(values)
    else:
        module.check(values)


def test_evaluate_can_override_whatever_decides_the_scores_of_a_run():
    values, trained = (config.plain(config.compose(verb)) for verb in ("evaluate", "train"))
    elsewhere = {"enabled", "untrained", "hybrids"}  # of the training run alone
    for group in ("eval", "sample"):
        assert values[group].keys() == trained[group].keys() - elsewhere
        assert set(values[group].values()) == {None}


def test_what_callbacks_and_loggers_still_wait_for_is_given_at_run_time():
    values = config.plain(config.compose("train"))
    default, live = (
        {type(made).__name__ for made in factories.make_callbacks(node, train.check(node).loss)}
        for node in (values, config.plain(config.compose("train", ["callbacks=live"])))
    )
    assert default > {"Checkpoints", "Samples", "AttentionLoss"} and live == default | {"LiveScore"}
    for name, node in values["logger"].items():
        assert required_of(targets.later(node, name)) == {"folder"}, name
    for name, node in values["features"].items():
        assert not required_of(targets.later(node, name)), name
    for name, node in [*values["metrics"].items(), *values["judges"].items()]:
        assert not required_of(targets.later(node, name)), name
    for node in (values["dataset"], values["backbone"]):
        assert not required_of(targets.later(node, "x"))


def test_no_setting_is_parsed_and_read_by_nobody():
    """A flag without effect is the worst kind: ``--random_flip`` of the method's released trainer was one."""
    package = Path(inspect.getfile(partcraft_lit)).parent
    files = [*package.rglob("settings.py"), package / "methods" / "optim.py"]
    code = "\n".join(path.read_text() for path in package.rglob("*.py") if path not in files)
    code += "".join(re.findall(r"self(\.\w+)", "".join(path.read_text() for path in files)))
    names = [".".join(path.relative_to(package.parent).with_suffix("").parts) for path in files]
    kinds = {
        name: kind
        for module in names
        for name, kind in vars(importlib.import_module(module)).items()
        if getattr(kind, "__module__", "").startswith("partcraft_lit.")
    }
    yamls = "\n".join(path.read_text() for path in CONF.rglob("*.yaml"))
    for name, kind in kinds.items():
        for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
            by_group = name == "OptimSettings" and field.name.endswith("_lr")  # read as f"{group}_lr"
            read = re.search(rf"\.{field.name}\b", code) or re.search(rf"\$\{{[\w.]*\.{field.name}\}}", yamls)
            assert read or by_group, f"{name}.{field.name}"


#: Values in ``conf/`` that are of one option, where the constructor's default is that of all others.
OF_ONE_OPTION = {
    ("backbone/mini_plain", "packaged"),
    ("backbone/sd15", "mirrors"),
    ("dataset/sims4_faces", "class_noun"),
    ("dataset/sims4_faces", "labels"),
    ("dataset/sims4_faces", "per_class"),
    ("features/default", "model"),
    ("judges/default", "side"),
}


def test_defaults_of_constructors_are_those_of_conf():
    for path in sorted(CONF.rglob("*.yaml")):
        for where, node in nodes(OmegaConf.to_container(OmegaConf.load(path))):
            if not node["_target_"].startswith("partcraft_lit."):
                continue
            parameters = inspect.signature(get_object(node["_target_"])).parameters
            for key in node.keys() & parameters.keys() - {"_target_"}:
                default, given = parameters[key].default, node[key]
                of_one = (str(path.relative_to(CONF).with_suffix("")), key) in OF_ONE_OPTION
                is_open = given == "???" or (isinstance(given, str) and "${" in given)
                if default is not inspect.Parameter.empty and not is_open and not of_one:
                    assert given == (list(default) if isinstance(default, tuple) else default), f"{path} {where}.{key}"


def test_files_hold_no_key_twice():
    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        loader.flatten_mapping(node)
        return loader.construct_mapping(node)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    for path in CONF.rglob("*.yaml"):
        yaml.load(path.read_text(), Loader)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.lamda_attn=1"], r"Unknown key 'loss\.lamda_attn'\. Did you mean 'loss\.lambda_attn'"),
        (["M=3"], r"Unknown key 'M'\. Did you mean 'parts\.M'\?"),
        (["datset=folder"], r"Unknown key 'datset'\. Did you mean 'dataset'"),
        (["dataset=fodler"], r"dataset=fodler: no such option\. Did you mean 'folder' or 'imagefolder'\? Options: "),
        (["experiment=deom"], r"experiment=deom: no such option\. Did you mean 'demo'"),
        (["~lora.rnk"], r"Unknown key 'lora\.rnk'"),
        (["nonsense"], r"'nonsense' is not an override: wanted key=value"),
        (["loss.lambda_attn=1,2"], r"has several values\. For a sweep add -m"),
        (["lora.rank=(1"], r"The value of 'lora\.rank' cannot be read"),
    ],
)
def test_mistakes_in_keys_and_options(overrides, message):
    with pytest.raises(UserError, match=message):
        config.compose("train", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parts.M=0"], r"parts\.M=0: wanted a whole number from 1 to 254"),
        (["parts.K=many"], r"parts\.K='many': wanted a whole number"),
        (["data.flip='yes'"], r"data\.flip='yes': wanted true or false"),
        (["loss.attention=entropie"], r"loss\.attention=entropie: Did you mean 'entropy'\?"),
        (["loss.lambda_attn=-1"], r"loss\.lambda_attn=-1: wanted a number of at least 0"),
        (["eval.pictures=[mini,clip_base]"], r"eval\.pictures=clip_base: Did you mean 'clip_base32'"),
        (["parts.features=dinov2"], r"parts\.features=dinov2: Did you mean 'dinov2_"),
        (["lora.scope=al"], r"lora\.scope='al': wanted one of cross, all"),
        (["+datta=1"], r"Unknown key 'datta'\. Did you mean 'data'"),
        (["+lora.x=1"], r"Unknown key 'lora\.x'"),
        (["ckpt_path=/nowhere/x.ckpt"], r"ckpt_path=/nowhere/x\.ckpt: there is no such file"),
        (["ckpt_path=3"], r"ckpt_path=3: wanted auto, null"),
    ],
)
def test_mistakes_in_values(overrides, message):
    with pytest.raises(UserError, match=message):
        train.check(config.plain(config.compose("train", overrides)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=dreamboth"], r"method=dreamboth: no such option\. Did you mean 'dreambooth"),
        (["method.unet=lara"], r"method\.unet='lara': wanted one of lora, full, cross_kv, none\. Did you mean 'lora'"),
        (["method._target_=partcraft_lit.methods.nothing.X"], r"method\._target_=partcraft_lit\.methods\.nothing\.X"),
        (["~method._target_"], r"method has no _target_"),
        (["+method.captions.noun=x"], r"Unknown key 'method\.captions\.noun'\. Did you mean 'class_noun'"),
        (
            ["optim.phases=[{steps:3,groups:[tokens]}]"],
            r"optim\.phases\[0\]\.groups\[0\]='tokens': wanted one of mapper",
        ),
    ],
)
def test_mistakes_in_methods(overrides, message):
    with pytest.raises(UserError, match=message):
        train.check(config.plain(config.compose("train", overrides)))


def test_a_method_sets_values_of_other_groups_and_the_user_has_the_last_word():
    def of(*overrides: str) -> TrainSettings:
        return train.check(config.plain(config.compose("train", overrides)))

    released = of("method=partcraft_released")
    assert (released.lora.scope, released.mapper.layers, released.loss.snr_gamma) == ("all", 3, 5.0)
    given = of("method=partcraft_released", "lora.scope=cross", "mapper.layers=1", "method.captions.shuffle=false")
    assert (given.lora.scope, given.mapper.layers, given.method.captions.shuffle) == ("cross", 1, False)
    assert (given.mapper.position, given.loss.snr_gamma) == (True, 5.0)
    demo = of("experiment=demo", "method=partcraft_released")
    assert (demo.lora.rank, demo.mapper.layers) == (of("experiment=demo").lora.rank, 3)
    assert of("experiment=partcraft_cub", "method=textual_inversion").method.name == "textual_inversion"


def test_the_paper_s_preset_and_the_release_s():
    paper = train.check(config.plain(config.compose("train", ["method=partcraft", "backbone=sd15"])))
    assert (paper.lora.scope, paper.lora.rank, paper.mapper.layers, paper.mapper.position) == ("cross", 4, 2, False)
    assert (paper.loss.snr_gamma, paper.data.flip, paper.loss.lambda_attn) == (None, True, 0.01)
    values = config.plain(config.compose("train", ["experiment=partcraft_released_cub", "parts.codes=class"]))
    release = train.check(values)
    assert (release.lora.scope, release.lora.rank, release.mapper.layers, release.mapper.position) == (
        "all",
        4,
        3,
        True,
    )
    assert (release.loss.snr_gamma, release.loss.unprompted, release.method.captions.template_prob) == (
        5.0,
        "released",
        0.5,
    )
    assert (release.data.flip, release.data.crop, release.data.batch_size) == (False, "random", 2)
    assert (values["trainer"]["accumulate_grad_batches"], values["trainer"]["max_steps"]) == (4, 75_000)
    assert release.parts.codes == "class"


def test_a_value_that_has_to_be_given_is_named():
    with pytest.raises(UserError, match=r"dataset\.dir has to be given"):
        config.plain(config.compose("train", ["dataset=folder"]))


def test_arguments_of_objects_are_checked_against_their_annotations():
    values = config.plain(config.compose("train", ["parts.features=color", "features.color.grid=x"]))
    with pytest.raises(UserError, match=r"features\.color\.grid='x': wanted a whole number"):
        factories.features_loader(values)
    with pytest.raises(UserError, match=r"Unknown key 'dataset\.specis'\. Did you mean 'species'"):
        targets.make({"_target_": "partcraft_lit.world.creatures.Creatures", "specis": 3}, "dataset")
    with pytest.raises(UserError, match=r"dataset\._target_=partcraft_lit\.nowhere\.X"):
        targets.make({"_target_": "partcraft_lit.nowhere.X"}, "dataset")


def test_no_attention_loss_leaves_no_trace_of_one():
    for override in ("loss.attention=none", "loss.lambda_attn=0"):
        values = config.plain(config.compose("train", [override]))
        assert factories.make_attention_loss(values, train.check(values).loss) is None


def test_the_attention_loss_has_the_configured_settings():
    values = config.plain(config.compose("train", ["loss.lambda_attn=0.5", "loss.normalizer=softmax"]))
    callback = factories.make_attention_loss(values, train.check(values).loss)
    callback.set_num_parts(5)
    assert callback.term.weight == 0.5
    maps, ids = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 1, dtype=torch.long)
    expected = entropy_attention_loss(maps, ids, torch.zeros(1, 2, 2), 5, normalizer="softmax")
    assert torch.equal(callback.term.loss(maps, ids, torch.zeros(1, 2, 2)), expected)


@pytest.mark.parametrize(
    "text", ["prompt=a photo of a <head:3> <wing:7> bird", "prompt=it's, (all) [of] {it}: a=b \\ end", 'prompt="']
)
def test_prompts_need_no_second_quotes(text):
    cfg = config.compose("generate", [cmdline.as_written(text, False)])
    assert cfg.prompt == text.partition("=")[2]


def test_quotes_brackets_and_paths(tmp_path, monkeypatch):
    assert cmdline.as_written("prompt='x'", False) == "prompt='x'"
    assert cmdline.as_written("parts.names=[a,b]", False) == "parts.names=['a','b']"
    assert cmdline.as_written("ckpt_path=null", False) == "ckpt_path=null"
    assert cmdline.as_written("dataset.dir=a,b", True) == "dataset.dir=a,b"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my (holiday), photos").mkdir()
    text = cmdline.as_written("dataset.dir=my (holiday), photos", False)
    assert Path(config.compose("train", ["dataset=folder", text]).dataset.dir) == tmp_path / "my (holiday), photos"
    hub = cmdline.as_written("backbone.source=owner/name", False)
    assert config.compose("train", ["backbone=sd15", hub]).backbone.source == "owner/name"


def test_a_sweep_is_checked_value_by_value():
    points = list(
        cmdline.sweep_points("train", ["seed=1", "lora.rank=2,4", "lora.scope=choice(cross,all)", "parts.K=range(1,3)"])
    )
    assert points[0] == ["seed=1", "lora.rank=2", "lora.scope=cross", "parts.K=1"]
    assert len(points) == 4 and ["seed=1", "lora.rank=4", "lora.scope=cross", "parts.K=1"] in points


@pytest.mark.parametrize(
    ("experiment", "key"),
    [
        ("textual_inversion", "dataset.class_noun"),
        ("dreambooth", "dataset.class_noun"),
        ("disendiff", "parts.names"),
    ],
)
def test_what_an_experiment_leaves_open_has_to_be_given(experiment, key, capsys):
    """OmegaConf alone would take the empty value of the group's own file in silence."""
    given = [text for text in NEEDED[f"experiment={experiment}"] if not text.startswith(key)]
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", f"experiment={experiment}", *given])
    assert ended.value.code == 2
    assert (
        f"experiment={experiment} leaves {key} to you, and it has to be given: {key}=VALUE." in capsys.readouterr().err
    )
    noun = config.compose("train", ["experiment=textual_inversion", "dataset=cub"]).dataset.class_noun
    assert noun == "bird"  # a data set that knows its noun gives it


#: Experiment -> what its paper, or its released code, says.
PUBLISHED = {
    "textual_inversion": {"optim.mapper_lr": 0.005 * 4, "data.batch_size": 4, "trainer.max_steps": 5000},
    "dreambooth": {"optim.unet_lr": 5e-6, "trainer.max_steps": 1000, "prior.weight": 1.0, "method.unet": "full"},
    "custom_diffusion": {
        "optim.unet_lr": 1e-5 * 8,
        "optim.mapper_lr": 1e-5 * 8,
        "data.batch_size": 4,
        "trainer.max_steps": 250,
        "prior.images": 200,
        "prior.weight": 1.0,
        "method.detach_start": True,
        "loss.region_mean": "region",
        "sample.guidance_scale": 6.0,
    },
    "break_a_scene": {
        "optim.mapper_lr": 5e-4,
        "optim.unet_lr": 2e-6,
        "optim.text_encoder_lr": 2e-6,
        "optim.phases": [{"steps": 400, "groups": ["mapper"]}, {"steps": None, "groups": ["unet", "text_encoder"]}],
        "trainer.max_steps": 800,
        "data.batch_size": 1,
        "loss.lambda_attn": 0.01,
        "loss.attention": "mse",
        "prior.prompt": "a photo at the beach",
        "prior.images": 100,
    },
    "disendiff": {
        "optim.unet_lr": 8e-5,
        "trainer.max_steps": 250,
        "method.weight": 0.01,
        "method.kernel": "released",
        "method.bind": "sum",
        "method.most": 3,
        "prior.prompt": "a cat and a dog",
        "prior.images": 200,
    },
}


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_published_settings_are_those_of_the_papers(experiment):
    """The small tables have rates of their own, equal for all methods; these experiments do not."""
    cfg = config.compose("train", [f"experiment={experiment}", *NEEDED[f"experiment={experiment}"]])
    values = config.plain(cfg)
    assert values["optim"]["betas"] == [0.9, 0.999] and values["optim"]["weight_decay"] == 0.01
    for key, wanted in PUBLISHED[experiment].items():
        found = values
        for name in key.split("."):
            found = found[name]
        assert found == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), key


@pytest.mark.parametrize("verb", ["train", "discover", "pretrain"])
@pytest.mark.parametrize("seed", [-1, 2**53])
def test_a_seed_that_a_browser_would_round_is_refused(verb, seed):
    module = __import__(f"partcraft_lit.commands.{verb}", fromlist=["check"])
    with pytest.raises(UserError, match=rf"seed={seed}"):
        module.check(config.plain(config.compose(verb, [f"seed={seed}"])))
