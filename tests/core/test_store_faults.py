"""Whatever happens to a store: nothing corrupt is ever read, and nothing valid is lost."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import signal
import time
from itertools import chain
from pathlib import Path

import pytest
import torch

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.store import Store, stable_hash
from partcraft_lit.core.store.packs import packs, records

KEYS = [stable_hash(number) for number in range(40)]


def value(position: int, transform: int = 0) -> dict[str, torch.Tensor]:
    return {"x": torch.full((300,), float(position)), "transform": torch.tensor(transform)}


def check(root: Path, keys: list[str], transform: int = 0) -> int:
    """How many of the keys are there; each has its own value or nothing."""
    store, there = Store(root), 0
    for position, key in enumerate(keys):
        found = store.get("kind", key)
        if found is not None:
            assert torch.equal(found["x"], value(position)["x"])
            assert int(found["transform"]) == transform
            there += 1
    return there


def _fill(root: Path, keys: list[str], rank: int, pause: float, transform: int = 0) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": "4"}

    def compute(positions: list[int]):
        for position in positions:
            time.sleep(pause)
            yield value(position, transform)

    Store(root).fill("kind", keys, compute, batch_size=2)


def start(*jobs: tuple) -> list[multiprocessing.process.BaseProcess]:
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=_fill, args=job) for job in jobs]
    for process in started:
        process.start()
    return started


def test_one_of_four_processes_that_fill_a_store_is_killed(tmp_path: Path) -> None:
    workers = start(*((tmp_path, KEYS, rank, 0.05) for rank in range(4)))  # slow enough to be killed at work
    while sum(1 for path in packs(tmp_path / "kind") for _ in records(path)) < 6:
        time.sleep(0.002)
    os.kill(workers[1].pid or 0, signal.SIGKILL)
    before = check(tmp_path, KEYS)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, -signal.SIGKILL, 0, 0]
    assert 0 < before <= check(tmp_path, KEYS) == len(KEYS), "the others did its share, and kept what it had done"


def test_processes_share_the_work(tmp_path: Path) -> None:
    for worker in start(*((tmp_path, KEYS, rank, 0.004) for rank in range(4))):
        worker.join()
    assert check(tmp_path, KEYS) == len(KEYS)
    written = sum(1 for path in packs(tmp_path / "kind") for _ in records(path))
    assert written < 2 * len(KEYS), "a batch may be computed twice where two meet"


def test_a_process_waits_for_the_others_a_while_and_takes_over_what_they_leave(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    blocks: list[list[int]] = []

    def compute(positions: list[int]):
        blocks.append(positions)
        return map(value, positions)

    (late,) = start((tmp_path, KEYS[20:30], 1, 0.02))  # half of the other's share, then it is gone
    began = time.monotonic()
    computed = Store(tmp_path).fill("kind", KEYS, compute, batch_size=2, patience_s=1.5)
    late.join()
    assert blocks[:10] == [[position, position + 1] for position in range(0, 20, 2)]
    assert sorted(chain.from_iterable(blocks[10:])) == list(range(30, 40)) and computed == 30
    assert 1.5 < time.monotonic() - began < 10
    assert len(Store(tmp_path).entries("kind")) == len(KEYS)


@pytest.mark.parametrize("cut", (1, 500, 1400, 3000))
def test_a_truncated_pack_keeps_what_is_whole(tmp_path: Path, cut: int) -> None:
    store = Store(tmp_path)
    for position in range(6):
        store.put("kind", KEYS[position], value(position))
    (path,) = packs(tmp_path / "kind")
    ends = [place.offset + place.size for _, place in records(path)]
    os.truncate(path, ends[-1] - cut)
    whole = sum(end <= ends[-1] - cut for end in ends)
    assert check(tmp_path, KEYS[:6]) == whole == len(list(records(path)))
    assert store.get("kind", KEYS[5]) is None, "also where the place was known before"
    store.put("kind", KEYS[5], value(5))  # the writer goes on in its file, behind the hole
    assert check(tmp_path, KEYS[:6]) == whole + 1


def test_a_damaged_head_in_the_middle_costs_its_own_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for position in range(3):
        store.put("kind", KEYS[position], value(position))
    (path,) = packs(tmp_path / "kind")
    content = bytearray(path.read_bytes())
    first = next(records(path))[1]
    content[first.offset + first.size + 20] ^= 1
    path.write_bytes(bytes(content))
    assert [Store(tmp_path).get("kind", key) is not None for key in KEYS[:3]] == [True, False, True]


@pytest.mark.parametrize("written", (0, 10, 700))
def test_a_full_disk_is_said_and_leaves_no_half_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    store = Store(tmp_path)
    store.put("kind", KEYS[0], value(0))
    (path,) = packs(tmp_path / "kind")
    size = path.stat().st_size
    real, room = os.write, [written]

    def write(file: int, data: memoryview) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(file, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(UserError, match="The disk is full"):
        store.put("kind", KEYS[1], value(1))
    monkeypatch.setattr(os, "write", real)
    assert store.get("kind", KEYS[1]) is None and path.stat().st_size == size
    assert check(tmp_path, KEYS[:2]) == 1
    store.put("kind", KEYS[2], value(2))
    assert [Store(tmp_path).get("kind", key) is not None for key in KEYS[:3]] == [True, False, True]


def test_two_runs_with_different_transforms_on_one_store(tmp_path: Path) -> None:
    others = [stable_hash("another transform", key) for key in KEYS]
    for worker in start((tmp_path, KEYS, 0, 0.001, 1), (tmp_path, others, 0, 0.001, 2)):
        worker.join()
    assert check(tmp_path, KEYS, 1) == check(tmp_path, others, 2) == len(KEYS)


def test_a_store_goes_to_other_processes_and_writes_there_into_files_of_its_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("kind", KEYS[0], value(0))
    sent = pickle.loads(pickle.dumps(store))
    assert sent.get("kind", KEYS[0]) is not None
    sent.put("kind", KEYS[1], value(1))
    child = multiprocessing.get_context("fork").Process(target=store.put, args=("kind", KEYS[2], value(2)))
    child.start()
    child.join()
    store.put("kind", KEYS[3], value(3))
    assert len(packs(tmp_path / "kind")) == 3
    assert check(tmp_path, KEYS[:4]) == 4
    assert store.get("kind", KEYS[2]) is not None
