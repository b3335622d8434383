"""``partcraft VERB [overrides]``. Everything heavy is imported after the configuration has been checked.

Exit codes: 0 done, or at the end of ``trainer.max_time``; 2 a mistake that the user can mend, with a message; 130, 143
and 138 stopped by SIGINT, SIGTERM or SIGUSR1 (see ``core.stopping``); 1 a bug, with its traceback.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import importlib
import logging
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from partcraft_lit import __version__
from partcraft_lit.core import stopping
from partcraft_lit.core.errors import UserError, did_you_mean, nearest_names

#: Verb -> what it does. Each has a package in ``commands`` and a primary configuration of its name in ``conf``.
VERBS = {
    "discover": "find the parts in a folder of images: dictionary, masks, an atlas of images",
    "train": "discover if needed, train, sample, score, write the report",
    "generate": "images from a run and a prompt with part tokens",
    "evaluate": "the scores of a run",
    "table": "several methods or settings under one protocol, with intervals and tests",
    "merge": "concepts trained separately with Custom Diffusion or DisenDiff, in one run, without training",
    "export": "the parts and the adapter of a run as files for diffusers, A1111 and ComfyUI",
    "app": "the composer in the browser: click parts, compose, correct, train, export",
    "fetch": "a published data set, downloaded or from a local archive",
    "doctor": "what is missing for a training run, and what it would cost; takes the overrides of train",
    "dashboard": "the W&B workspace and report of a sweep or table; sync replays runs into clean ones",
    "store": "the cache shared by all runs: stats, verify, prune",
    "pretrain": "the embedded networks from scratch: miniature model, patch features, oracle",
}
#: What a disk says of a path that the user has to change.
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})
#: Exit code when the reader of the output has gone, as shells report it: 128 + SIGPIPE.
_READER_GONE = 141
_NO_SHARED_MEMORY = ("insufficient shared memory", "unable to write to file </torch_", "unable to mmap", "/dev/shm")
_NO_MEMORY = ("CUDA out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
#: Verbs whose work several processes share, in one folder.
_SHARED_VERBS = ("discover", "train", "evaluate")
#: Verbs that read only some keys of the trainer.
_TRAINER_KEYS = {
    "discover": ("accelerator",),
    "generate": ("accelerator",),
    "export": ("accelerator",),
    "merge": ("accelerator",),
    "evaluate": ("accelerator", "devices", "num_nodes", "strategy"),
}
USAGE = """\
partcraft {version} - part-level personalisation of text-to-image models

    partcraft VERB [key=value ...]

{verbs}

    partcraft VERB --help       its groups and keys, with what each means
    partcraft train -m KEY=A,B  a sweep
    eval "$(partcraft -sc install=bash)"   completes verbs, groups and keys in this shell
    partcraft --version
"""


def main(arguments: Sequence[str] | None = None, verb: str | None = None) -> NoReturn:
    """Runs a verb and ends the process with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    code = _READER_GONE
    progress = _Progress()
    with suppress(BrokenPipeError), stopping.caught(lambda stop: _stopped(stop, progress)), _log_files_closed():
        code = _dispatch(given, verb, progress)
        sys.stdout.flush()
    if code in (0, _READER_GONE) and _reader_gone():  # else Python would say so at exit
        code = _READER_GONE
    _exit(code)


def _exit(code: int) -> NoReturn:
    """Ends the process.

    A further process of a run does without the end of the interpreter: threads of gloo may still hold Python objects of
    the last collective, and one that asks for the interpreter's lock by then aborts the process. torchrun would call
    the whole run failed, on every host.
    """
    from partcraft_lit.core import environment

    torch = sys.modules.get("torch")
    connected = torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()
    if connected and not environment.is_first_process():
        atexit._run_exitfuncs()
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def _log_files_closed() -> Iterator[None]:
    """Closes the files that Hydra logs to in the end: a caller that lives on must not write into a finished folder."""
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        yield
    finally:
        for handler in [one for one in root.handlers if isinstance(one, logging.FileHandler) and one not in before]:
            root.removeHandler(handler)
            handler.close()


