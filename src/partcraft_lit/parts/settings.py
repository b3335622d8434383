"""Settings of part discovery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.part_names import check_part_names
from partcraft_lit.core.settings import Count, Positive

#: Label maps are uint8, and the background takes one value; one more is left for "no label".
MAX_PARTS = 254
#: Raised where the same settings and images begin to give other parts: stored dictionaries and a table's runs of before
#: are not taken again.
DISCOVERY_REVISION = 4


@dataclass(frozen=True)
class PartsSettings:
    """Discovery of parts. Defaults are in ``conf/parts``.

    Attributes:
        M: foreground parts; the background is one more.
        K: codes per part.
        features: which of the configured feature networks describes patches.
        source: where parts come from: "discover" finds them, "masks" takes those that the data set has, "classes" takes
            each class of images as one concept that fills them.
        codes: "kmeans" finds K codes per part, "class" takes the images' class labels as codes of foreground parts.
        on_too_few: where K or M cannot be had from these images: "lower" it with a note, or "stop".
        max_patches: patches, over all images, that tiers 1 and 2 are fitted on, and images of each part that tier 3 is.
            Of more images than that, part features are kept in half precision.
        nredo, niter: restarts of each k-means, and iterations of each.
        names: of the M parts, from the top of the image down; "part1"... if empty.
        foreground_clusters: clusters of tier 1, merged into object and background; "auto" tries several and keeps the
            number that separates best.
        center: subtract the mean feature first.
        min_component_size: connected components of fewer cells take the label of their surroundings; 1 keeps all.
        min_cells: a part with fewer cells is absent from the image.
        corrections: "auto" for ``parts.yaml`` in the run's folder or the data set's, None for none, else that file or a
            folder with it, or a run whose parts are kept; see ``parts.corrections``.
        save_masks: write the mask of every image as PNG, in the form that ``dataset.masks`` reads.

    Raises:
        UserError: for values that no set of images could be divided by.
    """

    M: Annotated[int, Field(ge=1, le=MAX_PARTS)]
    K: Positive
    features: str
    source: Literal["discover", "masks", "classes"]
    codes: Literal["kmeans", "class"]
    on_too_few: Literal["lower", "stop"]
    max_patches: Annotated[int, Field(ge=100)]
    nredo: Positive
    niter: Positive
    names: tuple[str, ...]
    foreground_clusters: Annotated[int, Field(ge=2)] | Literal["auto"]
    center: bool
    min_component_size: Count
    min_cells: Positive
    save_masks: bool
    corrections: str | None

    def __post_init__(self) -> None:
        if self.max_patches < 100 * self.M:
            raise UserError(
                f"parts.max_patches={self.max_patches} is too few to find {self.M} parts; give at least "
                f"{100 * self.M}, better the default."
            )
        if self.names and len(self.names) != self.M:
            raise UserError(
                f"parts.names has {len(self.names)} names for parts.M={self.M}: give one each, or none, []."
            )
        check_part_names(self.names)
