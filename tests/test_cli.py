from __future__ import annotations

import errno
import importlib
import inspect
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import partcraft_lit
from partcraft_lit import cli
from partcraft_lit.cli import ending
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError

VERBS = ("train", "discover", "generate", "evaluate")


@pytest.fixture
def fake_run(monkeypatch):
    """Stands in for what the verbs run: records how it was called, and does as it is told."""
    state = SimpleNamespace(calls=[], does=lambda folder: {"score": 1.0})

    def record(name):
        def call(settings, folder, *run, **others):
            others |= {"run": run[0]} if run else {}
            state.calls.append(
                SimpleNamespace(name=name, settings=settings, folder=folder, argv=list(sys.argv), **others)
            )
            return state.does(folder)

        return call

    for name in VERBS:
        module = ModuleType(f"partcraft_lit.commands.{name}.{name}")
        setattr(module, name, record(name))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    opened = lambda folder, values: SimpleNamespace(folder=folder, values=values)  # noqa: E731
    monkeypatch.setattr("partcraft_lit.composer.run.Run", opened)
    return state


@pytest.fixture(scope="module")
def real_signatures():
    modules = {name: importlib.import_module(f"partcraft_lit.commands.{name}.{name}") for name in VERBS}
    return {name: inspect.signature(getattr(module, name)) for name, module in modules.items()}


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Runs a command as a shell would; returns its exit code and what it wrote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    small = ["dataset.images_per_species=1", "logger=csv", "trainer=cpu", f"paths.store={tmp_path / 'store'}"]
    small += ["optim.cooldown_steps=0"]  # a longer run continues a shorter one

    def started(*arguments, settings=small):
        monkeypatch.setattr(sys, "argv", ["partcraft", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, *(settings if arguments[0] == "train" else [])])
        out = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=out.out, err=out.err)

    return started


def interrupt(folder):
    raise KeyboardInterrupt


def test_without_a_verb_it_says_what_there_is(start):
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2
    result = start("--help")
    assert result.code == 0 and all(verb in result.out for verb in cli.VERBS)
    assert start("--version").out.strip() == partcraft_lit.__version__


def test_an_unknown_verb_is_an_error_with_the_nearest(start):
    result = start("trian")
    assert result.code == 2 and "Unknown verb 'trian'. Did you mean 'train'" in result.err


def test_help_of_a_verb_lists_groups_and_keys_with_their_comments(start):
    result = start("train", "--help", settings=[])
    assert result.code == 0
    assert "dataset: creatures, creatures_pair, cub, " in result.out and "lambda_attn: 0.1" in result.out
    assert "hardware: 12gb, 16gb, 24gb, 8gb, cpu, none, auto" in result.out
    assert "experiment: arena, " in result.out and "lambda_attn/paper" in result.out
    (line,) = [line for line in result.out.splitlines() if line.strip().startswith("snr_gamma:")]
    assert line.split() == ["snr_gamma:", "null", "#", "min-SNR", "weighting,", "for", "instance", "5"]


def test_help_shows_the_values_that_the_overrides_give(start):
    out = start("train", "loss.lambda_attn=0.02", "method=textual_inversion", "--help", settings=[]).out
    assert "lambda_attn: 0.02" in out and "partcraft_lit.methods.textual_inversion.TextualInversion" in out
    assert "_target_: lightning.Trainer" in start("doctor", "--help", "--resolve", settings=[]).out


def test_help_of_a_verb_leaves_out_the_groups_of_others(start):
    out = start("generate", "--help", settings=[]).out
    assert "dataset:" not in out and "Lightning" in out and "only its accelerator matters here" in out


def test_help_needs_no_group_that_the_verb_needs(start):
    result = start("fetch", "--help", settings=[])
    assert result.code == 0 and "multi_concept" in result.out and "keep_archives: false" in result.out


def test_train_gets_typed_settings_and_a_folder(start, fake_run):
    result = start("train", "parts.M=3")
    assert result.code == 0, result.err
    (call,) = fake_run.calls
    assert call.settings.parts.M == 3 and len(call.source) == 20
    assert call.resume_from is None and any("AttentionLoss" in type(c).__name__ for c in call.training.callbacks)
    assert call.argv == ["partcraft", "train", "parts.M=3"]  # as given, for the processes that Lightning starts
    assert call.folder.parent == Path.cwd() / "logs" / "train" / "runs"
    for name in (".hydra/config.yaml", "environment.json", "finished.json", "run.log"):
        assert (call.folder / name).is_file(), name