def _dispatch(given: list[str], verb: str | None, progress: _Progress) -> int:
    if verb is None:
        if not given or given[0] in ("-h", "--help", "help"):
            print(_usage())
            return 0 if given else 2
        if given[0] in ("-V", "--version"):
            print(__version__)
            return 0
        if given[0] in ("-sc", "--shell-completion"):
            return _complete(given, progress)
        verb, *given = given
    if verb in ("store", "dashboard") and given and given[0].isalpha():
        given[0] = f"action={given[0]}"  # partcraft store stats
    full = any(text.lower() == "debug=true" for text in given) or os.environ.get("HYDRA_FULL_ERROR") == "1"
    progress.verb = verb
    try:
        if verb not in VERBS:
            raise UserError(f"Unknown verb '{verb}'. {did_you_mean(verb, VERBS)}\n\n{_usage()}")
        _check_characters(given)
        return _run_verb(verb, given, progress, full)
    except KeyboardInterrupt as stop:
        return _stopped(stop, progress)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns an interrupt into an exit of its own
            return _stopped(error.__context__, progress)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        return _report(error, full)


def _check_characters(given: Sequence[str]) -> None:
    """Raises a UserError for what no configuration file, hash or path could hold: bytes that are not UTF-8, and NUL."""
    for text in given:
        if "\0" in text or any(0xD800 <= ord(character) < 0xE000 for character in text):
            shown = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
            raise UserError(
                f"{shown}: this holds bytes that are not UTF-8 text, or a NUL. Type it again, or rename the file."
            )


def _complete(given: list[str], progress: _Progress) -> int:
    """``partcraft -sc install=bash`` and what the shell asks then: Hydra's completion, which knows nothing of verbs."""
    parser = _hydra_parser()
    line = os.environ.get("COMP_LINE", "")
    words = line.split(" ")[1:]
    verb = words[0] if words else "train"
    if given[1:2] and given[1].startswith("query="):
        if len(words) < 2:
            print(" ".join(VERBS))
            return 0
        if verb not in VERBS:
            return 0
        if words[-1].startswith("-"):
            print(" ".join(text for action in parser._actions for text in action.option_strings))
            return 0
        kept = [word for word in words[1:-1] if not word.startswith("-")]
        os.environ["COMP_LINE"] = " ".join(["partcraft", *kept, words[-1]])
    return _run_verb(verb, given, progress, full=False)


def _hydra_parser() -> argparse.ArgumentParser:
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


def _reader_gone() -> bool:
    """Whether nobody reads the output any more, as behind ``| head``; what is left of it goes nowhere then."""
    try:
        number = sys.stdout.fileno()
        sys.stdout.flush()
        gone = select.poll()
        gone.register(number, 0)  # asks for errors alone
        if not any(event & select.POLLERR for _, event in gone.poll(0)):
            return False
    except BrokenPipeError:
        pass
    except (AttributeError, OSError, ValueError):  # no file behind it, or no poll on this system
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return True


class _Progress:
    """What has been reached, for the message of a stop."""

    def __init__(self) -> None:
        self.verb = ""
        self.folder: Path | None = None
        self.sweep: Path | None = None
        self.made: Path | None = None
        self.errors: list[Exception] = []
        self.time_limit = False


