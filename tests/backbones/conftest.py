"""The real SD1.5 configuration, without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def sd15_settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings that a single SD1.x file is read with."""
    from partcraft_lit.backbones.model_configs import SD1, write_configs

    folder = tmp_path_factory.mktemp("sd15_settings")
    write_configs(SD1, folder)
    return folder


@pytest.fixture(scope="session")
def sd15_unet(sd15_settings: Path):
    """SD1.5's UNet on the meta device; copy it before changing it."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(json.loads((sd15_settings / "unet" / "config.json").read_text()))


@pytest.fixture(scope="session")
def sdxl_unet():
    """SDXL's UNet on the meta device; copy it before changing it."""
    from diffusers import UNet2DConditionModel

    from partcraft_lit.backbones.model_configs import SDXL_BASE

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(SDXL_BASE["unet"])
