"""Hydra's features as its users know them: each works, or is told before the start."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from partcraft_lit import cli
from partcraft_lit.config import cmdline, search, sources
from partcraft_lit.config import compose as config

SMALL = ("dataset.images_per_species=1", "logger=csv", "trainer=cpu")


@pytest.fixture
def trained(monkeypatch):
    """Settings and folders of the runs that were started."""
    state = SimpleNamespace(calls=[], folders=[])

    def train(settings, folder, **others):
        state.calls.append(settings)
        state.folders.append(folder)
        return {"eval/emr@4_species": 0.5}

    module = ModuleType("partcraft_lit.commands.train.train")
    module.train = train
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return state


@pytest.fixture
def partcraft(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder that is none of ours, with YAML of a user's own."""
    own = tmp_path / "own conf"
    for name, text in {
        "experiment/mine.yaml": "# @package _global_\ndefaults: [demo, _self_]\nloss: {lambda_attn: 0.07}\n",
        "experiment/other.yaml": "# @package _global_\nloss: {lambda_attn: 0.09}\n",
        "my.yaml": "defaults: [train, _self_]\nloss: {lambda_attn: 0.05}\n",
        "search.yaml": "defaults: [train, override hydra/sweeper: optuna, override hydra/launcher: basic, _self_]\n"
        "objective: eval/emr@4_species\nhydra: {sweeper: {n_trials: 2, params: {lora.rank: '2,4'}}}\n",
        "train2.yaml": "defaults: [train, override experiment: mine, _self_]\n"
        f"hydra: {{searchpath: ['file://{own}']}}\n",
    }.items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(text)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments])
        sources.set_sources(sources.Sources())
        out = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=out.out, err=out.err)

    return run


LAMBDA = ("--cfg", "job", "--resolve", "--package", "loss.lambda_attn")


@pytest.mark.parametrize(
    "arguments, value",
    [
        (("--config-dir", "own conf", "experiment=mine"), 0.07),
        (("--config-dir=own conf", "experiment=mine"), 0.07),
        (("experiment=mine", "-cd", "own conf", "loss.lambda_attn=0.5"), 0.5),
        (("-cn", "my", "--config-dir", "own conf"), 0.05),
        (("-cp", "own conf", "--config-name", "my.yaml"), 0.05),
        (("-cp", "own conf", "-cn", "train2"), 0.07),
        (("hydra.searchpath=[file://own conf]", "experiment=mine"), 0.07),
        (("hydra.searchpath=['file://own conf']", "experiment=[mine,other]"), 0.09),
        (("++loss.lambda_attn=0.25",), 0.25),
    ],
)
def test_yaml_of_ones_own(partcraft, arguments, value):
    assert (
        float(partcraft("train", *arguments, "--cfg", "job", "-p", "loss").out.split("lambda_attn:")[1].split()[0])
        == value
    )


def test_a_run_with_yaml_of_ones_own_starts(partcraft, trained):
    result = partcraft("train", "-cp", "own conf", "-cn", "my", *SMALL)
    assert result.code == 0, result.err
    assert trained.calls[0].loss.lambda_attn == 0.05 and trained.folders[0].parent.name == "runs"
    result = partcraft(
        "train", "hydra.searchpath=[file://own conf]", "-m", "experiment=mine,other", "hydra/launcher=basic", *SMALL
    )
    assert result.code == 0, result.err
    assert [call.loss.lambda_attn for call in trained.calls[1:]] == [0.07, 0.09]
    result = partcraft("train", "-m", "-cd", "own conf", "-cn", "search", *SMALL)
    assert result.code == 0 and len(trained.calls) == 5, result.err


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=glob(d*)", "seed=1,2"],
        ["method=glob(*,exclude=[c*,t*,b*])"],
        ["lora.rank=range(2,7,2)", "~callbacks.samples"],
        ["loss.lambda_attn=choice(0.1,1e-3)", "+backbone@other=mini"],
        ["eval.species=[1, 2],[3]", "parts.names=[left wing,b],['c [x]',d]", "parts.M=2"],
        ["seed=shuffle(range(1,4))"],
        ["seed=sort(3,1,2)", "prior.prompt='a, b',bird"],
        ["experiment=null,demo"],
    ],
)
def test_the_check_before_a_sweep_sees_what_hydra_runs(overrides):
    """One point for each value of each key: together they have every override of every job."""
    written = [cmdline.as_written(text, multirun=True) for text in overrides]
    points = list(search.sweep_points("train", written))
    parsed = OverridesParser.create(config_loader=sources.loader("train")).parse_overrides(written)
    jobs = list(itertools.chain(*BasicSweeper.split_arguments(parsed, None)))
    assert {text for job in jobs for text in job} == {
        text if text.startswith("~") is False else f"{text}=null" for point in points for text in map(normal, point)
    }
    for point in points:
        config.compose("train", point)


def normal(text: str) -> str:
    (parsed,) = OverridesParser.create().parse_overrides([text])
    return text if parsed.is_delete() else f"{parsed.get_key_element()}={parsed.get_value_element_as_str()}"