def _run_verb(verb: str, given: list[str], progress: _Progress, full: bool) -> int:
    import hydra

    from partcraft_lit.config import compose as config
    from partcraft_lit.config.launchers import finish_sweep, take_sweep
    from partcraft_lit.scheduling.tasks import JobFailed

    _silence_notices()
    parser = _hydra_parser()
    given = _options_first(parser, given, verb)
    args = _parsed(parser, given)
    config.set_sources(_sources(args, verb))
    written = {}
    for text in args.overrides:
        if config.is_null_group(text, verb):
            continue
        given_as = config.as_written(config.renamed(text, verb), args.multirun)
        written[text] = config.with_empty_groups(given_as, verb) if args.multirun else given_as
    _print_notes(args.overrides)
    overrides = list(written.values())
    command = [written.get(text, text) for text in given if text in written or text not in args.overrides]
    config.check_hydra_settings(overrides)
    if args.package is not None:
        config.check_package(verb, overrides, args.cfg, args.package)
    if args.help:
        from partcraft_lit.config.verb_help import verb_help

        print(verb_help(verb, overrides, args.resolve))
        return 0
    module = importlib.import_module(f"partcraft_lit.commands.{verb}")
    if not (args.hydra_help or args.cfg or args.info or args.shell_completion):
        command += _prepare(verb, module, overrides, args, progress)

    argv, hydra_argv = list(sys.argv), [sys.argv[0], *command]

    def job(cfg: Any) -> Any:
        # Lightning starts the processes of further GPUs with the command line and environment that it finds.
        with _hydra_errors_shown(shown=full), _command_line(argv):
            return _job(cfg, module, progress)

    try:
        with _hydra_errors_shown(shown=True), _command_line(hydra_argv):  # shown: raised here, not printed there
            hydra.main(version_base="1.3", config_path=str(config.first_folder()), config_name=verb)(job)()
    except hydra.errors.HydraException as error:
        raise config.explain(error, verb) from error
    except Exception as error:
        if isinstance(error, JobFailed) or error in progress.errors:
            pass  # it is reported below
        elif config.is_unresolvable(error):  # hydra.run.dir=${nothing}, which Hydra reads after our checks
            raise config.explain(error, verb) from error
        else:
            raise
    if args.multirun and (sweep := take_sweep()) is not None:
        return finish_sweep(sweep)
    codes = [_report(error, full) for error in progress.errors]
    if progress.time_limit and stopping.SCHEDULED_VARIABLE in os.environ:
        codes.append(stopping.TIME_LIMIT_CODE)
    return max(codes, default=0) if 1 not in codes else 1


def _options_first(parser: argparse.ArgumentParser, given: list[str], verb: str) -> list[str]:
    """Hydra's parser takes options before overrides or after them, not between.

    Raises:
        UserError: for an option that does not exist; the parser itself would print all of its options.
    """
    actions = {text: action for action in parser._actions for text in action.option_strings}
    options: list[str] = []
    overrides: list[str] = []
    rest = list(given)
    while rest:
        text = rest.pop(0)
        name, equals, value = text.partition("=")
        if not name.startswith("-"):
            overrides.append(text)
            continue
        if name not in actions:
            raise UserError(
                f"'{text}' is not an option. {nearest_names(name, actions)}Settings are written key=value, without "
                f"dashes; partcraft {verb} --help names them all."
            )
        action = actions[name]
        takes_next = action.nargs is None or (action.nargs == "?" and rest and rest[0] in (action.choices or ()))
        if not equals and takes_next and rest:
            equals, value = "=", rest.pop(0)
        if action.dest in ("config_path", "config_dir"):
            value = str(Path(value).expanduser().absolute())  # Hydra's are relative to a file of ours
        options.extend([name, value] if equals else [name])
    return options + overrides


def _parsed(parser: argparse.ArgumentParser, given: list[str]) -> argparse.Namespace:
    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}.")

    parser.error = refuse  # type: ignore[method-assign]
    args = parser.parse_args(given)
    chosen = [name for name in ("run", "multirun", "cfg", "info", "shell_completion") if getattr(args, name)]
    if len(chosen) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in chosen)
        raise UserError(f"{names} do not go together: each is a command of its own.")
    if args.resolve and not (args.cfg or args.help):
        raise UserError("--resolve goes with --cfg: partcraft train --cfg job --resolve.")
    if args.package is not None and not args.cfg:
        raise UserError("--package goes with --cfg: partcraft train --cfg job --package loss.")
    if args.experimental_rerun is not None:
        raise UserError(
            "--experimental-rerun is not supported: ckpt_path=RUN_FOLDER continues a run, and the overrides of a run "
            "are in its .hydra/overrides.yaml."
        )
    return args


