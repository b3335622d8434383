"""Statistics, verification and pruning of a store: the functions and the command."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from partcraft_lit import cli
from partcraft_lit.core.store import Store, pack, stable_hash
from partcraft_lit.core.store.maintenance import find_damage, prune, statistics
from partcraft_lit.core.store.packs import PackWriter, packs, records

KEYS = [stable_hash(number) for number in range(6)]


def put(store: Store, *numbers: int) -> None:
    for number in numbers:
        store.put("kind", KEYS[number], {"x": torch.full((50,), float(number))})


def damage(path: Path, record: int) -> None:
    place = list(records(path))[record][1]
    content = bytearray(path.read_bytes())
    content[place.offset + place.size - 1] ^= 1
    path.write_bytes(bytes(content))


def there(store: Store) -> list[int]:
    return [number for number, key in enumerate(KEYS) if store.get("kind", key) is not None]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Five entries in two files: one is damaged, one was written twice."""
    store = Store(tmp_path)
    put(store, 0, 1, 2, 4)
    put(Store(tmp_path), 1, 3)
    damage(packs(tmp_path / "kind")[0], 0)
    return Store(tmp_path)


def test_numbers(store: Store) -> None:
    facts = statistics(store, "kind")
    assert facts["entries"] == 5
    assert facts["files"] == 2
    assert facts["bytes"] == sum(path.stat().st_size for path in store.root.rglob("*") if path.is_file())
    assert 200 < facts["superseded"] < 900, "one of two records with the same key"


def test_damage_is_named(store: Store) -> None:
    (found,) = find_damage(store, "kind")
    assert found.startswith(f"{KEYS[0]} in ")


def test_prune_keeps_what_is_whole_in_one_file_and_frees_the_rest(store: Store) -> None:
    reader = Store(store.root)
    assert there(reader) == [1, 2, 3, 4]
    before = statistics(store, "kind")["bytes"]
    freed = prune(store, "kind", idle_s=0)
    assert freed > 0
    after = statistics(Store(store.root), "kind")
    assert (after["entries"], after["files"]) == (4, 1)
    assert abs(before - after["bytes"] - freed) < 200
    assert there(Store(store.root)) == [1, 2, 3, 4]
    assert there(reader) == [1, 2, 3, 4], "a reader whose files are gone looks again"
    assert find_damage(store, "kind") == []


def test_prune_leaves_alone_what_is_being_written(store: Store) -> None:
    files = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    assert prune(store, "kind", idle_s=3600) == 0
    assert all(path.read_bytes() == content for path, content in files.items())


def test_prune_by_age(store: Store) -> None:
    place = PackWriter(store.root / "kind").append(
        KEYS[5], pack({"x": torch.zeros(50)}, "kind", KEYS[5]), written=time.time() - 100_000
    )
    assert place.size > 0 and there(Store(store.root)) == [1, 2, 3, 4, 5]
    prune(store, "kind", older_than_s=50_000, idle_s=0)
    assert there(Store(store.root)) == [1, 2, 3, 4]
    prune(store, "kind", older_than_s=0, idle_s=0)
    assert there(Store(store.root)) == []


def test_a_writer_whose_file_was_pruned_away_begins_another(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, 0)
    prune(store, "kind", idle_s=0)
    put(store, 1)
    assert there(Store(tmp_path)) == [0, 1]


def command(store: Store, tmp_path: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["store", *arguments, f"paths.store={store.root}", f"paths.logs={tmp_path / 'logs'}"])
    return int(ended.value.code or 0)


def test_the_command(store: Store, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture) -> None:
    elsewhere = tmp_path_factory.mktemp("logs")
    (elsewhere / "file").touch()
    assert command(Store(elsewhere / "file"), elsewhere, "stats") == 2
    assert "is a file; a store is a folder" in capsys.readouterr().err
    assert command(store, elsewhere, "stats") == 0
    assert "kind                          5" in capsys.readouterr().out
    assert command(store, elsewhere, "verify") == 0
    assert "1 damaged. They are computed again" in capsys.readouterr().out
    assert command(store, elsewhere, "prune", "idle_minutes=0") == 0
    assert "Freed 0.0 MB" in capsys.readouterr().out
    assert command(store, elsewhere, "verify", "kind=kind") == 0
    assert "4 entries read, 0 damaged." in capsys.readouterr().out
    assert command(store, elsewhere, "stats", "kind=kinds") == 2
    assert "Did you mean 'kind'" in capsys.readouterr().err
