"""What the configuration says of discovery."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field

from partcraft_lit.core.settings import Count, Positive


@dataclass(frozen=True)
class PartsSettings:
    """Discovery of parts.

    Attributes:
        M: foreground parts; the background is one more.
        K: codes per part.
        features: which of the configured feature networks describes patches.
        source: where parts come from: "discover" finds them, "masks" takes those that the data set has, "classes" takes
            each class of images as one concept that fills them.
        codes: "kmeans" finds K codes per part, "class" takes the images' class labels as codes of foreground parts.
        on_too_few: what to do with fewer images than K: "lower" K, or "stop".
        max_patches: patches on which foreground and parts are fitted, drawn from all images.
        nredo, niter: restarts of each k-means, and steps of each.
        names: of the M parts, from the top of the image down; numbered if empty.
        foreground_clusters: clusters of the first tier, merged into object and background; "auto" tries several.
        center: subtract the mean feature first.
        smallest_speck: connected cells of one part that are fewer are given to their neighbours.
        min_cells: a part with fewer cells is absent from the image.
    """

    M: Positive
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
    smallest_speck: Count
    min_cells: Positive

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``parts.discovery.discover``, all but the seed."""
        others = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("M", "K", "features", "source")}
        return {"num_parts": self.M, "num_codes": self.K, **others}
