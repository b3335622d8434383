"""Modules of this folder that configurations name, such as ``toy_loss``, can be imported."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode adds no folder to the path by itself
