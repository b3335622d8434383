"""The same requests as every row of a table drew them: ``table_pictures.py FOLDER --protocols "4 species" [...]``.

FOLDER is what ``partcraft table`` wrote; the runs are looked for in ``--runs``. Above the rows stand the true drawings,
where the data set can draw them, and the prompts. Images are chosen by number, not by eye: the first ones of one seed.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import partcraft_lit as pc
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import read_image
from partcraft_lit.core.visualization import fit_square, grid, label, save_png, stack, wrapped
from partcraft_lit.data.concept_prompts import COMBINED
from partcraft_lit.evaluation.concepts import DrawsConcepts
from partcraft_lit.evaluation.scorer import labels_of
from partcraft_lit.evaluation.transfer import TRANSFERS, HasTransfers
from partcraft_lit.evaluation.truth import true_hybrids
from partcraft_lit.metrics.composition import composition_targets
from partcraft_lit.runs.stored import discovery_metadata

SIDE, PAD, SIZE = 144, 6, 13

Line = dict[str, str]


def lines_of(folder: Path, protocols: Sequence[str], seed: int, count: int) -> dict[str, list[Line]]:
    """Row -> its first images of each protocol."""
    rows: dict[str, list[Line]] = {}
    with (folder / "results.csv").open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            if line["protocol"] in protocols and int(line["seed"]) == seed and int(line["index"]) < count:
                rows.setdefault(line["row"], []).append(line)
    return {row: sorted(found, key=lambda line: protocols.index(line["protocol"])) for row, found in rows.items()}


def true_images(folder: Path, protocol: str, count: int) -> Tensor | None:
    """(count, 3, H, W) drawings of what a run was asked for; None where nobody can draw them."""
    run = pc.open_run(folder)
    assert isinstance(run, pc.Run)
    source, metadata, chosen = run.stored.source, discovery_metadata(folder), run.settings.eval
    if protocol in TRANSFERS and isinstance(source, HasTransfers):
        match = metadata["quality"]["match"]
        names = [name for name in source.part_names if match.get(name) is not None]
        requests = [source.transfers.request(number, TRANSFERS[protocol], names) for number in range(count)]
        truths = [source.transfers.truths(number, request.guests, [0])[0] for number, request in enumerate(requests)]
        return torch.stack(truths)
    if isinstance(source, DrawsConcepts):
        creature = None if protocol == COMBINED else int(protocol.removeprefix("concept")) - 1
        return torch.stack([source.another(number, creature) for number in range(count)])
    if not protocol.endswith("species"):
        return None
    targets = composition_targets(
        torch.from_numpy(run.stored.codes).long(),
        int(protocol.split()[0]),
        chosen.compositions,
        chosen.seed,
        labels=labels_of(source),
        retired=run.dictionary.retired,
    )
    found = true_hybrids(source, targets, metadata)
    return None if found is None else found[:count]


def strip(images: Sequence[Tensor], title: str, captions: Sequence[str] = ()) -> Tensor:
    """Images side by side under a title."""
    cells = [fit_square(image, SIDE) for image in images]
    if captions:
        texts = wrapped(captions, SIDE, SIZE - 2)
        cells = [label(cell, text, "above", size=SIZE - 2) for cell, text in zip(cells, texts, strict=True)]
    return label(grid(cells, columns=len(cells), pad=PAD), title, "above", size=SIZE)


def draw(folder: Path, protocols: Sequence[str], seed: int, count: int, chosen: Sequence[str], runs: Path) -> Tensor:
    """A strip of images for each row, the true drawings above them.

    Raises:
        UserError: if the table has no such images or rows, or a run is gone.
        OSError: if a file is missing.
    """
    rows = lines_of(folder, protocols, seed, count)
    if not rows:
        raise UserError(f"{folder}/results.csv has no image of {', '.join(protocols)} with seed {seed}")
    if unknown := [row for row in chosen if row not in rows]:
        raise UserError(f"no such rows: {', '.join(unknown)}; known: {', '.join(rows)}")
    if missing := [line["run"] for lines in rows.values() for line in lines if not (runs / line["run"]).is_dir()]:
        raise UserError(f"no run {missing[0]} in {runs}: train the table there, or name the folder by --runs")
    first = next(iter(rows.values()))
    counts = Counter(line["protocol"] for line in first)
    truths = [true_images(runs / first[0]["run"], protocol, number) for protocol, number in counts.items()]
    strips = []
    if (drawn := [found for found in truths if found is not None]) and len(drawn) == len(truths):
        strips.append(
            strip(list(torch.cat(drawn)), "true drawing, in another pose", [line["prompt"] for line in first])
        )
    for row in chosen or rows:
        images = [read_image(runs / line["run"] / "evaluation" / line["image"]) for line in rows[row]]
        strips.append(strip(images, row.replace("λ", "lambda")))  # the font of the labels has no Greek
    return stack(strips, pad=10, border=10)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--protocols", nargs="+", required=True, help="side by side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=6, help="of each protocol")
    parser.add_argument("--rows", nargs="*", default=[], help="some rows alone, in this order")
    parser.add_argument("--runs", type=Path, default=Path("logs/table/runs"))
    parser.add_argument("--out", type=Path, help="FOLDER/pictures.png by default")
    args = parser.parse_args(arguments)
    try:
        image = draw(args.folder, args.protocols, args.seed, args.images, args.rows, args.runs)
    except (OSError, UserError) as error:
        parser.error(str(error))
    print(save_png(args.out or args.folder / "pictures.png", image))


if __name__ == "__main__":
    main()
