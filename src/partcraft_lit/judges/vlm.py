"""A judge that asks a vision-language model about each part."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.settings import Positive, Share
from partcraft_lit.core.store import stable_hash
from partcraft_lit.core.visualization import to_pil
from partcraft_lit.judges.chat_models import ChatModel, answer_tokens, find_chat_model
from partcraft_lit.judges.judge import Comparison
from partcraft_lit.judges.regions import crop_part, fit_pixels, mark_part

#: Names that discovery gives to parts which nobody has named.
_WITHOUT_NAME = re.compile(r"^part_?\d+$")
View = Literal["crops", "whole"]
#: What is asked where nothing else is wanted.
QUESTIONS = {
    "crops": (
        "Each of the two images shows the {part} of a {noun}. Is it the same kind of {part}, with the same shape, "
        "colours and pattern? Answer yes or no."
    ),
    "whole": (
        "In the first image, a red box marks the {part} of a {noun}. Does the {noun} in the second image have the same "
        "kind of {part}, with the same shape, colours and pattern? Answer yes or no."
    ),
}


class VlmJudge:
    """P(yes) / (P(yes) + P(no)) of the first token of the answer to one question per part; nothing is sampled.

    Args:
        model: a vision-language model; its weights are loaded at the first question.
        question: with {part} and {noun}, to be answered by yes or no.
        view: "crops" shows both parts cut out; "whole" the source with a box around the part, and the whole generated
            image, so that nothing of ours says where the part is.
        margin: around a crop, as a share of the longer side of the part's box.
        fade: how far everything but the part of a crop goes to grey, 0...1.
        min_pixels: smaller images are enlarged.
        max_pixels: larger ones are reduced.
        batch_size: questions per forward pass.
    """

    def __init__(
        self,
        model: ChatModel,
        question: str,
        view: View = "crops",
        margin: float = 0.25,
        fade: float = 0.0,
        min_pixels: int = 50176,
        max_pixels: int = 200704,
        batch_size: int = 8,
    ) -> None:
        self._chat, self._question, self._view = model, question, view
        self._margin, self._fade = margin, fade
        self._pixels = (min_pixels, max_pixels)
        self._batch_size = batch_size
        tokenizer = model.processor.tokenizer
        self._yes, self._no = answer_tokens(tokenizer, "yes"), answer_tokens(tokenizer, "no")
        self.id = f"{view} by {model.name}"
        self.hash = stable_hash("vlm", model.hash, question, view, margin, fade, min_pixels, max_pixels)

    @torch.no_grad()
    def __call__(self, comparisons: Sequence[Comparison]) -> Tensor:
        scores = torch.full((len(comparisons),), torch.nan, dtype=torch.float64)
        shown = {row: images for row, asked in enumerate(comparisons) if (images := self._images(asked)) is not None}
        rows = list(shown)
        for start in range(0, len(rows), self._batch_size):
            some = rows[start : start + self._batch_size]
            scores[some] = self._answer([_conversation(shown[row], self._text(comparisons[row])) for row in some])
        return scores

    def _images(self, asked: Comparison) -> list[Image.Image] | None:
        """What is shown, the source first; None where a part that should be cut out is not in sight."""
        if self._view == "crops":
            images = [crop_part(view, asked.part, self._margin, self._fade) for view in (asked.source, asked.generated)]
        else:
            images = [mark_part(asked.source, asked.part), asked.generated.image]
        found = [to_pil(fit_pixels(image, *self._pixels)) for image in images if image is not None]
        return found if len(found) == len(images) else None

    @functools.cached_property
    def _model(self) -> Any:
        return self._chat.load()

    def _text(self, comparison: Comparison) -> str:
        part = _WITHOUT_NAME.sub("part", comparison.name).replace("_", " ").replace("-", " ")
        return self._question.replace("{part}", part).replace("{noun}", comparison.noun)

    def _answer(self, talks: Sequence[Any]) -> Tensor:
        """(B,) float64 from conversations of one question each."""
        inputs = self._chat.processor.apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self._model.device, self._model.dtype)
        output = self._model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        logits = output.logits[0].double().cpu()  # (B, vocabulary), before any rule of generation
        return (logits[:, self._yes].logsumexp(dim=1) - logits[:, self._no].logsumexp(dim=1)).sigmoid()


def _conversation(images: Sequence[Image.Image], question: str) -> list[dict[str, Any]]:
    """One turn of a user: the images, then the question."""
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def load_vlm(
    source: str,
    question: str | None = None,
    view: View = "crops",
    margin: Share = 0.25,
    fade: Share = 0.0,
    min_pixels: Positive = 50176,
    max_pixels: Positive = 200704,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    batch_size: Positive = 8,
    device: str | None = None,
) -> VlmJudge:
    """A judge whose model is known to be complete; its weights are loaded when it is first asked.

    Args:
        source: one of ``chat_models.MODELS``, a hub id, or a folder that holds model, tokenizer and image processor.
        question: None for that of the view.
        view, margin, fade, min_pixels, max_pixels, batch_size: as in :class:`VlmJudge`.
        dtype: of the weights; "auto" is as they are stored.
        device: where it runs; None for the CPU.

    Raises:
        UserError: if something is missing, or of no use for that.
    """
    asked = QUESTIONS[view] if question is None else question
    if "{part}" not in asked:
        raise UserError(f"judges.vlm.question={asked!r} does not name {{part}}, so all parts would have one answer.")
    if min_pixels > max_pixels:
        raise UserError(f"judges.vlm.min_pixels={min_pixels} is above max_pixels={max_pixels}.")
    model = find_chat_model(source, dtype, device or "cpu")
    return VlmJudge(model, asked, view, margin, fade, min_pixels, max_pixels, batch_size)