def _sources(args: argparse.Namespace, verb: str) -> Any:
    from partcraft_lit.config.compose import Sources

    folder, extra = (None if text is None else Path(text).absolute() for text in (args.config_path, args.config_dir))
    return Sources(verb, args.config_name, folder, extra)


def _prepare(
    verb: str, module: ModuleType, overrides: list[str], args: argparse.Namespace, progress: _Progress
) -> list[str]:
    """Checks the configuration of every job before the first starts; says in which folder a single job works."""
    from partcraft_lit.config import compose as config
    from partcraft_lit.config import machine
    from partcraft_lit.core import files

    for text in overrides:
        if not args.multirun and text.startswith("hydra/sweeper="):
            raise UserError(f"{text}: this is one run. A search or a sweep goes with -m.")
    if args.multirun:
        return _prepare_sweep(verb, module, overrides, args, progress)
    _check_trainer_keys(verb, overrides)
    values = config.plain(config.compose(verb, overrides))
    module.check(values)
    if verb == "train":
        machine.check_start(values, args.overrides)
    _print_notes(args.overrides)
    for text in overrides:
        key, _, place = text.lstrip("+").partition("=")
        if key == "hydra.run.dir":
            if "${" not in place:
                files.make_folder(Path(place.strip("'\"")))
            return []
    if verb in _SHARED_VERBS:
        _check_shared(values)
    folder, message = module.choose_folder(values)
    files.make_folder(folder)
    progress.made = None if any(folder.iterdir()) else folder.absolute()
    if message:
        print(message, flush=True)
    return [config.quoted("hydra.run.dir", str(folder))]


def _prepare_search(verb: str, plan: Any, values: Mapping[str, Any], overrides: list[str]) -> tuple[Path, list[str]]:
    """Checks a search; names the folder of one that was begun before, else a new one."""
    from partcraft_lit.config import compose as config
    from partcraft_lit.config import plugins, search

    if verb != "train":
        raise UserError(f"hydra/sweeper=optuna searches over training runs: partcraft train, not {verb}.")
    search.check_plan(plan, values, config.hydra_values(verb, plan.points[0], "launcher"))
    plugins.register(search.OptunaSweeper)
    folder, begun = search.choose_folder(plan, verb, overrides)
    print(f"{'Continuing the search in' if begun else 'Search folder:'} {folder}", flush=True)
    return folder, [config.quoted("hydra.sweep.dir", str(folder))]


def _check_shared(values: Mapping[str, Any]) -> None:
    """Processes that somebody else starts have to be told in which folder they work together."""
    from partcraft_lit.core import environment

    _, processes = environment.position()
    machines = int(values["trainer"]["num_nodes"])
    if processes > 1 or machines > 1:
        which = f"processes of a run on {machines} machines" if machines > 1 else f"{processes} processes of a run"
        raise UserError(
            f"This is one of the {which}, as RANK, LOCAL_RANK, SLURM_PROCID or trainer.num_nodes says, and each would "
            "choose a folder of its own. Name one that they share: hydra.run.dir=FOLDER."
        )


