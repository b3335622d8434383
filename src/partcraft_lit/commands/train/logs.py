"""What loggers get of a run beside its curves: configuration, parts, final scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from partcraft_lit.commands.train.context import RunContext
from partcraft_lit.core import environment, rundir
from partcraft_lit.core.environment import is_first_process
from partcraft_lit.evaluation.image_scores import Row
from partcraft_lit.loggers.run_logger import RunLogger

#: Images of a protocol in the table of scores.
_SHOWN = 100
#: Of the parts: file in the run folder, without its ending.
_PLATES = ("atlas", "masks")
#: Beginnings of scores of single parts, or without the background: they are in the table of parts.
_NOT_SHOWN = ("emr_", "cosim_", "part_accuracy_")
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
    }
    for logger in run.training.loggers:
        logger.log_hyperparams(content)
        log_image: Any = getattr(logger, "log_image", None)
        for name in _PLATES:
            if log_image is not None and (path := run.folder / "parts" / f"{name}.png").is_file():
                log_image(f"parts/{name}", images=[str(path)], step=0)


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


def log_final_scores(run: RunContext) -> None:
    """Final scores: a few as values of the whole run, those of parts and images as tables."""
    for logger in run.training.loggers:
        if not isinstance(logger, RunLogger):
            logger.log_metrics(run.metrics)
            continue
        logger.log_summary(headline(run.metrics))
        log_table: Any = getattr(logger, "log_table", None)
        if log_table is not None:
            log_table("eval/parts", columns=["protocol", "part", "emr", "cosim"], data=list(_part_rows(run)))
            log_table("eval/images", **_image_table(run, run.scores.rows))


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
        if name.startswith(_NOT_SHOWN) or kind not in ("eval", "truth", "pictures", *_BOUNDS):
            continue
        if kind in _BOUNDS:
            chosen[f"bounds/{name}@{kind}_{protocol}"] = value
        elif protocol.rpartition("@")[2].startswith(_BOUNDS):
            chosen[f"bounds/{rest}"] = value
        else:
            chosen[f"eval/{rest}"] = value
    return chosen


def _part_rows(run: RunContext) -> Iterator[list[Any]]:
    for protocol, scores in run.scores.protocols.items():
        for name in run.part_names:
            yield [protocol, name, *(metric[f"part/{name}"] for metric in (scores.emr, scores.cosim))]


def _image_table(run: RunContext, rows: Sequence[Row]) -> dict[str, Any]:
    """The first images of each protocol, each beside its scores."""
    taken: Counter[Any] = Counter()
    shown = []
    for row in rows:
        taken[row["protocol"]] += 1
        if taken[row["protocol"]] <= _SHOWN:
            shown.append(row)
    columns = list(dict.fromkeys(key for row in shown for key in row))
    folder = run.folder / "evaluation"
    data = [[folder / row[key] if key == "image" else row.get(key) for key in columns] for row in shown]
    return {"columns": columns, "data": data}