def test_an_interrupted_run_is_continued_and_a_finished_one_is_not(start, fake_run):
    fake_run.does = interrupt
    result = start("train")
    assert result.code == 130 and "stopped by SIGINT; no checkpoint was written yet" in result.err
    fake_run.does = lambda folder: {}
    result = start("train", "trainer.max_steps=9")
    assert result.code == 0 and "Continuing the unfinished run" in result.out
    start("train")
    folders = [call.folder for call in fake_run.calls]
    assert folders[0] == folders[1] != folders[2]


def test_null_starts_anew_and_a_path_is_taken(start, fake_run):
    fake_run.does = interrupt
    start("train")
    fake_run.does = lambda folder: {}
    start("train", "ckpt_path=null")
    first, second = (call.folder for call in fake_run.calls)
    assert first != second
    (first / "checkpoints").mkdir()
    start("train", f"ckpt_path={first}", "seed=5")
    assert fake_run.calls[-1].folder == first
    checkpoint = first / "checkpoints" / "step=000001.ckpt"
    torch.save({"state_dict": {}, "global_step": 1, "optimizer_states": [{"state": {}}]}, checkpoint)
    start("train", f"ckpt_path={checkpoint}")
    assert fake_run.calls[-1].resume_from == checkpoint and fake_run.calls[-1].folder != first


def test_other_settings_do_not_continue_a_run(start, fake_run):
    fake_run.does = interrupt
    start("train")
    start("train", "seed=1")
    assert fake_run.calls[0].folder != fake_run.calls[1].folder


def test_lightnings_exit_after_an_interrupt_is_an_interrupt(start, fake_run):
    def stop(folder):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    fake_run.does = stop
    assert start("train").code == 130


def test_mistakes_end_before_anything_is_made(start, fake_run):
    for arguments in (["lora.rank=x"], ["nope=1"], ["dataset=folder"], ["-m", "lora.rank=1,x"]):
        result = start("train", *arguments, settings=[])
        assert result.code == 2 and "Traceback" not in result.err, result.err
    assert not fake_run.calls and not Path("logs").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("dataset=cub", "dataset.dri=x"), "Did you mean 'dataset.dir'"),
        (("dataset=folder", "dataset.path=x"), "Keys of dataset: dir, class_noun, labels,"),
        (("backbone.source=x",), "It is a key of backbone=sd15 and backbone=sd21 and backbone=sdxl."),
        (("callbacks.sampels.every_n_steps=3",), "Did you mean 'callbacks.samples.every_n_steps'"),
        (("dataset=folder",), "dataset.dir has to be given: dataset.dir=PATH"),
        (("parts.names=head",), "parts.names='head': wanted a list, such as [head]"),
        (("logger=tensorboard",), "no such option. Options: csv, mlflow, none, trackio, wandb."),
        (("--multirn",), "'--multirn' is not an option. Did you mean '--multirun'"),
        (("--loss.lambda_attn=0.1",), "Settings are written key=value, without dashes"),
        (("trainer.max_steps=-5",), "trainer.max_steps=-5: wanted a whole number of at least 1"),
        (("parts.names=[head]",), "parts.names has 1 names for parts.M=5"),
        (("objective=x", "eval.enabled=false"), "objective=x is a score, and eval.enabled=false computes none"),
        (("dataset=sims4_faces", "dataset.dir=/nowhere"), "'partcraft fetch dataset=sims4_faces' gets it"),
        (("trainer.accelerator=cup",), "trainer.accelerator='cup': wanted one of auto, cpu"),
        (("trainer.num_nodes=x",), "trainer.num_nodes='x': wanted a whole number of at least 1"),
        (("sample.steps=2000",), "sample.steps=2000: wanted a whole number from 1 to 1000"),
        (("paths.logs={file}/below",), "is a file, and the folder"),
        (("paths.logs=\udcff",), "paths.logs=\\udcff: this holds bytes that are not UTF-8 text"),
        (("paths.logs=a\0b",), "paths.logs=a\\0b: this holds bytes that are not UTF-8 text, or a NUL"),
        (("backbone=null",), "backbone: train needs one, backbone=NAME. Options: flux2_klein, mini"),
        (("callbacks=null",), "callbacks: train needs one, callbacks=NAME. Options: default, live, none"),
        (("parts.features=[mini]",), "parts.features=['mini']: wanted text"),
        (("loss.attention=[mse]",), "loss.attention=['mse']: wanted text"),
        (("eval.pictures=mini",), "eval.pictures='mini': wanted a list, such as [mini]"),
        (("hydra.run.dir=/proc/nope",), "The folder /proc/nope cannot be made"),
        (("dataset=folder", "dataset.dir=~nouser/x"), "dataset.dir=~nouser/x: there is no user 'nouser'"),
        (("prior.dir=~nouser/x",), "prior.dir=~nouser/x: there is no user 'nouser'"),
        (("lora.rank=5000",), "lora.rank=5000: the widest layer of this backbone has 128 channels"),
        (("backbone.resolution=100",), "backbone.resolution=100: wanted a multiple of 8"),
        (("backbone=sd15", "backbone.resolution=500"), "backbone.resolution=500: wanted a multiple of 64"),
        (("backbone.attention_size=7",), "backbone.attention_size=7: at 64 px the attention maps of this backbone"),
        (("data.num_workers=5000",), "data.num_workers=5000: with"),
        (("data.batch_size=100000000",), "data.batch_size=100000000: the pixels of so many images at 64 px take"),
        (("objective=bogus",), "objective=bogus: no score has this name. Scores begin with eval"),
        (("debug=maybe",), "debug='maybe': wanted true or false"),
        (("parts.M=2", "parts.names=[head,wing (left)]"), "'wing (left)' cannot name a part"),
        (("logger.wandb.tags=[a=b]", "lora.rank=x"), "lora.rank='x': wanted"),  # the tag is fine
        (("experiment=null", "lora.rank=x"), "lora.rank='x': wanted"),
    ],
)
def test_typical_mistakes_are_told_before_any_work(start, fake_run, tmp_path, arguments, message):
    file = tmp_path / "file"
    file.touch()
    result = start("train", *(text.format(file=file) for text in arguments), settings=[])
    assert result.code == 2 and message in result.err and "Traceback" not in result.err, result.err
    assert len(result.err.splitlines()) == 1 and not fake_run.calls


