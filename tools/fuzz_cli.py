"""Wrong commands at the door: ``python tools/fuzz_cli.py [COUNT] [SEED]``, 500 unless given.

Keys are those of each verb's configuration, some misspelt; values are of all kinds, few of them right. Commands are
composed and checked in this process, and their work is left out. Each has to be accepted, or refused with a message and
exit code 2, within a minute; anything else is printed with its command, and the exit code is 1.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from partcraft_lit import cli
from partcraft_lit.config import compose as config
from partcraft_lit.config import launchers, mistakes, sources
from partcraft_lit.scheduling.tasks import Outcome

#: Verb -> how often it is tried.
VERBS = {"train": 12, "discover": 3, "generate": 3, "evaluate": 2, "export": 3, "merge": 1, "fetch": 2, "doctor": 2}
VERBS |= {"store": 2, "pretrain": 2, "table": 1}
#: What a verb cannot do without.
GIVEN = {"generate": ["prompt=x"], "fetch": ["dataset=sims4_faces"], "table": ["table=token_space"]}
VALUES = (
    *("", "null", "true", "maybe", "-1", "0", "1", "3.5", "1e99", "nan", "inf", "-inf", "9" * 400, "0x10", "1_000"),
    *("[]", "[a]", "[1,[2]]", "[a=b]", "[head,wing (left)]", "[,]", "{}", "{a:1}", "{a:{b:null}}", "x", "x y", "a,b"),
    *("a=b", "a:b", "'", '"', "(", "[", "]", "{", "--", "???", "é", "\udcff", "\x00", "\n", "x" * 5000, "auto"),
    *("~nouser/x", "/dev/null", "/proc/nope", "../../..", "https://", "${oc.env:HOME}", "${nope}", "${", "${seed}"),
    *("interval(0,1)", "tag(log,interval(1e-3,1))", "int(interval(1,3))", "glob(*,exclude=a*)", "interval(2,1)"),
    *("os.system", "partcraft_lit.cli.main", "range(1,3)", "choice(a,b)", "glob(*)", "int(3)", "sort(3,1)"),
)
#: Of a sweep.
SWEEPS = (
    ["-m"],
    ["-m", "hydra/launcher=basic"],
    ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "objective=eval/emr@4_species", "lora.rank=2,4"],
)
#: Hydra's own.
OPTIONS = (
    *("--cfg=job", "--cfg=x", "--info", "--info=plugins", "--config-dir=.", "--config-dir=nope", "-cn=nope", "-cp=."),
    *("--resolve", "--package=loss", "-p", "-r", "--run", "--multirun", "--experimental-rerun=x", "--hydra-help"),
)
SECONDS = 60


def commands(count: int, seed: int) -> Iterator[list[str]]:
    """A verb with one to three overrides each."""
    generator = random.Random(seed)
    keys = {verb: _keys(verb) for verb in VERBS}
    for _ in range(count):
        (verb,) = generator.choices(list(VERBS), list(VERBS.values()))
        overrides = [_override(generator, keys[verb]) for _ in range(generator.choice((1, 1, 1, 2, 3)))]
        sweep = generator.choice(SWEEPS) if verb == "train" and generator.random() < 0.2 else []
        options = [generator.choice(OPTIONS)] if generator.random() < 0.05 else []
        yield [verb, *sweep, *GIVEN.get(verb, []), *overrides, *options]


def _keys(verb: str) -> list[str]:
    values: Any = config.OmegaConf.to_container(config.compose(verb, GIVEN.get(verb, [])))
    return [*mistakes.keys_of(values), *sources.groups_of(verb), "hydra.run.dir", "hydra.sweep.dir"]


def _override(generator: random.Random, keys: list[str]) -> str:
    key, value = generator.choice(keys), generator.choice(VALUES)
    kind = generator.random()
    if kind < 0.1:  # a slip of the finger
        place = generator.randrange(len(key))
        key = key[:place] + generator.choice(("", "x", ".", "A", "/")) + key[place + 1 :]
    elif kind < 0.2:
        key = generator.choice(("+", "++", "~", ".", "=", "--")) + key
    elif kind < 0.25:
        return generator.choice((key, f"{key}.{key}={value}", f"~{key}", value))
    return f"{key}={value}"


def outcome(command: list[str]) -> tuple[int, str, float]:
    """Exit code, what was written, and seconds of a command whose work is left out."""
    written, started = io.StringIO(), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            cli.main(command)
    except SystemExit as ended:
        return int(ended.code or 0), written.getvalue(), time.monotonic() - started
    except TimeoutError:
        return -1, written.getvalue() + f"No end after {SECONDS} s.", time.monotonic() - started
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    raise AssertionError("A command ended without an exit code.")


def run(count: int, seed: int) -> int:
    """Tries the commands; returns how many failed."""
    cli.run_job = lambda cfg, module, progress: None
    launchers.run_tasks = lambda *arguments: Outcome()
    ends: Counter[str] = Counter()
    slowest = 0.0
    for command in commands(count, seed):
        code, text, seconds = outcome(command)
        slowest = max(slowest, seconds)
        is_good = code in (0, 2) and "Traceback" not in text
        ends["accepted" if is_good and not code else "refused" if is_good else "FAILED"] += 1
        if not is_good:
            print(f"exit code {code}: partcraft {shlex.join(command)[:300]!a}\n{text[-1500:]}\n", flush=True)
    print(f"{dict(ends)}, the slowest in {slowest:.1f} s")
    return ends["FAILED"]


def _stop(number: int, frame: object) -> None:
    raise TimeoutError


if __name__ == "__main__":
    from closed_pipe import until_the_reader_leaves

    with until_the_reader_leaves():
        signal.signal(signal.SIGALRM, _stop)
        os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
        numbers = [int(text) for text in sys.argv[1:]] + [500, 0][len(sys.argv[1:]) :]
        with tempfile.TemporaryDirectory(prefix="partcraft-fuzz-") as folder:
            os.chdir(folder)
            Path("logs").mkdir()
            sys.exit(min(run(*numbers[:2]), 1))
