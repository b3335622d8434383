"""``partcraft VERB [overrides]``. Everything heavy is imported after the configuration has been checked.

Exit codes: 0 done, or at the end of ``trainer.max_time``; 2 a mistake that the user can mend, with a message; 130, 143
and 138 stopped by SIGINT, SIGTERM or SIGUSR1 (see ``core.stopping``); 1 a bug, with its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from partcraft_lit import __version__
from partcraft_lit.cli.arguments import check_characters, hydra_parser, options_first, parsed
from partcraft_lit.cli.ending import READER_GONE, Progress, exit_process, reader_gone, report_error, stopped
from partcraft_lit.cli.job import command_line, hydra_errors_shown, run_job
from partcraft_lit.cli.preparing import prepare, print_notes
from partcraft_lit.core import stopping
from partcraft_lit.core.errors import UserError, did_you_mean

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
    code = READER_GONE
    progress = Progress()
    with suppress(BrokenPipeError), stopping.caught(lambda stop: stopped(stop, progress)), _log_files_closed():
        code = _dispatch(given, verb, progress)
        sys.stdout.flush()
    if code in (0, READER_GONE) and reader_gone():  # else Python would say so at exit
        code = READER_GONE
    exit_process(code)


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


def _dispatch(given: list[str], verb: str | None, progress: Progress) -> int:
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
        check_characters(given)
        return _run_verb(verb, given, progress, full)
    except KeyboardInterrupt as stop:
        return stopped(stop, progress)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns an interrupt into an exit of its own
            return stopped(error.__context__, progress)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        return report_error(error, full)


def _complete(given: list[str], progress: Progress) -> int:
    """``partcraft -sc install=bash`` and what the shell asks then: Hydra's completion, which knows nothing of verbs."""
    parser = hydra_parser()
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


def _run_verb(verb: str, given: list[str], progress: Progress, full: bool) -> int:
    import hydra

    from partcraft_lit.config import cmdline, mistakes, sources
    from partcraft_lit.config import compose as config
    from partcraft_lit.config.launchers import finish_sweep, take_sweep
    from partcraft_lit.scheduling.tasks import JobFailed

    _silence_notices()
    parser = hydra_parser()
    given = options_first(parser, given, verb)
    args = parsed(parser, given)
    sources.set_sources(_sources(args, verb))
    written = {}
    for text in args.overrides:
        if cmdline.is_null_group(text, verb):
            continue
        given_as = cmdline.as_written(cmdline.renamed(text, verb), args.multirun)
        written[text] = cmdline.with_empty_groups(given_as, verb) if args.multirun else given_as
    print_notes(args.overrides)
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
        command += prepare(verb, module, overrides, args, progress)

    argv, hydra_argv = list(sys.argv), [sys.argv[0], *command]

    def job(cfg: Any) -> Any:
        # Lightning starts the processes of further GPUs with the command line and environment that it finds.
        with hydra_errors_shown(shown=full), command_line(argv):
            return run_job(cfg, module, progress)

    try:
        with hydra_errors_shown(shown=True), command_line(hydra_argv):  # shown: raised here, not printed there
            hydra.main(version_base="1.3", config_path=str(sources.first_folder()), config_name=verb)(job)()
    except hydra.errors.HydraException as error:
        raise mistakes.explain(error, verb) from error
    except Exception as error:
        if isinstance(error, JobFailed) or error in progress.errors:
            pass  # it is reported below
        elif mistakes.is_unresolvable(error):  # hydra.run.dir=${nothing}, which Hydra reads after our checks
            raise mistakes.explain(error, verb) from error
        else:
            raise
    if args.multirun and (sweep := take_sweep()) is not None:
        return finish_sweep(sweep)
    codes = [report_error(error, full) for error in progress.errors]
    if progress.time_limit and stopping.SCHEDULED_VARIABLE in os.environ:
        codes.append(stopping.TIME_LIMIT_CODE)
    return max(codes, default=0) if 1 not in codes else 1


def _sources(args: argparse.Namespace, verb: str) -> Any:
    from partcraft_lit.config.sources import Sources

    folder, extra = (None if text is None else Path(text).absolute() for text in (args.config_path, args.config_dir))
    return Sources(verb, args.config_name, folder, extra)


def _silence_notices() -> None:
    """What libraries say that a user cannot act on, and progress bars where the output is not a terminal."""
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # that it builds its cache of fonts, once
    logging.raiseExceptions = False  # a log line that cannot be written is no reason for a traceback
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _usage() -> str:
    width = max(map(len, VERBS))
    rows: Mapping[str, str] = VERBS
    return USAGE.format(
        version=__version__, verbs="\n".join(f"    {name:<{width}}  {does}" for name, does in rows.items())
    )