def test_a_folder_that_cannot_be_written_into(start, fake_run, monkeypatch, tmp_path):
    # Who runs as root may write anywhere.
    monkeypatch.setattr("partcraft_lit.core.files.os.access", lambda path, mode: False)
    result = start("train")
    assert result.code == 2 and "cannot be written into" in result.err and not fake_run.calls


def test_a_failed_start_leaves_no_folder_and_one_with_results_stays(start, fake_run):
    def fail(folder):
        raise UserError("no")

    fake_run.does = fail
    assert start("train").code == 2
    assert not fake_run.calls[0].folder.exists()

    def fail_later(folder):
        (folder / "metrics.jsonl").touch()
        raise UserError("no")

    fake_run.does = fail_later
    start("train")
    assert fake_run.calls[1].folder.is_dir()


@pytest.mark.parametrize("verb", ["generate", "evaluate", "export", "discover"])
def test_keys_of_the_trainer_that_a_verb_does_not_read_are_refused(start, fake_run, verb):
    result = start(verb, "trainer.precision=bf16-mixed")
    assert result.code == 2 and f"{verb} does not read this; of the trainer it reads trainer.accelerator" in result.err


@pytest.mark.parametrize("prompt", ["prompt=", "prompt=' '"])
def test_an_empty_prompt_asks_for_nothing(start, fake_run, prompt):
    start("train")
    result = start("generate", prompt, "trainer=cpu")
    assert result.code == 2 and "prompt='' asks for nothing" in result.err


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_output_that_nobody_reads_ends_quietly(arguments, tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "partcraft_lit", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
    os.close(write)
    assert done.stderr == b"" and done.returncode == 141


def test_notices_that_a_user_cannot_act_on_stay_out(monkeypatch, recwarn):
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cli._silence_notices()
        warnings.warn("The `srun` command is available on your system but is not used.", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert [str(one.message) for one in told] == ["another"]
    assert os.environ["TQDM_DISABLE"] == os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_text_is_taken_as_it_was_typed():
    from partcraft_lit.config import cmdline
    from partcraft_lit.config import compose as config

    def as_composed(verb, text, *others):
        return config.compose(verb, [*others, cmdline.as_written(text, False)])

    assert as_composed("table", "rows=[1e-1, 0]", "table=lambda_attn").rows == ["1e-1", "0"]
    assert as_composed("table", "rows=['partcraft, adapted',x]", "table=lambda_attn").rows == [
        "partcraft, adapted",
        "x",
    ]
    assert as_composed("train", "logger.wandb.tags=[a=b,two words]").logger.wandb.tags == ["a=b", "two words"]
    assert as_composed("train", "parts.names=[]").parts.names == []
    assert as_composed("export", "data_license=CC BY 4.0, mine").data_license == "CC BY 4.0, mine"
    assert as_composed("train", "prior.prompt=a cat, sitting").prior.prompt == "a cat, sitting"
    assert Path(as_composed("train", "prior.dir=x").prior.dir) == Path.cwd() / "x"


def test_errors_of_a_run(start, fake_run):
    def fail(error):
        def does(folder):
            raise error

        return does

    fake_run.does = fail(UserError("mend it so"))
    result = start("train")
    assert result.code == 2 and result.err.strip().endswith("partcraft: mend it so") and "Traceback" not in result.err
    result = start("train", "debug=true")
    assert result.code == 2 and "Traceback" in result.err
    fake_run.does = fail(ZeroDivisionError("oops"))
    result = start("train")
    assert result.code == 1 and "Traceback" in result.err and "please report it with the traceback above" in result.err


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "The disk is full for /x/y"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "/x/y: Permission denied. Give another path"),
        (MemoryError(), "There is too little memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "There is too little memory"),
        (RuntimeError("DataLoader worker is killed by signal: Bus error. insufficient shared memory"), "/dev/shm, is"),
        (OSError(errno.ENOSPC, "No space left on device", "/dev/shm/x"), "Shared memory, /dev/shm, is full"),
    ],
)
def test_what_the_disk_refuses_is_no_bug(error, message, capsys):
    wrapped = RuntimeError("a library's own words")
    wrapped.__cause__ = error
    assert ending.report_error(wrapped, full=False) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_a_sweep_keeps_jobs_apart_and_goes_on_after_a_failure(start, fake_run):
    def does(folder):
        if len(fake_run.calls) == 1:
            raise UserError("only the first")
        return {}

    fake_run.does = does
    result = start("train", "-m", "hydra/launcher=basic", "loss.lambda_attn=0.1,0.01")
    assert result.code == 2 and "only the first" in result.err
    first, second = fake_run.calls
    assert (first.settings.loss.lambda_attn, second.settings.loss.lambda_attn) == (0.1, 0.01)
    assert first.folder != second.folder and first.folder.parent == second.folder.parent
    assert first.folder.parent.parent == Path.cwd() / "logs" / "train" / "multiruns"
    assert first.folder.name.startswith("0-") and second.folder.name.startswith("1-")
    assert not (first.folder / rundir.FINISHED).exists() and (second.folder / rundir.FINISHED).exists()