def test_folders_of_a_sweep_may_be_named(partcraft, trained):
    result = partcraft(
        "train", "lora.rank=2,4", "--multirun", "hydra.sweep.dir=my sweep", "hydra.sweep.subdir=${hydra.job.num}_rank",
        "hydra/launcher=basic", *SMALL,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert [folder.relative_to(Path.cwd()) for folder in trained.folders] == [
        Path("my sweep/0_rank"), Path("my sweep/1_rank"),
    ]  # fmt: skip


def test_no_option_may_be_one_of_a_sweep(partcraft, trained):
    result = partcraft("train", "-m", "experiment=null,demo", "hydra/launcher=basic", *SMALL)
    assert result.code == 0 and len(trained.calls) == 2, result.err


def test_lists_with_spaces_brackets_and_quotes(partcraft):
    given = "logger.wandb.tags=[a b, \"c [x], d\", 'e=f']"
    result = partcraft("train", "logger=wandb", given, "--cfg", "job", "-p", "logger.wandb.tags")
    assert result.out.splitlines()[-3:] == ["- a b", "- c [x], d", "- e=f"], result.err


def test_a_whole_configuration_is_shown_resolved(partcraft):
    result = partcraft("train", "--cfg", "job", "--resolve")
    assert result.code == 0, result.err
    assert "names:\n  - head\n  - wing" in result.out and "${" not in result.out


@pytest.mark.parametrize("kind", ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"])
def test_info(partcraft, kind):
    result = partcraft("train", "--info", kind, "--config-dir", "own conf")
    assert result.code == 0, result.err
    if kind in ("all", "searchpath"):
        assert "own conf" in result.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--config-dir", "nowhere"), "there is no such folder"),
        (("-cp", "nowhere"), "there is no such folder"),
        (("-cn", "mi", "-cd", "own conf"), "Did you mean 'my'"),
        (("hydra.searchpath=[file:///nowhere]",), "hydra.searchpath: there is no folder /nowhere"),
        (("hydra.searchpath=nowhere",), "hydra.searchpath must be a list of strings"),
        (("experiment=mine",), "experiment=mine: no such option"),
        (("loss.lambda_attn=interval(0,1)",), "has several values. For a sweep add -m"),
        (("method=glob(*)",), "has several values. For a sweep add -m"),
        (("-m", "method=glob(zz*)"), "nothing of this name is there to choose from"),
        (("-m", "method=glob(*"), "method=glob(*: no such option"),
        (("--cfg", "jobb"), "invalid choice: 'jobb'"),
        (("--cfg", "job", "-m"), "--multirun and --cfg do not go together"),
        (("--resolve",), "--resolve goes with --cfg"),
        (("--package", "loss"), "--package goes with --cfg"),
        (("--cfg", "job", "-p", "los"), "Did you mean 'loss'"),
        (("--config-dir",), "expected one argument"),
        (("--experimental-rerun", "x.pickle"), "is not supported: ckpt_path=RUN_FOLDER"),
        (("hydra.swep.dir=x",), "Did you mean 'hydra.sweep.dir'"),
        (("hydra/launcher=joblib",), "hydra/launcher=joblib: no such option"),
        (("hydra.job.chdir=true",), "relative paths are those of the folder"),
        (("hydra.output_subdir=null",), "the configuration of a run is read from .hydra"),
        (("backbone@other=mini",), "a further one is +backbone@other=NAME"),
        (("+backbone=mini",), "backbone is chosen twice"),
        (("~logger",), "logger: train needs one"),
        (("~loger",), "Did you mean 'logger'"),
    ],
)
def test_mistakes_are_told_before_the_start(partcraft, trained, arguments, message):
    result = partcraft("train", *arguments)
    assert result.code == 2 and message in result.err, result.err
    assert len(result.err.splitlines()) == 1 and not trained.calls


def test_full_errors_show_where_they_come_from(partcraft, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    result = partcraft("train", "lora.rank=x")
    assert result.code == 2 and "Traceback" in result.err and "lora.rank='x'" in result.err


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "line, wanted, unwanted",
    [
        ("partcraft tr", {"train"}, {"table"}),
        ("partcraft train dataset=c", {"dataset=creatures", "dataset=cub"}, {"dataset=folder"}),
        ("partcraft train -m seed=1 loss.lam", {"loss.lambda_attn="}, set()),
        ("partcraft table table=", {"table=reconstruction"}, set()),
        ("partcraft train --conf", {"--config-dir", "--config-name"}, {"--cfg"}),
    ],
)
def test_bash_completes_verbs_groups_and_keys(tmp_path, line, wanted, unwanted):
    program = tmp_path / "partcraft"
    program.write_text(f"#!{sys.executable}\nfrom partcraft_lit.cli import main\nmain()\n")
    program.chmod(0o755)
    words = line.split(" ")
    script = (
        'eval "$(partcraft -sc install=bash)"\n'
        "complete -p partcraft >/dev/null || exit 3\n"
        f'COMP_LINE="{line}"; COMP_POINT={len(line)}; COMP_CWORD={len(words) - 1}\n'
        'hydra_bash_completion; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    found = set(done.stdout.split())
    assert done.returncode == 0 and wanted <= found and not unwanted & found, (done.stdout, done.stderr)


def test_jobs_in_processes_of_their_own_read_the_same_yaml(partcraft, monkeypatch, tmp_path):
    from partcraft_lit.config import launchers
    from partcraft_lit.scheduling.tasks import Outcome

    tasks = []
    monkeypatch.setattr(launchers, "run_tasks", lambda new, *others: tasks.extend(new) or Outcome())
    partcraft(
        "train", "-m", "-cp", "own conf", "-cn", "my", "hydra.searchpath=[file://own conf]", "lora.rank=2,4", *SMALL
    )
    for task, rank in zip(tasks, (2, 4), strict=True):
        command = list(task.steps[0].command)[3:]  # behind python -m partcraft_lit
        shown = partcraft(*command, "--cfg", "job").out
        assert "lambda_attn: 0.05" in shown and f"rank: {rank}" in shown
