"""What waits in the queue: previews, images in full quality, attention."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from partcraft_lit.commands.app.browse import choices_of, data_uri
from partcraft_lit.commands.app.shelf import DrawnImages, RecentCache, Runs
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.settings import Seed

if TYPE_CHECKING:
    from partcraft_lit.composer.composition import Composition
    from partcraft_lit.composer.results import PartReading, Result
    from partcraft_lit.composer.run import Run

logger = logging.getLogger(__name__)

_MAX_PARTS = 40
#: Results whose attention can still be asked for: each holds its image.
_ATTENTIVE = 64
_MAP_SIDE = 320
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
Text = Annotated[str, Field(max_length=300)]


class Choice(BaseModel):
    """One part, by number."""

    model_config = ConfigDict(extra="forbid")
    part: Annotated[int, Field(ge=0, le=1000)]
    code: Annotated[int, Field(ge=0, le=1_000_000)]
    weight: Annotated[float, Field(ge=0, le=4)] = 1.0


class CompositionRequest(BaseModel):
    """A composition as the page has it; words that are None are the model's own."""

    model_config = ConfigDict(extra="forbid")
    choices: Annotated[list[Choice], Field(min_length=1, max_length=_MAX_PARTS)]
    before: Text | None = None
    after: Text | None = None
    negative: Annotated[list[Choice], Field(max_length=_MAX_PARTS)] = []

    def compose(self, run: Run) -> Composition:
        """Raises a UserError for parts that the run does not have, or part tokens in the words."""
        return compose(run, self.model_dump())


class PreviewRequest(BaseModel):
    """A preview."""

    run: Text
    composition: CompositionRequest
    seed: Seed = 0


class DrawRequest(BaseModel):
    """Images in full quality; None takes the settings of the model."""

    run: Text
    composition: CompositionRequest
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=64)]
    steps: Annotated[int, Field(ge=1, le=200)] | None = None
    guidance: Annotated[float, Field(ge=0, le=50)] | None = None


class AttentionRequest(BaseModel):
    """Where the parts of a drawn image were drawn."""

    id: Text


def compose(run: Run, values: Mapping[str, Any]) -> Composition:
    words = {name: values[name].strip() for name in ("before", "after") if values[name] is not None}
    return run.compose(choices_of(run, values["choices"]), negative=choices_of(run, values["negative"]), **words)


class Drawings:
    """Draws for all visitors; gradio's queue lets one at a time in.

    Args:
        runs: that may be drawn with.
        folder: where drawn images go.
        kept: images that stay.
        max_images: of one request.
    """

    def __init__(self, runs: Runs, folder: Path, kept: int, max_images: int) -> None:
        self.runs = runs
        self.images = DrawnImages(folder / "images", kept)
        self.max_images = max_images
        self._results: RecentCache[tuple[Run, Result]] = RecentCache(_ATTENTIVE)

    def preview(self, data: dict[str, Any]) -> dict[str, Any]:
        request = PreviewRequest.model_validate(data)
        run = self.runs.get(request.run)
        (result,) = run.draw(request.composition.compose(run), seeds=[request.seed], preview=True)
        return {"image": data_uri(result.image)}

    def draw(self, data: dict[str, Any]) -> dict[str, Any]:
        request = DrawRequest.model_validate(data)
        if len(request.seeds) > self.max_images:
            raise UserError(f"At most {self.max_images} images are drawn at once.")
        run = self.runs.get(request.run)
        composition = request.composition.compose(run)
        results = run.draw(composition, seeds=request.seeds, steps=request.steps, guidance_scale=request.guidance)
        return {"prompt": composition.prompt, "results": [self._keep(run, result) for result in results]}

    def attention(self, data: dict[str, Any]) -> dict[str, Any]:
        import torch

        from partcraft_lit.core.visualization import heat_overlay, to_pil, upscale

        request = AttentionRequest.model_validate(data)
        found = self._results.get(request.id)
        if found is None:
            raise UserError("This image is too old to look into; draw it again.")
        run, result = found
        numbers = {part.name: part.index for part in run.parts}
        base = upscale(result.tensor, _MAP_SIDE)
        maps = {name: to_pil(heat_overlay(base, torch.from_numpy(heat))) for name, heat in result.attention().items()}
        return {"maps": [{"part": numbers[name], "image": data_uri(image)} for name, image in maps.items()]}

    def _keep(self, run: Run, result: Result) -> dict[str, Any]:
        name = self.images.add(result.save)
        self._results.put((run, result), name)
        numbers = {part.name: part.index for part in run.parts}
        return {
            "id": name,
            "url": f"/api/images/{name}.png",
            "seed": result.seed,
            "reads": [
                {
                    "part": numbers[reading.part],
                    "asked": list(reading.asked),
                    "found": reading.found,
                    "matches": reading.matches,
                    "cosine": reading.cosine,
                }
                for reading in _readings(result)
            ],
        }


def _readings(result: Result) -> tuple[PartReading, ...]:
    """What can be read in the image; nothing where there is no part predictor, as with an export."""
    try:
        return result.read()
    except UserError:
        return ()


def sentence_of(error: BaseException) -> str:
    """One sentence for the page; the log has the rest."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ValidationError | KeyError | TypeError | ValueError):
        logger.info("A request that does not fit: %s", str(error)[:400])
        return "The app did not understand that request."
    if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
        return "There is not enough memory for that: draw fewer images at once."
    if isinstance(error, OSError) and error.errno == 28:
        return "The disk is full: make room, and try again."
    logger.exception("Unexpected", exc_info=error)
    return "That did not work; the app's log says why."


def for_queue(work: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """As gradio calls it: errors become sentences."""

    @wraps(work)
    def answer(data: dict[str, Any]) -> dict[str, Any]:
        from gradio import Error

        try:
            return work(data)
        except Exception as error:
            raise Error(sentence_of(error), print_exception=False) from None

    return answer
