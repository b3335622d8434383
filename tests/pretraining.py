"""Settings of short pretraining."""

from __future__ import annotations

from typing import Any

from partcraft_lit.world.pretrain.loop import LoopSettings


def loop_settings(**settings: Any) -> LoopSettings:
    """Settings of a loop on the CPU, in float32, with these."""
    usual = {"warmup": 200, "ema_decay": 0.999, "save_every_s": 120.0, "precision": "fp32", "device": "cpu"}
    return LoopSettings(**(usual | settings))
