"""``partcraft VERB [overrides]``. Everything heavy is imported after the configuration has been checked.

Exit codes: 0 done; 2 a mistake that the user can mend, with a message; 130 interrupted; 1 a bug, with its traceback.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from partcraft_lit import __version__
from partcraft_lit.core.errors import UserError, did_you_mean, nearest_names

#: Verb -> what it does. Each has a module in ``verbs`` and a primary configuration of its name in ``conf``.
VERBS = {
    "discover": "find the parts in a folder of images: dictionary, masks, an atlas of pictures",
    "train": "discover if needed, train, sample, score, write the report",
    "generate": "images from a run and a prompt with part tokens",
    "evaluate": "the scores of a run",
    "table": "several methods or settings under one protocol, with intervals and tests",
    "merge": "concepts that Custom Diffusion trained apart, in one run, without training",
    "export": "the parts and the adapter of a run as files for diffusers, A1111 and ComfyUI",
    "fetch": "a published data set, downloaded or from a local archive",
    "doctor": "what is missing for a training run, and what it would cost; takes the overrides of train",
    "store": "stats, verify or prune: what is computed once and kept for all runs",
    "pretrain": "the embedded model, features or oracle, from nothing",
}
#: What a disk says of a path that the user has to change.
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})
USAGE = """\
partcraft {version} - part-level personalisation of text-to-image models

    partcraft VERB [key=value ...]

{verbs}

    partcraft VERB --help       every group and key of a verb
    partcraft train -m KEY=A,B  a sweep
    partcraft --version
"""


def main(arguments: Sequence[str] | None = None, verb: str | None = None) -> NoReturn:
    """Runs a verb and ends the process with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_dispatch(given, verb))


def _dispatch(given: list[str], verb: str | None) -> int:
    if verb is None:
        if not given or given[0] in ("-h", "--help", "help"):
            print(_usage())
            return 0 if given else 2
        if given[0] in ("-V", "--version"):
            print(__version__)
            return 0
        verb, *given = given
    if verb == "store" and given and given[0].isalpha():
        given[0] = f"action={given[0]}"  # partcraft store stats
    full = any(text.lower() == "debug=true" for text in given) or os.environ.get("HYDRA_FULL_ERROR") == "1"
    progress = _Progress()
    try:
        if verb not in VERBS:
            raise UserError(f"Unknown verb '{verb}'. {did_you_mean(verb, VERBS)}\n\n{_usage()}")
        return _run_verb(verb, given, progress, full)
    except KeyboardInterrupt:
        return _interrupted(progress)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns an interrupt into an exit of its own
            return _interrupted(progress)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        return _report(error, full)


