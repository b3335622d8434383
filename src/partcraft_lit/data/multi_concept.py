"""DisenDiff's benchmark: photographs with two concepts each, one folder per pair, named by its nouns."""

from __future__ import annotations

from pathlib import Path

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.store import Store
from partcraft_lit.data.concept_prompts import ConceptSet, read_concepts
from partcraft_lit.data.image_files import ImageFiles
from partcraft_lit.data.published import check_listed, choose_classes, existing_folder

_IMAGE = "image.jpg"


class MultiConcept(ImageFiles):
    """One training image per pair; prompts and reference images come with it.

    Args:
        dir: the folder that holds the pairs, or the folder of one pair ("cat_dog").
        pairs: which pairs; all if empty.
        store: see `ImageFiles`.

    Attributes:
        class_names: the pairs; the label of an image is its pair.
        class_noun: "cat and dog" for a single pair, "" for several.

    Raises:
        UserError: if there is no such pair, or one lacks its image, prompts or reference images.
    """

    def __init__(self, dir: str | Path, pairs: tuple[str, ...] = (), store: Store | str | Path | None = None) -> None:
        root = existing_folder(dir)
        names = [root.name] if (root / _IMAGE).is_file() else sorted(p.parent.name for p in root.glob(f"*/{_IMAGE}"))
        root = root.parent if (root / _IMAGE).is_file() else root
        if not names:
            raise UserError(f"dataset.dir: {root} has no folder of a pair, such as cat_dog/ with {_IMAGE} in it.")
        chosen = [names[index] for index in choose_classes(pairs, names)]
        self._concepts = {name: read_concepts(root / name) for name in chosen}
        paths = [f"{name}/{_IMAGE}" for name in chosen]
        check_listed(root, paths, "the data set")
        super().__init__(
            root,
            paths,
            labels=list(range(len(chosen))),
            class_names=chosen,
            class_noun=" and ".join(self._concepts[chosen[0]].nouns) if len(chosen) == 1 else "",
            store=store,
        )

    def nouns(self, index: int) -> tuple[str, ...]:
        """What the concepts of an image are: ("cat", "dog")."""
        return self.concepts(index).nouns

    def concepts(self, index: int) -> ConceptSet:
        """Prompts and reference images of an image: for both concepts together, and for each."""
        return self._concepts[Path(self._paths[index]).parent.name]
