"""What the configuration says of the scores."""

from __future__ import annotations

from dataclasses import dataclass

from partcraft_lit.core.settings import Count, Positive, Seed


@dataclass(frozen=True)
class EvalSettings:
    """Scores at the end of a run.

    Attributes:
        enabled: whether a training run ends with them.
        reconstructions: source images that are drawn again from their own codes, at most.
        held_out: images that were not trained on and are drawn again from the codes that are read off them; 0 for none.
        compositions: hybrids drawn for each number of species.
        species: numbers of source images that a hybrid is composed of.
        concepts: images per concept prompt, where a data set has concepts; 0 for none.
        transfers: images per protocol of parts beyond their category, of drawn data sets; 0 for none. See
            ``evaluation.transfer``.
        untrained: images per protocol that the untrained model draws, as the lower bound; 0 for none.
        ceiling_images: real images on which the ceiling is measured, at most.
        pictures: networks by which whole images are scored: rows of the group ``metrics``.
        judge: judges of parts: rows of the group ``judges``.
        judge_pairs: pairs of real images by which a judge is calibrated, for each part and kind of pair.
        neighbours: real images among which copies are looked for, at most; 0 for none.
        hybrids: columns of the report's composition grid.
        seed: seed of everything drawn for the scores.
    """

    enabled: bool
    reconstructions: Count
    held_out: Count
    compositions: Count
    species: tuple[Positive, ...]
    concepts: Count
    transfers: Count
    untrained: Count
    ceiling_images: Count
    pictures: tuple[str, ...]
    judge: tuple[str, ...]
    judge_pairs: Positive
    neighbours: Count
    hybrids: Positive
    seed: Seed