def _prepare_sweep(
    verb: str, module: ModuleType, overrides: list[str], args: argparse.Namespace, progress: _Progress
) -> list[str]:
    """Checks jobs of a sweep; says in which folder it works: that of an earlier one which was asked for the same."""
    from partcraft_lit.config import compose as config
    from partcraft_lit.config import launchers, machine, plugins, search
    from partcraft_lit.config.loader import SharedLoader

    plugins.register(launchers.PoolLauncher, launchers.SlurmLauncher)
    plan = search.plan_of(verb, overrides)
    points = list(config.sweep_points(verb, overrides)) if plan is None else plan.points
    own = launchers.is_own(config.hydra_values(verb, points[0], "launcher"))
    values: dict[str, Any] = {}
    loader = SharedLoader(config.loader(verb))
    for point in points:
        values = config.plain(config.compose(verb, point, loader))
        module.check(values)
        if verb == "train":
            machine.check_start(values, args.overrides)
            if not own:
                _check_sweep(values)
    if plan is not None:
        progress.sweep, command = _prepare_search(verb, plan, values, overrides)
        return command
    if not own:
        return []
    if any(text.startswith("hydra.sweep.dir=") for text in overrides):
        progress.sweep = Path(config.hydra_values(verb, points[0], "sweep.dir"))
        return []
    anew = values.get("ckpt_path", "auto") is None
    folder, known = launchers.sweep_folder(verb, overrides, Path(values["paths"]["logs"]).expanduser(), anew)
    print(f"Continuing the sweep {folder}" if known else f"Sweep: {folder}", flush=True)
    progress.sweep = folder
    return [config.quoted("hydra.sweep.dir", str(folder))]


def _check_trainer_keys(verb: str, overrides: Sequence[str]) -> None:
    """Raises a UserError for a key of the trainer that would be accepted and not read."""
    read = _TRAINER_KEYS.get(verb)
    for text in overrides:
        group, _, key = text.lstrip("+").partition("=")[0].partition(".")
        if read is not None and group == "trainer" and key and key not in read:
            names = ", ".join(f"trainer.{name}" for name in read)
            raise UserError(
                f"{text}: {verb} does not read this; of the trainer it reads {names}. Precision is that of the run."
            )


def _print_notes(overrides: Sequence[str]) -> None:
    """Prints what was chosen for this machine, but for what the command line chose itself."""
    from partcraft_lit.config import machine

    given = [text.lstrip("+").partition("=")[0] for text in overrides if not text.endswith("=auto")]
    for note in machine.take_notes():
        if not any(f"so {key}=" in note for key in given):
            print(note, flush=True)


def _check_sweep(values: Mapping[str, Any]) -> None:
    """Lightning starts further processes with the command line it finds, and that of a sweep starts the sweep again."""
    from partcraft_lit.core import environment

    processes = environment.trainer_processes(values["trainer"])
    if processes > 1:
        raise UserError(
            f"This launcher trains the jobs of a sweep in processes of its own, and here a job would take {processes}. "
            "Leave hydra/launcher out, so that every job is a command of its own, or add trainer.devices=1."
        )


