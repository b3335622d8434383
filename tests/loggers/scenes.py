"""A run as its loggers see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from partcraft_lit.loggers.identity import RunIdentity
from partcraft_lit.loggers.run_logger import finished

IDENTITY = RunIdentity("birds loss.lambda_attn=0.1", "sweep 2026-11-26", "train", ("birds", "partcraft", "mini"))


def interrupted_and_resumed(make: Callable[[], Any], folder: Path) -> list[Any]:
    """Steps 0 to 4, an end without any of the end's scores, then steps 3 to 7 with them; returns the two loggers."""
    first = make()
    with finished([first]):
        first.log_hyperparams({"loss": {"lambda_attn": 0.1}, "trainer": {"max_steps": 5}})
        _train(first, range(5))
    second = make()
    with finished([second]):
        second.log_hyperparams({"loss": {"lambda_attn": 0.1}, "trainer": {"max_steps": 8}})
        _train(second, range(3, 8))
        path = folder / "reconstruction" / "00000.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(path)
        second.log_table("eval/images", columns=["image", "emr"], data=[[path, 0.5]])
        second.log_summary({"eval/emr@reconstruction": 0.5, "eval/fid@tf-299@reconstruction": float("nan")})
        second.log_files("adapter", {"step=000008.ckpt": path})
    return [first, second]


def _train(logger: Any, steps: Sequence[int]) -> None:
    for step in steps:
        logger.log_metrics({"train/loss": float(step)}, step)
        if step % 4 == 3:
            logger.log_image("samples/grid", [Image.new("RGB", (4, 4))], step=step, caption=[f"step {step + 1}"])
