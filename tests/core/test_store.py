"""What was put in comes out, damage never does, and what is missing is computed once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from partcraft_lit.core.store import Store, default_root, stable_hash
from partcraft_lit.core.store.packs import PackWriter, read, records

KEY = stable_hash("key")


def entry(value: float = 1.0) -> dict[str, Tensor]:
    return {"a": torch.full((2, 3), value), "b": torch.arange(4, dtype=torch.uint8)}


def only_file(root: Path) -> Path:
    (path,) = root.rglob("*.pack")
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool], ids=str
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3, 4)])
def test_tensors_come_back_as_they_were(store: Store, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = torch.rand(shape).mul(3).to(dtype)
    store.put("kind", KEY, {"x": value})
    found = store.get("kind", KEY)
    assert found is not None
    assert_close(found["x"], value, atol=0, rtol=0)


def test_slices_of_one_tensor_and_other_layouts_can_be_stored(store: Store) -> None:
    batch = torch.rand(2, 3, 4)
    store.put("kind", KEY, {"first": batch[0], "second": batch[1], "turned": batch.transpose(0, 2)})
    found = store.get("kind", KEY)
    assert found is not None
    assert_close(found["second"], batch[1])
    assert_close(found["turned"], batch.transpose(0, 2))


def test_nothing_is_none_and_kinds_are_apart(store: Store) -> None:
    assert store.get("kind", KEY) is None
    store.put("kind", KEY, entry())
    assert store.get("other", KEY) is None


@pytest.mark.parametrize("damage", ["cut in the data", "cut in the head", "empty", "bit", "head", "text"])
def test_a_damaged_entry_is_never_returned_and_can_be_replaced(store: Store, damage: str) -> None:
    store.put("kind", KEY, entry())
    path = only_file(store.root)
    content = bytearray(path.read_bytes())
    if damage == "cut in the data":
        content = content[:-3]
    elif damage == "cut in the head":
        content = content[:20]
    elif damage == "empty":
        content = bytearray()
    elif damage == "bit":
        content[-2] ^= 1
    elif damage == "head":
        content[20] ^= 1
    elif damage == "text":
        content = bytearray(b"<html>not found</html>")
    path.write_bytes(bytes(content))
    again = Store(store.root)
    assert again.get("kind", KEY) is None
    # Who knows the place needs no head; the body is whole.
    assert (store.get("kind", KEY) is None) == (damage != "head")
    again.put("kind", KEY, entry(2.0))
    for reader in (again, Store(store.root), *([store] if damage != "head" else [])):
        found = reader.get("kind", KEY)
        assert found is not None
        assert_close(found["a"], torch.full((2, 3), 2.0))


def test_damage_is_logged(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.put("kind", KEY, entry())
    path = only_file(store.root)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))
    assert store.get("kind", KEY) is None
    assert "damaged and will be computed again" in caplog.text
    assert store.get("kind", KEY) is None
    assert caplog.text.count("damaged") == 1, "it is known by then"


def test_an_entry_under_another_name_is_not_taken_for_that(store: Store) -> None:
    store.put("kind", KEY, entry())
    (_, place), other = next(records(only_file(store.root))), KEY[::-1]
    PackWriter(store.root / "kind").append(other, read(place))
    PackWriter(store.root / "other").append(KEY, read(place))
    again = Store(store.root)
    assert again.get("kind", other) is None and again.get("other", KEY) is None
    assert again.get("kind", KEY) is not None


def test_an_older_record_steps_in_for_a_damaged_one(store: Store) -> None:
    store.put("kind", KEY, entry(1.0))
    store.put("kind", KEY, entry(1.0))
    path = only_file(store.root)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))
    assert Store(store.root).get("kind", KEY) is not None


@pytest.mark.parametrize("kind, key", [("../up", KEY), ("Kind", KEY), ("", KEY), ("kind", "../../x"), ("kind", "abc")])
def test_names_that_could_leave_the_store_are_refused(store: Store, kind: str, key: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        store.get(kind, key)


def test_many_are_computed_in_batches_each_key_once_and_kept_in_order(store: Store) -> None:
    keys = [stable_hash(number) for number in (5, 3, 5, 1, 2)]  # the third is the first again
    asked: list[list[int]] = []
    heard: list[tuple[int, int]] = []

    def compute(positions: list[int]) -> Iterator[dict[str, Tensor]]:
        asked.append(positions)
        return ({"x": torch.tensor(float(position))} for position in positions)

    entries: dict[int, dict[str, Tensor]] = {}
    store.fill(
        "kind",
        keys,
        compute,
        batch_size=2,
        progress=lambda *seen: heard.append(seen),
        on_entry=entries.__setitem__,
    )
    assert [float(entries[position]["x"]) for position in range(5)] == [0, 1, 0, 3, 4]
    assert asked == [[0, 1], [3], [4]], "fixed blocks of the list, less what is there"
    assert heard == [(2, 5), (3, 5), (4, 5), (5, 5)]


def test_only_what_is_new_is_computed(store: Store) -> None:
    asked: list[int] = []

    def compute(positions: list[int]) -> list[dict[str, Tensor]]:
        asked.extend(positions)
        return [{"x": torch.tensor(position)} for position in positions]

    keys = [stable_hash(number) for number in range(6)]
    assert store.fill("kind", keys[:4], compute, batch_size=3) == 4
    asked.clear()
    path = only_file(store.root)
    path.write_bytes(path.read_bytes()[:-1])  # the last of the four
    assert Store(store.root).fill("kind", keys, compute, batch_size=2) == 3
    assert asked == [3, 4, 5]


def test_what_was_ready_before_an_error_is_kept(store: Store) -> None:
    keys = [stable_hash(number) for number in range(4)]

    def compute(positions: list[int]) -> Iterator[dict[str, Tensor]]:
        for position in positions:
            if position == 2:
                raise RuntimeError("out of power")
            yield {"x": torch.tensor(position)}

    with pytest.raises(RuntimeError, match="out of power"):
        store.fill("kind", keys, compute, batch_size=4)
    assert [store.get("kind", key) is not None for key in keys] == [True, True, False, False]


def test_too_few_results_are_an_error(store: Store) -> None:
    with pytest.raises(ValueError, match="shorter"):
        store.fill("kind", [stable_hash(0), stable_hash(1)], lambda positions: [entry()], batch_size=2)


def _write_often(root: Path, value: float) -> None:
    for _ in range(60):
        Store(root).put("kind", KEY, {"x": torch.full((500,), value)})


def test_two_processes_may_write_the_same_entry_while_it_is_read(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(store.root, value)) for value in (1.0, 2.0)]
    store.put("kind", KEY, {"x": torch.full((500,), 1.0)})
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        found = store.get("kind", KEY)
        assert found is not None
        assert found["x"].unique().numel() == 1
        reads += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert reads > 0
    assert Store(store.root).entries("kind") == [KEY]


def test_hashes_are_stable_and_tell_values_apart() -> None:
    # printf '["a",1,[2.5,null,true],{"k":"v"}]' | sha256sum
    golden = "8c9e2766e0f56127d935a6fb71b71f1e58090a354845f02c668eac62dee55599"
    assert stable_hash("a", 1, (2.5, None, True), {"k": "v"}) == golden
    different = [("a", "b"), ("ab",), ("a", "b", ""), (1,), (1.0,), (True,), ("1",), (None,), ([1],), ({"a": 1},)]
    assert len({stable_hash(*parts) for parts in different}) == len(different)
    assert stable_hash({"a": 1, "b": 2}) == stable_hash({"b": 2, "a": 1})


@pytest.mark.parametrize(
    "value", [Path("x"), {1: "a"}, {1, 2}, torch.zeros(1), b"bytes"], ids=lambda v: type(v).__name__
)
def test_what_has_no_stable_text_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="stable_hash takes plain values"):
        stable_hash("fine", [value])
    with pytest.raises(ValueError):
        stable_hash(float("nan"))


def test_the_default_root_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root().name == "store"
    assert Store().root == default_root()
    assert Store("~/here").root == Path.home() / "here"
