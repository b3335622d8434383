"""Stanford Dogs in its published layout: 120 breeds with bounding boxes."""

from __future__ import annotations

import functools
from pathlib import Path
from xml.etree import ElementTree

import torch
from scipy.io import loadmat

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import Annotation
from partcraft_lit.data.image_files import ImageFiles
from partcraft_lit.data.published import Split, check_held_out, check_listed, check_split, choose_classes, find_root

_LISTS = {"train": "train_list.mat", "test": "test_list.mat", "all": "file_list.mat"}


class Dogs(ImageFiles):
    """An image source with classes and boxes.

    Labels are 0...119: the published lists count breeds from 1.

    Args:
        dir: the folder with ``Images``, ``Annotation`` and the lists (there or in ``lists``).
        split: which images: "train" (12,000), "test" (8,580) or "all".
        classes: names of the breeds to use ("Chihuahua"); all if empty. Labels count these.
        class_noun: what the images show.
        store: see `ImageFiles`.

    Raises:
        UserError: if the folder is not the data set, is incomplete or inconsistent.
    """

    def __init__(
        self,
        dir: str | Path,
        split: Split = "train",
        classes: tuple[str, ...] = (),
        class_noun: str = "dog",
        store: Store | str | Path | None = None,
    ) -> None:
        check_split(split)
        self._split = split
        self._test = functools.partial(Dogs, dir, "test", classes, class_noun, store)
        root = find_root(dir, ("stanford_dogs",), ("Images", "Annotation"), "dogs")
        breeds = _breeds(root, *_read_list(root, "all"))
        files, labels = _read_list(root, split)
        chosen = choose_classes(classes, [_name_of(folder) for folder in breeds])
        kept = [place for place, label in enumerate(labels) if label in chosen]
        if not kept:
            raise UserError(f"dataset.split={split} has no images of {', '.join(classes) or 'any breed'} in {root}.")
        self._check_labels(files, labels, breeds, _LISTS[split])
        paths = [f"Images/{files[place]}" for place in kept]
        check_listed(root, paths, _LISTS[split])
        super().__init__(
            root,
            paths,
            labels=[chosen.index(labels[place]) for place in kept],
            class_names=[_name_of(breeds[index]) for index in chosen],
            class_noun=class_noun,
            store=store,
        )
        self.keypoint_names: list[str] = []

    def held_out(self, count: int) -> Dogs:
        """The images of the test split, of the same classes.

        Raises:
            UserError: if the data set is not the training split.
        """
        check_held_out(self._split, count)
        return self._test()

    def annotation(self, index: int) -> Annotation:
        """Bounding boxes of the dogs in an image, in pixels.

        Raises:
            UserError: if the annotation is missing or cannot be read.
        """
        path = self.dir / "Annotation" / Path(self._paths[index]).relative_to("Images").with_suffix("")
        try:
            objects = ElementTree.parse(path).getroot().iter("bndbox")
            boxes = [[float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")] for box in objects]
        except (OSError, ElementTree.ParseError, ValueError) as error:
            raise UserError(f"The annotation {path} cannot be read: {error}. Unpack annotation.tar again.") from error
        return Annotation(
            size=self.size(index),
            boxes=torch.tensor(boxes).view(-1, 4),
            keypoints=torch.zeros(0, 2),
            visible=torch.zeros(0, dtype=torch.bool),
        )

    @staticmethod
    def _check_labels(files: list[str], labels: list[int], breeds: list[str], listed_in: str) -> None:
        """Raises a UserError if a label does not name the folder of its image: labels that are shifted by one."""
        for file, label in zip(files, labels, strict=True):
            folder = file.partition("/")[0]
            if not 0 <= label < len(breeds) or breeds[label] != folder:
                said = breeds[label] if 0 <= label < len(breeds) else "not a breed"
                raise UserError(f"{listed_in} gives {file} the label {label + 1}, which is {said}: labels are shifted.")


def _read_list(root: Path, split: Split) -> tuple[list[str], list[int]]:
    """Paths below ``Images`` and labels, counted from 0."""
    name = _LISTS[split]
    path = next((place / name for place in (root, root / "lists") if (place / name).is_file()), None)
    if path is None:
        raise UserError(
            f"dataset=dogs: neither {root} nor its folder lists holds {name}. Unpack lists.tar there; 'partcraft fetch "
            "dataset=dogs' gets everything."
        )
    files, labels = _load_lists(path)
    if len(files) != len(labels):
        raise UserError(f"{path} has {len(files)} files and {len(labels)} labels. Unpack lists.tar again.")
    return files, [label - 1 for label in labels]


def _load_lists(path: Path) -> tuple[list[str], list[int]]:
    """The variables ``file_list`` and ``labels`` of a .mat file.

    Raises:
        UserError: if the file is damaged, of another version, or lacks one of them.
    """
    names = ("file_list", "labels")
    try:
        variables = loadmat(path, variable_names=names)
        if all(name in variables for name in names):
            # A cell of text is an array of one string.
            files = [str(cell.item()) for cell in variables["file_list"].flat]
            return files, variables["labels"].astype(int).ravel().tolist()
    except NotImplementedError as error:
        raise UserError(f"{path} is a MATLAB 7.3 file, which is not read; save it with -v7.") from error
    except Exception as error:  # damaged bytes make scipy's reader raise nearly anything
        raise UserError(f"{path} is damaged or no MATLAB file ({error}). Unpack lists.tar again.") from error
    raise UserError(f"{path} lacks one of the variables {', '.join(names)}. Unpack lists.tar again.")


def _breeds(root: Path, files: list[str], labels: list[int]) -> list[str]:
    """The folder of each label.

    Raises:
        UserError: if labels do not run from 1 without a gap.
    """
    found = {label: file.partition("/")[0] for file, label in zip(files, labels, strict=True)}
    if sorted(found) != list(range(len(found))):
        wrong = min(set(found) ^ set(range(len(found)))) + 1
        raise UserError(f"{root}: the labels of file_list.mat do not run from 1 to {len(found)} (see {wrong}).")
    return [found[label] for label in range(len(found))]


def _name_of(folder: str) -> str:
    """ "n02085620-Japanese_spaniel" -> "Japanese spaniel"."""
    return folder.partition("-")[2].replace("_", " ") or folder
