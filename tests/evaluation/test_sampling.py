"""Images that are drawn once."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from partcraft_lit.backbones.settings import SampleSettings
from partcraft_lit.core.images import read_image
from partcraft_lit.core.store import Store
from partcraft_lit.evaluation.sampling import draw_missing, recipe_of


@dataclass
class Frozen:
    hash: str = "frozen"


class Painter:
    """Draws a flat image of its seed, and counts."""

    method = None

    def __init__(self, weight: float = 1.0, steps: int = 3, batch_size: int = 2) -> None:
        self.backbone = Frozen()
        self.weight = torch.tensor(weight)
        self.sampling = SampleSettings(steps, 2.0, "ddim", "", batch_size)
        self.drawn: list[int] = []

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight}

    def generate(self, prompts, seeds):
        self.drawn += seeds
        return torch.stack([torch.full((3, 8, 8), seed, dtype=torch.uint8) for seed in seeds])


def draw(painter: Painter, folder: Path, seeds=(10, 11, 12, 13, 14), prompts=None) -> list[Path]:
    return draw_missing(painter, prompts or ["a bird"] * len(seeds), seeds, folder, "reconstruction")


def test_nothing_is_drawn_twice(tmp_path):
    first, again = Painter(), Painter(batch_size=3)
    paths = draw(first, tmp_path)
    assert first.drawn == [10, 11, 12, 13, 14] and draw(again, tmp_path) == paths and again.drawn == []
    assert [int(read_image(path).max()) for path in paths] == [10, 11, 12, 13, 14]


def test_processes_that_have_not_connected_yet_share_over_the_store(tmp_path, monkeypatch):
    """As under torchrun, before training: the untrained model's images."""
    given, store = (["a bird"] * 8, list(range(10, 18))), Store(tmp_path / "store")
    first, second = Painter(), Painter()

    def dies(ready: int, _: int) -> None:
        if ready == 4:
            raise KeyboardInterrupt

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(KeyboardInterrupt):
        draw_missing(second, *given, tmp_path / "one", "untrained", progress=dies, store=store)
    assert second.drawn == [14, 15, 16, 17], "its share comes first"
    monkeypatch.setenv("LOCAL_RANK", "0")
    paths = draw_missing(first, *given, tmp_path / "other", "untrained", store=store)
    assert first.drawn == [10, 11, 12, 13]
    assert [int(read_image(path).max()) for path in paths] == given[1]


@pytest.mark.parametrize(
    ("painter", "seeds", "prompts", "drawn"),
    [
        (Painter(weight=2.0), (10, 11), None, [10, 11]),
        (Painter(steps=4), (10, 11), None, [10, 11]),
        (Painter(), (10, 21), None, [21]),
        (Painter(), (10, 11), ["a cat", "a bird"], [10]),
        (Painter(), (10, 11, 12, 13, 14, 15), None, [15]),
    ],
)
def test_another_recipe_is_drawn_again(tmp_path, painter, seeds, prompts, drawn):
    draw(Painter(), tmp_path)
    draw(painter, tmp_path, seeds, prompts)
    assert painter.drawn == drawn


def test_what_the_store_has_is_not_drawn_for_another_folder(tmp_path):
    first, again, other = Painter(), Painter(), Painter(weight=2.0)
    given = (["a bird"] * 3, (10, 11, 12))
    paths = [
        draw_missing(painter, *given, tmp_path / name, "reconstruction", store=Store(tmp_path / "store"))
        for painter, name in ((first, "first"), (again, "again"), (other, "other"))
    ]
    assert first.drawn == other.drawn == [10, 11, 12] and again.drawn == []
    assert [path.read_bytes() for path in paths[1]] == [path.read_bytes() for path in paths[0]]


def test_progress_counts_what_stands(tmp_path):
    seen = []
    draw(Painter(), tmp_path, (10, 11, 12))
    draw_missing(
        Painter(), ["a bird"] * 6, (10, 11, 12, 13, 14, 15), tmp_path, "reconstruction", lambda *at: seen.append(at)
    )
    assert seen == [(5, 6), (6, 6)]


def _share(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    painter = Painter()
    draw(painter, folder / "pictures")
    (folder / f"{rank}.txt").write_text(" ".join(map(str, painter.drawn)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_share_the_work(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_share, (port, tmp_path), nprocs=2)
    assert (tmp_path / "0.txt").read_text() == "10 12 14" and (tmp_path / "1.txt").read_text() == "11 13"
    alone = Painter()
    assert [recipe_of(path) for path in draw(alone, tmp_path / "pictures")] and alone.drawn == []
