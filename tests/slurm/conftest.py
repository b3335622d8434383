"""A real SLURM of one node for the session."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode adds no folder to the path by itself

from jobs import HERE, ROOT, SMALL, TRAINING, Slurm


def _node_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slurm_node", ROOT / "tools" / "slurm_node.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["slurm_node"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory, tiny_sd_folder: Path) -> Iterator[Slurm]:
    if not (ROOT / "tools").is_dir():
        pytest.skip("not a checkout")
    tool = _node_tool()
    if lacks := tool.missing():
        pytest.skip(lacks)
    folder = Path(tempfile.mkdtemp(prefix="partcraft-slurm-"))  # short: the path of a socket has an end
    folder.chmod(0o755)
    root = tmp_path_factory.mktemp("slurm")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    environment = {
        **inherited,
        "SLURM_CONF": str(tool.start(folder)),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'src'}:{HERE}",
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
    }
    data = (*SMALL, f"paths.store={root / 'store'}", f"backbone.source={tiny_sd_folder}")
    term = "+loss_terms.pause={_target_:slow_term.pause,weight:1}"
    try:
        yield Slurm(environment, root, data, (*TRAINING, term))
    finally:
        tool.stop(folder)
        shutil.rmtree(folder)
