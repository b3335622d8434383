"""Which CUDA devices there are, and how they are dealt out to processes that run at the same time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from partcraft_lit.core.errors import UserError

#: One of these is there where a driver is (NVIDIA, AMD, Windows' subsystem for Linux), so that torch need not be asked.
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def visible_gpus() -> tuple[str, ...]:
    """The devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name.strip() for name in given.split(",") if name.strip() not in ("", "-1"))
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return ()
    import torch  # late: not needed where there is no driver

    return tuple(str(number) for number in range(torch.cuda.device_count()))


def deal(gpus: Sequence[int] | None, each: int = 1) -> list[str]:
    """Values of ``CUDA_VISIBLE_DEVICES`` for processes that run at the same time.

    Args:
        gpus: devices to use, numbered as torch numbers them here; None for all.
        each: devices of one process; 0 leaves all of them to each process.

    Returns:
        One value per process; empty leaves the variable as it is: there is no GPU to deal out, or only one.

    Raises:
        UserError: for a device that is not there, or fewer devices than one process needs.
    """
    visible = visible_gpus()
    for number in gpus or ():
        if not 0 <= number < len(visible):
            raise UserError(
                f"gpus={list(gpus or ())}: there is no device {number}; torch sees {len(visible)} here, numbered "
                "from 0."
            )
    chosen = [visible[number] for number in gpus] if gpus else list(visible)
    if not each or (not gpus and len(chosen) < 2):
        return []
    if each > len(chosen):
        raise UserError(f"Each job takes {each} GPUs (trainer.devices), and there are {len(chosen)} for the sweep.")
    return [",".join(chosen[start : start + each]) for start in range(0, len(chosen) - each + 1, each)]
