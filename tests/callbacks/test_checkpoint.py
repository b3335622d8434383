"""Checkpoints are whole or not there, and the newest good one is found among any rubbish."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from stand_in import StandIn, bound, fit

from partcraft_lit.callbacks.checkpoint import Checkpoints, damage, manifest_path, newest_good
from partcraft_lit.core.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fit(StandIn(), bound(Checkpoints(every_n_steps=2, keep=3), tmp_path), folder=tmp_path, steps=7)
    return tmp_path / "checkpoints"


def test_every_n_steps_and_after_the_last_the_newest_are_kept(folder: Path) -> None:
    kept = [f"step=00000{step}.ckpt" for step in (4, 6, 7)]
    assert names(folder) == sorted(file for name in [*kept, "last.ckpt"] for file in (name, f"{name}.json"))
    assert (folder / "last.ckpt").read_bytes() == (folder / "step=000007.ckpt").read_bytes()


def test_the_last_is_a_copy_with_a_manifest_of_its_own(folder: Path) -> None:
    newest, last = folder / "step=000007.ckpt", folder / "last.ckpt"
    assert newest.stat().st_ino != last.stat().st_ino and damage(last) is None
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    assert "SHA-256 differs" in str(damage(last)) and damage(newest) is None
    for path in folder.glob("step=*"):
        path.unlink()
    assert newest_good(folder) is None


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path, folder: Path) -> None:
    half = [folder / ".step=000009.123-abcd.tmp.ckpt", folder / "best" / ".step=000002.123-abcd.tmp.ckpt"]
    for path in half:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    fit(StandIn(), bound(Checkpoints(every_n_steps=2), tmp_path), folder=tmp_path, steps=2)
    assert not any(path.exists() for path in half)


def test_a_checkpoint_is_plain_and_holds_the_step(folder: Path) -> None:
    content = torch.load(folder / "step=000006.ckpt", weights_only=True)
    assert content["global_step"] == 6
    assert json.loads((folder / "step=000006.ckpt.json").read_text())["step"] == 6


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    fit(StandIn(), bound(Checkpoints(every_n_steps=1), tmp_path), folder=tmp_path, steps=2, accumulate=3)
    assert [name for name in names(tmp_path / "checkpoints") if name.startswith("step") and name.endswith("ckpt")] == [
        "step=000001.ckpt",
        "step=000002.ckpt",
    ]


def test_resuming_goes_on_at_the_step_and_takes_the_next_batch(tmp_path: Path, folder: Path) -> None:
    whole = StandIn()
    fit(whole, folder=tmp_path, steps=7)
    resumed = StandIn()
    trainer = fit(resumed, folder=tmp_path, steps=7, ckpt_path=folder / "step=000004.ckpt", start=4)
    assert trainer.global_step == 7
    assert resumed.seen == whole.seen[4:]


def test_the_newest_is_taken_in_silence(folder: Path) -> None:
    said: list[str] = []
    assert newest_good(folder, said.append) == folder / "step=000007.ckpt"
    assert said == []


def test_the_last_stands_in_for_the_newest_whose_copy_it_is(folder: Path) -> None:
    newest = folder / "step=000007.ckpt"
    newest.write_bytes(newest.read_bytes()[:-10])
    assert newest_good(folder, print) == folder / "last.ckpt"
    newest.unlink()
    assert newest_good(folder, pytest.fail) == folder / "last.ckpt"


def test_damaged_ones_are_passed_over_and_named(folder: Path) -> None:
    newest = folder / "step=000007.ckpt"
    newest.write_bytes(newest.read_bytes()[:-10])
    (folder / "last.ckpt").unlink(missing_ok=True)
    middle = folder / "step=000006.ckpt"
    content = bytearray(middle.read_bytes())
    content[len(content) // 2] ^= 1  # one flipped bit
    middle.write_bytes(content)
    said: list[str] = []
    assert newest_good(folder, said.append) == folder / "step=000004.ckpt"
    assert len(said) == 3
    assert "step=000007.ckpt is passed over: it has" in said[0]
    assert "step=000006.ckpt is passed over: its bytes are not those that were written" in said[1]
    assert said[2].endswith("is taken: " + str(folder / "step=000004.ckpt") + ".")


def test_half_written_files_are_never_looked_at(folder: Path) -> None:
    (folder / ".step=000009.123-abcd.tmp.ckpt").write_bytes(b"half")
    (folder / "step=000009.ckpt.json").write_text("{}")  # killed between manifest and checkpoint
    assert newest_good(folder) == folder / "step=000007.ckpt"


@pytest.mark.parametrize("manifest", ["", "[]", '{"bytes": 1}', '{"bytes": "x", "sha256": ""}'])
def test_a_broken_manifest_is_damage(folder: Path, manifest: str) -> None:
    path = folder / "step=000007.ckpt"
    manifest_path(path).write_text(manifest)
    assert "manifest cannot be read" in str(damage(path))


def test_without_manifest_a_checkpoint_must_load(folder: Path) -> None:
    for path in folder.glob("*.json"):
        path.unlink()
    assert newest_good(folder) == folder / "step=000007.ckpt"
    (folder / "step=000007.ckpt").write_bytes(b"no checkpoint at all")
    said: list[str] = []
    assert newest_good(folder, said.append) == folder / "step=000006.ckpt"
    assert "it is not a file that torch.save has written" in said[0]
    torch.save({"state_dict": {}}, folder / "step=000008.ckpt")
    assert "global_step or state_dict is missing" in str(damage(folder / "step=000008.ckpt"))


def test_nothing_usable(tmp_path: Path) -> None:
    assert newest_good(tmp_path / "missing") is None
    (tmp_path / "step=000001.ckpt").write_bytes(b"")
    said: list[str] = []
    assert newest_good(tmp_path, said.append) is None
    assert said[-1] == f"No checkpoint in {tmp_path} can be read."


def test_a_full_disk_is_said_and_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Trainer.save_checkpoint

    def save_until_full(self: Trainer, path: Path, **kwargs: object) -> None:
        if self.global_step > 2:
            Path(path).write_bytes(b"part of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, path, weights_only=False)

    monkeypatch.setattr(Trainer, "save_checkpoint", save_until_full)
    with pytest.raises(UserError, match="The disk is full"):
        fit(StandIn(), bound(Checkpoints(every_n_steps=2), tmp_path), folder=tmp_path, steps=8)
    assert names(tmp_path / "checkpoints") == [
        "last.ckpt",
        "last.ckpt.json",
        "step=000002.ckpt",
        "step=000002.ckpt.json",
    ]
    assert newest_good(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step=000002.ckpt"


def test_saving_a_step_again_replaces_it(folder: Path, tmp_path: Path) -> None:
    module = StandIn()
    checkpoints = bound(Checkpoints(every_n_steps=2, keep=3), tmp_path)
    fit(module, checkpoints, folder=tmp_path, steps=6, ckpt_path=folder / "step=000004.ckpt", start=4)
    assert damage(folder / "step=000006.ckpt") is None


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code has run",)


def test_a_pickle_that_could_run_code_is_not_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"global_step": 1, "state_dict": Evil()}, tmp_path / "evil.ckpt")
    assert "could run code" in str(damage(tmp_path / "evil.ckpt")) and capsys.readouterr().out == ""


def test_weights_that_are_no_tensors_are_damage(tmp_path: Path) -> None:
    torch.save({"global_step": 1, "state_dict": {"codes": torch.zeros(1), "lora": "a text"}}, tmp_path / "text.ckpt")
    assert "other things than tensors (lora)" in str(damage(tmp_path / "text.ckpt"))