def test_the_flag_of_a_sweep_may_stand_anywhere(start, fake_run):
    result = start("train", "seed=1", "--multirun", "loss.lambda_attn=0.1,0.01", "seed=2", "hydra/launcher=basic")
    assert result.code == 0, result.err
    assert [call.settings.loss.lambda_attn for call in fake_run.calls] == [0.1, 0.01]
    assert fake_run.calls[0].argv == [
        "partcraft",
        "train",
        "seed=1",
        "--multirun",
        "loss.lambda_attn=0.1,0.01",
        "seed=2",
        "hydra/launcher=basic",
    ]


def test_generate_and_evaluate_read_the_run(start, fake_run):
    start("train", "parts.M=3")
    run_folder = fake_run.calls[0].folder
    result = start("generate", "prompt=a photo of a <head:3> bird", "num_images=2", "trainer=cpu")
    assert result.code == 0, result.err
    call = fake_run.calls[-1]
    assert call.settings.prompt == "a photo of a <head:3> bird" and call.run.values["parts"]["M"] == 3
    assert call.run.folder == run_folder and call.folder.parent == run_folder / "generated"
    result = start("evaluate", f"run={run_folder.name}", "eval.compositions=3", "trainer=cpu")
    assert result.code == 0, result.err
    call = fake_run.calls[-1]
    assert call.settings.eval.compositions == 3 and call.settings.parts.M == 3
    assert call.folder.parent == run_folder / "evaluation"  # other settings than those of the run


