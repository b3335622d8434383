"""What was typed: options, overrides, and the mistakes in them that Hydra's own parser would not name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from partcraft_lit.core.errors import UserError, nearest_names


def check_characters(given: Sequence[str]) -> None:
    """Raises a UserError for what no configuration file, hash or path could hold: bytes that are not UTF-8, and NUL."""
    for text in given:
        if "\0" in text or any(0xD800 <= ord(character) < 0xE000 for character in text):
            shown = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
            raise UserError(
                f"{shown}: this holds bytes that are not UTF-8 text, or a NUL. Type it again, or rename the file."
            )


def hydra_parser() -> argparse.ArgumentParser:
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


def options_first(parser: argparse.ArgumentParser, given: list[str], verb: str) -> list[str]:
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


def parsed(parser: argparse.ArgumentParser, given: list[str]) -> argparse.Namespace:
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
