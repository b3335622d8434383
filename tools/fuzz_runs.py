"""Tampered run folders and checkpoints through the commands: ``python tools/fuzz_runs.py [COUNT] [SEED]``.

Small runs are trained once; then COUNT times (100) a copy of one is damaged in one place and given to ``generate``,
``evaluate``, ``export``, ``merge`` or ``train ckpt_path=``. A command must end with the result that it gives for the
intact run, take an earlier checkpoint and say so, or refuse with a sentence. Tracebacks, hangs, foreign code that ran
and other results with exit code 0 are printed with their damage, and the exit code is 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from partcraft_lit import cli
from partcraft_lit.callbacks.checkpoint import manifest_of, manifest_path
from partcraft_lit.core.images import read_image

#: By the clock, so that a command that waits for ever is noticed.
SECONDS = 600
STEPS = 2
SMALL = (
    *("dataset=creatures", "dataset.species=2", "dataset.images_per_species=3", "backbone=mini"),
    *("parts.features=color", "features.color.grid=8", "parts.M=2", "parts.K=2", "parts.nredo=1", "parts.niter=3"),
    *("parts.foreground_clusters=2", "mapper.hidden=16", "trainer=cpu", f"trainer.max_steps={STEPS}"),
    *("trainer.precision=32-true", "data.batch_size=1", "data.num_workers=0", "logger=none"),
    *("callbacks.checkpoints.every_n_steps=1", "~callbacks.samples", "~callbacks.attention_maps"),
    *("eval.enabled=false", "hydra.run.dir={folder}", "paths.store={store}", "paths.logs={logs}"),
)
CUSTOM = (
    *("method=custom_diffusion", "method.nouns=true", "method.captions.background=false", "prior.images=1"),
    *("prior.steps=1", "data.scale_variants=0", "parts.M=1", "parts.K=1", "parts.source=discover"),
    "prior.prompt=a photo of a bird",
)
FEW = ("eval.reconstructions=1", "eval.compositions=0", "eval.ceiling_images=0")


#: What a command says that goes on with an earlier checkpoint.
TOLD = "is passed over"
GOOD = ("right", "refused", "told")


class Hang(BaseException):
    """A command took longer than SECONDS."""


@dataclass
class Bench:
    """Intact runs below ``root``, and the file that foreign code would make."""

    root: Path

    @property
    def marker(self) -> Path:
        return self.root / "code ran"

    def arguments(self, folder: Path, *more: str) -> list[str]:
        places = {"folder": folder, "store": self.root / "store", "logs": self.root / "logs"}
        return ["train", *(text.format(**places) for text in SMALL), *more]

    def intact(self, verb: str) -> Path:
        return self.root / ("bird" if verb == "merge" else "run")

    def command(self, verb: str, run: Path, out: Path) -> list[str]:
        """The arguments of a command that reads ``run`` and writes into ``out``."""
        if verb == "train":
            return self.arguments(
                out, f"trainer.max_steps={STEPS + 1}", f"ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
            )
        common = [f"paths.logs={self.root / 'logs'}", "trainer=cpu"]
        if verb == "generate":
            prompt = "prompt=a photo of a <1:1> bird"
            return [verb, *common, prompt, f"run={run}", "num_images=1", "sample.steps=1", f"output_dir={out}"]
        if verb == "evaluate":
            return [verb, *common, f"run={run}", *FEW, "sample.steps=1"]
        if verb == "export":
            return [verb, *common, f"run={run}", "sample.steps=1", f"output_dir={out}"]
        return [verb, f"paths.logs={self.root / 'logs'}", f"runs=[{run},{self.root / 'cat'}]", f"output_dir={out}"]

    def run(self, arguments: list[str]) -> tuple[int | str, str]:
        """Exit code, or "hang", and all that was written."""
        written = io.StringIO()
        signal.signal(signal.SIGALRM, _hang)
        signal.alarm(SECONDS)
        code: int | str = 0
        try:
            with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
                cli.main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        except Hang:
            code = "hang"
        except BaseException as error:  # what the door lets through is a traceback for the user
            code = 1
            written.write(f"{type(error).__name__}: {error}")
        finally:
            signal.alarm(0)
        return code, written.getvalue()


def _hang(*_: Any) -> None:
    raise Hang


def result(verb: str, run: Path, out: Path) -> str:
    """A hash of what a command made, without times and paths."""
    if verb == "generate":
        content = [read_image(path).numpy().tobytes() for path in sorted(out.glob("0*.png"))]
    elif verb == "evaluate":
        newest = max(run.rglob("scores.json"), key=lambda path: path.stat().st_mtime)
        content = [json.dumps(json.loads(newest.read_text(encoding="utf-8")), sort_keys=True).encode()]
    elif verb == "export":
        tables = [load_file(path) for path in sorted(out.rglob("*.safetensors"))]
        content = [_bytes(table) for table in tables]
    else:
        newest = sorted((out / "checkpoints").glob("step=*.ckpt"))[-1]
        content = [_bytes(torch.load(newest, weights_only=True)["state_dict"])]
    return hashlib.sha256(b"".join(content)).hexdigest()


def _bytes(tensors: dict[str, torch.Tensor]) -> bytes:
    return b"".join(name.encode() + value.numpy().tobytes() for name, value in sorted(tensors.items()))


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


Damage = Callable[[Path, random.Random, str], str]


def flip(run: Path, draw: random.Random, command: str) -> str:
    """One bit of a checkpoint or a dictionary."""
    path = draw.choice([*run.glob("checkpoints/*.ckpt"), *run.glob("parts/*.safetensors")])
    content = bytearray(path.read_bytes())
    place, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
    content[place] ^= bit
    path.write_bytes(content)
    return f"{path.relative_to(run)}: byte {place} ^ {bit}"


def cut(run: Path, draw: random.Random, command: str) -> str:
    """Any file cut off; half of them to nothing."""
    path = draw.choice(files(run))
    size = path.stat().st_size
    left = draw.choice([0, draw.randrange(size or 1)])
    path.write_bytes(path.read_bytes()[:left])
    return f"{path.relative_to(run)}: {left} of {size} bytes"


def lose(run: Path, draw: random.Random, command: str) -> str:
    path = draw.choice(files(run))
    path.unlink()
    return f"{path.relative_to(run)} is missing"


def swap(run: Path, draw: random.Random, command: str) -> str:
    """A folder, a link to itself, other text, or bytes that are not text, where a file was."""
    path = draw.choice(files(run))
    kind = draw.choice(["folder", "link", "text", "list", "bytes"])
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(path)
    else:
        path.write_bytes({"text": b"hello", "list": b"[1, 2, 3]", "bytes": bytes(range(128, 256))}[kind])
    return f"{path.relative_to(run)} is a {kind}"


def pickle(run: Path, draw: random.Random, command: str) -> str:
    """Checkpoints that run a command where they are unpickled; half with a manifest that fits."""
    sealed = draw.random() < 0.5
    for path in run.glob("checkpoints/*.ckpt"):
        content = torch.load(path, weights_only=True)
        torch.save({**content, "more": Evil(command)}, path)
        if sealed:
            seal(path)
    return f"evil pickles{', sealed' if sealed else ''}"


def weights(run: Path, draw: random.Random, command: str) -> str:
    """Checkpoints with a manifest that fits and weights that do not."""
    kind = draw.choice(["nan", "inf", "shape", "missing", "dtype", "no state", "list", "frozen"])
    for path in run.glob("checkpoints/*.ckpt"):
        content = torch.load(path, weights_only=True)
        state = content["state_dict"]
        name = sorted(state)[0]
        if kind in ("nan", "inf"):
            state[name].view(-1)[0] = float(kind)
        elif kind == "shape":
            state[name] = torch.zeros(3)
        elif kind == "missing":
            del state[name]
        elif kind == "dtype":
            state[name] = "a text"
        elif kind == "no state":
            del content["state_dict"]
        elif kind == "frozen":
            content["frozen"] = {"backbone": "sd15", "hash": "f" * 64}
        torch.save([content] if kind == "list" else content, path)
        seal(path)
    return f"weights: {kind}"


def dictionary(run: Path, draw: random.Random, command: str) -> str:
    """Centroids that are not finite, or of another shape."""
    path = draw.choice(sorted(run.glob("parts/*.safetensors")))
    tensors = load_file(path)
    name, kind = draw.choice(sorted(tensors)), draw.choice(["nan", "shape", "missing"])
    if kind == "nan":
        tensors[name] = torch.full(tensors[name].shape, float("nan"))
    elif kind == "shape":
        tensors[name] = torch.zeros(1)
    else:
        del tensors[name]
    save_file(tensors, path)
    return f"{path.relative_to(run)}: {name} {kind}"


def settings(run: Path, draw: random.Random, command: str) -> str:
    """A stored configuration that runs a command, asks for the environment, or is not a configuration."""
    path = run / ".hydra" / "config.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    targets = [number for number, line in enumerate(lines) if "_target_:" in line]
    kind = draw.choice(["target", "args", "new", "python", "apply", "env", "broken", "bomb", "null", "hydra"])
    number = draw.choice(targets)
    indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
    if kind == "target":
        lines[number] = f"{indent}_target_: os.system\n{indent}command: {json.dumps(command)}"
    elif kind == "args":
        lines[number] = f"{indent}_target_: subprocess.call\n{indent}_args_: [{json.dumps(['sh', '-c', command])}]"
    elif kind == "new":
        lines += [f"more:\n  _target_: os.system\n  _args_: [{json.dumps(command)}]"]
    elif kind == "python":
        lines[number] += f"\n{indent}more: !!python/object/apply:os.system [{json.dumps(command)}]"
    elif kind == "apply":
        lines += [f"more: !!python/object/new:os.system\n  args: [{json.dumps(command)}]"]
    elif kind == "env":
        lines += ["secret: ${oc.env:HOME}"]
        lines = [line.replace("class_noun: bird", "class_noun: ${oc.env:HOME}") for line in lines]
    elif kind == "broken":
        lines[number] = "\t{[: - &"
    elif kind == "bomb":
        names = "abcdefghi"
        lines += ["a: &a [x, x, x, x, x, x, x, x, x]"]
        lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise(names)]
    elif kind == "null":
        lines = ["null"]
    else:
        lines[number] = f"{indent}_target_: hydra.utils.instantiate\n{indent}config: {{_target_: os.system}}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"config.yaml, line {number + 1}: {kind}"


DAMAGES: tuple[Damage, ...] = (flip, cut, lose, swap, pickle, weights, dictionary, settings, settings, weights)
VERBS = ("generate", "evaluate", "export", "merge", "train")


def files(run: Path) -> list[Path]:
    """The files of a run that a command may read."""
    every = [*run.glob(".hydra/*.yaml"), *run.glob("checkpoints/*"), *run.glob("parts/*"), *run.glob("*.json*")]
    return sorted(path for path in every if path.is_file() and path.suffix != ".png")


def seal(path: Path) -> None:
    step = json.loads(manifest_path(path).read_text(encoding="utf-8"))["step"]
    manifest_path(path).write_text(json.dumps(manifest_of(path, step)), encoding="utf-8")


def cases(count: int, seed: int) -> Iterator[tuple[int, str, Damage, random.Random]]:
    for number in range(count):
        verb = VERBS[number % len(VERBS)]
        yield number, verb, DAMAGES[number // len(VERBS) % len(DAMAGES)], random.Random(f"{seed} {number}")


def main(count: int = 100, seed: int = 0) -> int:
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        for run, more in (
            ("run", ()),
            ("bird", (*CUSTOM, "parts.names=[bird]")),
            ("cat", (*CUSTOM, "parts.names=[cat]")),
        ):
            code, written = bench.run(bench.arguments(bench.root / run, *more))
            assert code == 0, written
        expected = {}
        # Every copy is called "run": an export has its files named after it.
        for verb in VERBS:
            run, out = bench.root / f"intact {verb}" / "run", bench.root / f"out {verb}"
            shutil.copytree(bench.intact(verb), run)
            code, written = bench.run(bench.command(verb, run, out))
            assert code == 0, written
            expected[verb] = result(verb, run, out)
        for number, verb, damage, draw in cases(count, seed):
            run, out = bench.root / f"case {number}" / "run", bench.root / f"out {number}"
            shutil.copytree(bench.intact(verb), run)
            did = damage(run, draw, f"touch '{bench.marker}'")
            code, written = bench.run(bench.command(verb, run, out))
            if bench.marker.exists():
                outcome = "ran foreign code"
                bench.marker.unlink()
            elif code == 0:
                same = result(verb, run, out) == expected[verb]
                outcome = "right" if same else "told" if TOLD in written else "misread"
            elif code == "hang":
                outcome = "hung"
            else:
                outcome = "refused" if code == 2 and "Traceback" not in written else "traceback"
            outcomes[outcome] += 1
            if outcome not in GOOD:
                print(f"case {number}, {verb}, {did}: {outcome}\n{written[-1500:]}", flush=True)
            shutil.rmtree(run)
            shutil.rmtree(out, ignore_errors=True)
    print(f"{count} runs, seed {seed}: " + ", ".join(f"{number} {name}" for name, number in sorted(outcomes.items())))
    return int(any(name not in GOOD for name in outcomes))


if __name__ == "__main__":
    from closed_pipe import until_the_reader_leaves

    with until_the_reader_leaves():
        sys.exit(main(*map(int, sys.argv[1:])))