def _job(cfg: Any, module: ModuleType, progress: _Progress) -> Any:
    """One job. Errors are kept for later: in a sweep the other jobs go on, and nothing prints them but ``_report``."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from partcraft_lit.config import compose as config
    from partcraft_lit.core import environment, rundir
    from partcraft_lit.core.allocation import keep_freed_memory
    from partcraft_lit.scheduling.results import write_result

    folder = Path(HydraConfig.get().runtime.output_dir)
    progress.folder = folder
    keep_freed_memory()
    if "trainer" in cfg:
        environment.set_local_processes(config.plain(cfg.trainer))
    try:
        # Further processes of a run work in the folder that its first holds.
        with rundir.held(folder) if environment.is_first_process() else nullcontext():
            values = config.plain(cfg)
            returned = module.main(values, folder)
            if environment.is_first_process():
                write_result(folder, values.get("objective"), returned)
            return returned
    except stopping.TimeLimitReached as end:
        progress.time_limit = True
        _end_further_process(0)
        stopping.end_followers(by_themselves=True)
        scores = f"partcraft evaluate run={folder} scores what there is"
        _print_end(f"stopped by trainer.max_time {end.reached}", _left(progress), scores)
        return None
    except Exception as error:
        progress.errors.append(error)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"partcraft: the job in {folder} stopped: {error}", file=sys.stderr, flush=True)
            raise  # whatever launched it has to know
        if progress.made == folder:
            rundir.discard_unused(folder)
        return None


def _silence_notices() -> None:
    """What libraries say that a user cannot act on, and progress bars where the output is not a terminal."""
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # that it builds its cache of fonts, once
    logging.raiseExceptions = False  # a log line that cannot be written is no reason for a traceback
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def _command_line(argv: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _hydra_errors_shown(*, shown: bool) -> Iterator[None]:
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = str(int(shown))
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _stopped(error: KeyboardInterrupt, progress: _Progress) -> int:
    """Ends what this process has started, says in one sentence what was reached; returns the exit code."""
    from partcraft_lit.core import slurm

    stopping.ending()
    stop = error if isinstance(error, stopping.Stopped) else stopping.Stopped(signal.SIGINT)
    # Where all have stopped alike, what starts them would take anything else for a failure, and kill the first.
    _end_further_process(0 if stop.agreed else stop.code)
    stopping.end_followers(by_themselves=stop.agreed)
    reached = f"stopped by {stop.name}" + (f" {stop.reached}" if stop.reached else "")
    requeued = slurm.requeue() if stop.name == "SIGUSR1" else None
    _print_end(reached, requeued, _left(progress))
    return stop.code


def _end_further_process(code: int) -> None:
    """Ends a process of a run that is not its first, in silence and at once: the interpreter would wait for the
    connections to the others."""
    from partcraft_lit.core import environment

    if not environment.is_first_process():
        os._exit(code)


def _print_end(*parts: str | None) -> None:
    print(f"\npartcraft: {'; '.join(filter(None, parts))}.", file=sys.stderr, flush=True)


def _left(progress: _Progress) -> str:
    """Half a sentence on what a command that did not come to its end leaves, and how it goes on."""
    from partcraft_lit.core import rundir

    if progress.sweep is not None:
        return f"the same command continues the sweep in {progress.sweep}"
    if progress.folder is None:
        return "nothing had been started yet"
    if progress.verb in ("train", "pretrain"):
        return rundir.saved_so_far(progress.folder)
    return f"what was made so far is in {progress.folder} and in the store"


def _report(error: Exception, full: bool) -> int:
    """Prints an error; returns the exit code."""
    if isinstance(error, BrokenPipeError) and _reader_gone():
        return _READER_GONE
    known = error if isinstance(error, UserError) else _known_cause(error)
    if known is None or full:
        traceback.print_exception(error)
    if known is None:
        print("partcraft: unexpected error; please report it with the traceback above.", file=sys.stderr)
        return 1
    print(f"partcraft: {known}", file=sys.stderr)
    if not full and not isinstance(error, UserError):
        print("(debug=true shows the traceback.)", file=sys.stderr)
    return 2


def _known_cause(error: BaseException | None) -> Exception | None:
    """A user's mistake that another library wrapped, or what the disk refused, somewhere in the chain of causes."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        if any(text in str(error) for text in _NO_SHARED_MEMORY):
            return UserError(
                "Shared memory, /dev/shm, is full: loader workers pass batches through it. Use data.num_workers=0, or "
                "give it more room (docker run --shm-size=2g)."
            )
        if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
            return UserError(
                "There is too little memory. Use a smaller data.batch_size or hardware.max_batch_size=1 (the batch is "
                "taken in several passes, with the same result); 'partcraft doctor' says what fits."
            )
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" for {error.filename}" if error.filename else ""
            return UserError(f"The disk is full{where}. Make room and start the same command again; it continues.")
        if isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
            return UserError(
                f"{error.filename}: {error.strerror}. Give another path, or check its owner and permissions."
            )
        error = error.__cause__ or error.__context__
    return None


def _usage() -> str:
    width = max(map(len, VERBS))
    rows: Mapping[str, str] = VERBS
    return USAGE.format(
        version=__version__, verbs="\n".join(f"    {name:<{width}}  {does}" for name, does in rows.items())
    )
