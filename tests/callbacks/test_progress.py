"""Progress: speed by the median, one line on a terminal, lines of text elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from stand_in import StandIn, fit, make_batch

from partcraft_lit.callbacks.progress import TrainingProgress
from partcraft_lit.callbacks.rate import Rate, count_images


def test_rate_is_the_median_and_forgives_a_pause() -> None:
    moments = iter([0.0, 1.0, 2.0, 3.0, 100.0, 101.0])
    rate = Rate(clock=lambda: next(moments))
    assert rate.images_per_second is None
    rate.start()
    for _ in range(5):
        rate.batch_done(images=8)
    assert rate.images_per_second == 8.0


def test_images_are_counted_over_all_processes() -> None:
    assert count_images(make_batch(size=3), world_size=4) == 12
    assert count_images("something else") == 0


def test_a_log_file_gets_lines_with_everything(tmp_path: Path) -> None:
    out = io.StringIO()
    progress = TrainingProgress(line_every_s=0.0, console=Console(file=out, width=200))
    fit(StandIn(), progress, folder=tmp_path, steps=3)
    lines = [line for line in out.getvalue().splitlines() if line.startswith("training")]
    assert len(lines) == 4
    assert lines[0].startswith("training  step 1/3  ")
    assert "images/s" in lines[1]
    assert "left" in lines[1]
    assert "loss 0." in lines[1]
    assert "left" not in lines[-1]
    assert "\x1b" not in out.getvalue()


def test_a_log_file_is_not_flooded(tmp_path: Path) -> None:
    out = io.StringIO()
    fit(StandIn(), TrainingProgress(line_every_s=60, console=Console(file=out)), folder=tmp_path, steps=30)
    assert len([line for line in out.getvalue().splitlines() if line.startswith("training")]) == 1


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140)
    fit(StandIn(), TrainingProgress(console=console), folder=tmp_path, steps=3)
    assert "3/3" in out.getvalue()
    assert "images/s" in out.getvalue()


def test_the_bar_is_gone_when_training_breaks(tmp_path: Path) -> None:
    progress = TrainingProgress(console=Console(file=io.StringIO(), force_terminal=True))
    module = StandIn()
    module.training_step = lambda batch, batch_idx: 1 / 0  # type: ignore
    with pytest.raises(ZeroDivisionError):
        fit(module, progress, folder=tmp_path)
    assert progress._progress is None


def test_other_processes_say_nothing(tmp_path: Path) -> None:
    out = io.StringIO()
    progress = TrainingProgress(line_every_s=0.0, console=Console(file=out))
    progress.disable()
    fit(StandIn(), progress, folder=tmp_path, steps=2)
    assert out.getvalue() == ""
