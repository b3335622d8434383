"""What loggers get of a run beside its curves: configuration, parts, images of the end, final scores, files.

Everything is in the run folder too, so that it can be replayed from there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from partcraft_lit.commands.train.branches import parent_of
from partcraft_lit.commands.train.context import RunContext
from partcraft_lit.core import environment, rundir
from partcraft_lit.core.environment import is_first_process
from partcraft_lit.core.files import atomic_write
from partcraft_lit.evaluation.image_scores import Row
from partcraft_lit.loggers.run_logger import RunLogger

#: In the run folder: the configuration as loggers get it.
CONFIG_FILE = "logger_config.json"
#: Images in the run folder, and what loggers call them: of the parts, before training, and of the trained model.
PARTS_IMAGES = {"parts/atlas.png": "parts/atlas", "parts/masks.png": "parts/masks"}
FINAL_IMAGES = {"hybrids.png": "hybrids/sources", "token_space.png": "tokens/map"}
#: What a run gives away, if asked to: kind -> patterns in the run folder, of which the last match by name is taken.
FILES = {
    "adapter": ("checkpoints/step=*.ckpt", "checkpoints/best/step=*.ckpt"),
    "dictionary": ("parts/dictionary.*", "parts/discovery.json"),
}
#: Images of a protocol in the table of scores.
_SHOWN = 100
#: Beginnings of scores of single parts, or without the background: they are in the table of parts.
_NOT_SHOWN = ("emr_", "cosim_", "part_accuracy_")
#: Of judges, what is not a single part's.
_SHOWN_OF_JUDGES = ("calibrated/all", "agreement/all")
#: Names of protocols that begin so are no result: what bounds it, or what the data set itself gives.
_BOUNDS = ("untrained", "perfect", "ceiling")


def describe(run: RunContext) -> None:
    """The configuration, nested, with what came of it; and the parts. The first process of a run speaks."""
    if not is_first_process():
        return
    content = {
        **run.config,
        "effective": effective(run),
        "settings_hash": rundir.settings_hash(run.config),
        "packages": environment.packages(),
        **({} if (parent := parent_of(run.folder)) is None else {"parent": parent}),
    }
    atomic_write(run.folder / CONFIG_FILE, json.dumps(content, indent=1, default=str, ensure_ascii=False) + "\n")
    for logger in run.training.loggers:
        logger.log_hyperparams(content)
        log_images(logger, run.folder, PARTS_IMAGES, step=0)


def effective(run: RunContext) -> dict[str, Any]:
    """What the settings came to with these images."""
    dictionary = run.discovery.dictionary
    codes = dict(zip(dictionary.names, map(int, dictionary.codes_per_part), strict=True))
    parameters = {name: sum(p.numel() for p in group) for name, group in run.module.trainable_groups().items()}
    return {
        "M": dictionary.num_parts,
        "K": max(codes.values()),
        "codes_per_part": codes,
        "trainable_parameters": sum(parameters.values()),
        "trainable_parameters_of": parameters,
        "images": len(run.source),
    }


def log_images(logger: Any, folder: Path, images: Mapping[str, str], step: int | None = None) -> None:
    """Those images of a run folder that are there, to a logger that takes images."""
    if hasattr(logger, "log_image"):
        for name, key in images.items():
            if (folder / name).is_file():
                logger.log_image(key, images=[str(folder / name)], step=step)


def log_results(
    logger: Any, folder: Path, metrics: Mapping[str, float], rows: Sequence[Row], *, tables: bool = True
) -> None:
    """Final scores: a few as values of the whole run, those of parts and images as tables; and files if asked for.

    Args:
        logger: one that is no :class:`RunLogger` gets all scores as metrics.
        folder: of the run.
        metrics: as in ``scores.json``.
        rows: of ``scores.csv``.
        tables: whether they are wanted.
    """
    if not isinstance(logger, RunLogger):
        if metrics:
            logger.log_metrics(dict(metrics))
        return
    if metrics:
        logger.log_summary(headline(metrics))
    if metrics and tables:
        logger.log_table("eval/parts", columns=["protocol", "part", "emr", "cosim"], data=list(part_rows(metrics)))
        logger.log_table("eval/images", **_image_table(folder, rows))
    for kind, patterns in FILES.items():
        found = [max(paths) for pattern in patterns if (paths := sorted(folder.glob(pattern)))]
        if found:
            logger.log_files(kind, {path.name: path for path in found})


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """By what runs are compared: ``eval/emr@reconstruction``, ...; ``bounds/...`` is between what that lies.

    Scores of single parts, and those without the background, are left out.

    Args:
        metrics: as in ``scores.json``.
    """
    chosen = {}
    for key, value in metrics.items():
        kind, _, rest = key.partition("/")
        name, _, protocol = rest.partition("@")
        if kind == "judge" and name.endswith(_SHOWN_OF_JUDGES):
            chosen[f"eval/{key}"] = value
        if name.startswith(_NOT_SHOWN) or kind not in ("eval", "truth", "pictures", *_BOUNDS):
            continue
        if kind in _BOUNDS:
            chosen[f"bounds/{name}@{kind}_{protocol}"] = value
        elif protocol.rpartition("@")[2].startswith(_BOUNDS):
            chosen[f"bounds/{rest}"] = value
        else:
            chosen[f"eval/{rest}"] = value
    return chosen


def part_rows(metrics: Mapping[str, float]) -> Iterator[list[Any]]:
    """Protocol, part, EMR and CoSim of the trained model.

    Args:
        metrics: as in ``scores.json``.
    """
    beginning = "eval/emr_part/"
    for key, value in metrics.items():
        if key.startswith(beginning):
            part, _, protocol = key.removeprefix(beginning).partition("@")
            yield [protocol.replace("_", " "), part, value, metrics.get(f"eval/cosim_part/{part}@{protocol}")]


def _image_table(folder: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """The first images of each protocol, each beside its scores."""
    taken: Counter[Any] = Counter()
    shown = []
    for row in rows:
        taken[row["protocol"]] += 1
        if taken[row["protocol"]] <= _SHOWN:
            shown.append(row)
    columns = list(dict.fromkeys(key for row in shown for key in row))
    place = folder / "evaluation"
    data = [[place / row[key] if key == "image" else row.get(key) for key in columns] for row in shown]
    return {"columns": columns, "data": data}