def test_discover(start, fake_run):
    result = start("discover", "parts.M=2", "trainer=cpu")
    assert result.code == 0, result.err
    assert fake_run.calls[-1].settings.parts.M == 2


@pytest.mark.parametrize("arguments", [("train", "--help"), ("train", "loss.lamda_attn=1"), ("nope",)])
def test_help_and_mistakes_load_nothing_heavy(arguments, tmp_path):
    """That torch is not loaded is what makes them answer within a second or two."""
    script = (
        "import sys; from partcraft_lit import cli\n"
        "try:\n    cli.main(sys.argv[1:])\n"
        "finally:\n    assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert "torch was imported" not in done.stderr and done.returncode in (0, 2), done.stderr


def test_train_py_is_the_verb_train(tmp_path):
    script = Path(cli.__file__).resolve().parents[3] / "train.py"
    if not script.is_file():
        pytest.skip("not a checkout")
    done = subprocess.run([sys.executable, str(script), "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "lambda_attn" in done.stdout


@pytest.mark.parametrize("name", VERBS)
def test_the_verbs_call_their_work_with_its_arguments(name, real_signatures, start, fake_run):
    start("train")
    if name != "train":
        start(name, "trainer.accelerator=cpu", *(["prompt=x"] if name == "generate" else []))
    call = fake_run.calls[-1]
    given = {key: value for key, value in vars(call).items() if key not in ("name", "argv", "settings", "folder")}
    assert call.name == name
    real_signatures[name].bind(call.settings, call.folder, **given)


def test_a_sweeper_hears_finite_numbers_only(start, fake_run, caplog):
    from partcraft_lit.commands import train

    scores = {"eval/emr@reconstruction": float("nan"), "eval/cosim@reconstruction": 0.5}
    assert train._for_sweeper(scores, "eval/emr@reconstruction", -1e6) == -1e6
    assert "is nan; the sweep is told objective_if_nan=-1000000.0 instead" in caplog.text
    assert train._for_sweeper(scores, "eval/cosim@reconstruction", -1e6) == 0.5
    assert train._for_sweeper(scores, None, -1e6) == {"eval/cosim@reconstruction": 0.5}
    fake_run.does = lambda folder: scores
    result = start("train", "objective=eval/emr")
    assert result.code == 2 and "Did you mean 'eval/emr@4_species'" in result.err and not fake_run.calls
    result = start("train", "objective=pictures/kid@reconstruction")
    assert result.code == 2 and "the run has no such score" in result.err


def test_a_sweep_in_one_process_refuses_jobs_of_several_processes(start, fake_run):
    """Lightning would start each further process with the command line of the sweep."""
    given = ("loss.lambda_attn=0.1,0.01", "trainer.devices=2", "trainer.strategy=ddp", "hydra/launcher=basic")
    result = start("train", "-m", *given)
    assert result.code == 2 and "Leave hydra/launcher out" in result.err and not fake_run.calls


def test_several_machines_need_a_folder_that_they_share(start, fake_run):
    result = start("train", "trainer.num_nodes=2", "trainer.strategy=ddp")
    assert result.code == 2 and "on 2 machines" in result.err and "hydra.run.dir=FOLDER" in result.err


def test_processes_started_outside_need_a_folder_that_they_share(start, fake_run, monkeypatch, tmp_path):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    result = start("train")
    assert result.code == 2 and "one of the 2 processes of a run" in result.err and "hydra.run.dir=FOLDER" in result.err
    folder = tmp_path / "shared"
    with rundir.held(folder):  # by the first process
        result = start("train", f"hydra.run.dir={folder}")
    assert result.code == 0, result.err
    assert [call.folder for call in fake_run.calls] == [folder]
    assert not (folder / rundir.FINISHED).exists() and not (folder / "environment.json").exists()  # the first writes


@pytest.mark.parametrize("rank", [0, 1])
def test_a_further_process_of_a_run_ends_without_the_end_of_the_interpreter(rank):
    """There, a thread of gloo that still holds Python objects would abort the process."""
    script = """if True:
        import atexit, torch
        from partcraft_lit.cli import main

        class Held:
            def __del__(self):
                print("the interpreter ended")

        held = Held()
        atexit.register(print, "exit functions ran")
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        main(["--version"])
    """
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "exit functions ran" in done.stdout
    assert ("the interpreter ended" in done.stdout) == (rank == 0)