class _Progress:
    """What has been reached, for the message of an interrupt."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.errors: list[Exception] = []


def _run_verb(verb: str, given: list[str], progress: _Progress, full: bool) -> int:
    import hydra
    from hydra._internal.utils import get_args_parser

    from partcraft_lit.config import compose as config

    # Its parser takes options before overrides or after them, not between.
    given = sorted(given, key=lambda text: text not in ("-m", "--multirun"))
    args = _parsed(get_args_parser(), given, verb)
    written = {text: config.as_written(config.renamed(text, verb), args.multirun) for text in args.overrides}
    _print_notes()
    overrides = list(written.values())
    command = [written.get(text, text) for text in given]
    module = importlib.import_module(f"partcraft_lit.commands.{verb}")
    if not (args.help or args.hydra_help or args.cfg or args.info or args.shell_completion):
        command += _prepare(verb, module, overrides, args)

    argv, hydra_argv = list(sys.argv), [sys.argv[0], *command]

    def job(cfg: Any) -> Any:
        # Lightning starts the processes of further GPUs with the command line and environment that it finds.
        with _hydra_errors_shown(shown=full), _command_line(argv):
            return _job(cfg, module, progress)

    try:
        with _hydra_errors_shown(shown=True), _command_line(hydra_argv):  # shown: raised here, not printed there
            hydra.main(version_base="1.3", config_path=str(config.conf_dir()), config_name=verb)(job)()
    except hydra.errors.HydraException as error:
        raise config.explain(error, verb) from error
    codes = [_report(error, full) for error in progress.errors]
    return max(codes, default=0) if 1 not in codes else 1


def _parsed(parser: argparse.ArgumentParser, given: list[str], verb: str) -> argparse.Namespace:
    """Raises a UserError for an option that does not exist; the parser itself would print all of its options."""
    known = [text for action in parser._actions for text in action.option_strings]
    for text in given:
        name = text.partition("=")[0]
        if name.startswith("-") and name not in known:
            raise UserError(
                f"'{text}' is no option. {nearest_names(name, known)}Settings are written key=value, without dashes; "
                f"partcraft {verb} --help names them all."
            )
    return parser.parse_args(given)


def _prepare(verb: str, module: ModuleType, overrides: list[str], args: argparse.Namespace) -> list[str]:
    """Checks the configuration of every job before the first starts; says in which folder a single job works."""
    from partcraft_lit.config import compose as config
    from partcraft_lit.config import machine
    from partcraft_lit.core import environment, files

    if args.multirun:
        for point in config.sweep_points(overrides):
            values = config.plain(config.compose(verb, point))
            module.check(values)
            if verb == "train":
                machine.check_start(values, args.overrides)
                _check_sweep(values)
        return []
    values = config.plain(config.compose(verb, overrides))
    module.check(values)
    if verb == "train":
        machine.check_start(values, args.overrides)
    _print_notes()
    if any(text.lstrip("+").startswith("hydra.run.dir=") for text in overrides):
        return []
    _, processes = environment.position()
    if processes > 1 and verb == "train":
        raise UserError(
            f"This is one of {processes} processes of a run, as RANK, LOCAL_RANK or SLURM_PROCID says, and each would "
            "choose a folder of its own. Name one that they share: hydra.run.dir=FOLDER."
        )
    folder, message = module.choose_folder(values)
    files.make_folder(folder)
    if message:
        print(message, flush=True)
    return [config.quoted("hydra.run.dir", str(folder))]


def _print_notes() -> None:
    from partcraft_lit.config import machine

    for note in machine.take_notes():
        print(note, flush=True)


def _check_sweep(values: Mapping[str, Any]) -> None:
    """Lightning starts further processes with the command line it finds, and that of a sweep starts the sweep again."""
    from partcraft_lit.core import environment

    processes = environment.trainer_processes(values["trainer"])
    if processes > 1:
        raise UserError(
            f"A sweep (-m) trains one job after the other in one process, and here a job would take {processes}. Add "
            "trainer.devices=1, or start the jobs as commands of their own, without -m."
        )


def _job(cfg: Any, module: ModuleType, progress: _Progress) -> Any:
    """One job. Errors are kept for later: in a sweep the other jobs go on, and nothing prints them but ``_report``."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from partcraft_lit.config import compose as config
    from partcraft_lit.core import environment, rundir
    from partcraft_lit.core.allocation import keep_freed_memory

    folder = Path(HydraConfig.get().runtime.output_dir)
    progress.folder = folder
    keep_freed_memory()
    try:
        # Further processes of a run work in the folder that its first holds.
        with rundir.held(folder) if environment.is_first_process() else nullcontext():
            return module.main(config.plain(cfg), folder)
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"partcraft: the job in {folder} stopped: {error}", file=sys.stderr, flush=True)
        progress.errors.append(error)
        return None


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


def _interrupted(progress: _Progress) -> int:
    from partcraft_lit.core import rundir

    saved = rundir.saved_so_far(progress.folder) if progress.folder else "Nothing had been started yet."
    print(f"\npartcraft: interrupted. {saved}", file=sys.stderr, flush=True)
    return 130


def _report(error: Exception, full: bool) -> int:
    """Prints an error; returns the exit code."""
    known = error if isinstance(error, UserError) else _known_cause(error)
    if known is None or full:
        traceback.print_exception(error)
    if known is None:
        print("partcraft: this is a bug, or a case that nobody thought of.", file=sys.stderr)
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
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" for {error.filename}" if error.filename else ""
            return UserError(f"The disk is full{where}. Make room and start the same command again; it continues.")
        if isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
            return UserError(
                f"{error.filename}: {error.strerror}. Give another path, or see whose it is and what its rights are."
            )
        error = error.__cause__ or error.__context__
    return None


def _usage() -> str:
    width = max(map(len, VERBS))
    rows: Mapping[str, str] = VERBS
    return USAGE.format(
        version=__version__, verbs="\n".join(f"    {name:<{width}}  {does}" for name, does in rows.items())
    )
