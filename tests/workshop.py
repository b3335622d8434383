"""One tiny run for all tests: drawn birds, a Stable Diffusion of random weights, a few steps.

It goes through the command line, as a user's run does. Tests must leave its folder as it is, or copy it.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from partcraft_lit import cli
from partcraft_lit.core.visualization import to_pil
from partcraft_lit.world.creatures import Creatures

#: Steps of the shared run; a checkpoint at half of them.
STEPS = 4
#: ``PARTCRAFT_TEST_DEVICE=gpu`` takes these runs to a GPU, as ``make test-gpu`` does.
TRAINER = (
    ("trainer=default", "trainer.devices=1") if os.environ.get("PARTCRAFT_TEST_DEVICE") == "gpu" else ("trainer=cpu",)
)
#: Everything as small as it goes.
SMALL = (
    "backbone=sd15",
    "backbone.resolution=32",
    "dataset=folder",
    "parts.features=color",
    "features.color.grid=8",
    "parts.M=2",
    "parts.K=3",
    "parts.nredo=1",
    "parts.niter=5",
    "parts.foreground_clusters=2",
    "mapper.hidden=16",
    "data.batch_size=2",
    "data.num_workers=0",
    *TRAINER,
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=1",
    "logger=none",
    f"callbacks.checkpoints.every_n_steps={STEPS // 2}",
    f"callbacks.samples.every_n_steps={STEPS}",
    f"callbacks.attention_maps.every_n_steps={STEPS}",
    "sample.steps=1",
    "eval.reconstructions=2",
    "eval.compositions=2",
    "eval.species=[1,2]",
    "eval.untrained=1",
    "eval.ceiling_images=2",
    "eval.pictures=[pixels]",
    "eval.hybrids=2",
)
#: What a test of something else does without, charts in the report too.
PLAIN = ("eval.enabled=false", "~callbacks.samples", "~callbacks.attention_maps", "eval.hybrids=1")


@dataclass
class Ended:
    """A command that has ended."""

    code: int
    out: str


@dataclass
class Workshop:
    """A place for runs of one data set and one backbone.

    Attributes:
        root: ``logs`` and ``store`` are below it.
        arguments: overrides that every training run here has.
    """

    root: Path
    arguments: tuple[str, ...]

    @property
    def runs(self) -> list[Path]:
        return sorted((self.root / "logs" / "train" / "runs").glob("*"))

    def command(self, verb: str, *overrides: str) -> list[str]:
        """The arguments of a command as a user would type them."""
        own = self.arguments if verb == "train" else TRAINER
        return [verb, *own, f"paths.logs={self.root / 'logs'}", *overrides]

    def __call__(self, verb: str, *overrides: str) -> Ended:
        """Runs a command in this process; returns its exit code and all that it wrote."""
        written = io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            if set(PLAIN) <= set(overrides):
                patch.setattr("partcraft_lit.report.html.line_chart", lambda chart: None)
            with (
                contextlib.redirect_stdout(written),
                contextlib.redirect_stderr(written),
                pytest.raises(SystemExit) as ended,
            ):
                cli.main(self.command(verb, *overrides))
        return Ended(int(ended.value.code or 0), written.getvalue())

    def copy(self, run: Path, finished: bool = True) -> Path:
        """A copy of a run of another workshop, which a test may change; told that it is not finished if wanted."""
        folder = self.root / "logs" / "train" / "runs" / run.name
        shutil.copytree(run, folder)
        if not finished:
            (folder / "finished.json").unlink()
        return folder

    def train(self, *overrides: str) -> Path:
        """Trains, and returns the run folder that is new or newly finished."""
        before = {run for run in self.runs if (run / "finished.json").exists()}
        ended = self("train", *overrides)
        assert ended.code == 0, ended.out
        (folder,) = [run for run in self.runs if (run / "finished.json").exists() and run not in before]
        return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine birds of three species, not all square, and two files that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    zoo = Creatures(species=3, images_per_species=3, image_size=48, seed=5)
    for index in range(len(zoo)):
        image = to_pil(zoo.image(index))
        if index % 3 == 1:
            image = image.resize((64, 48))
        path = folder / f"species {zoo.label(index)}" / f"{index}.{'jpg' if index % 2 else 'png'}"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    whole = (folder / "species 0" / "0.png").read_bytes()
    (folder / "species 0" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (1, 1)).save(folder / "species 1" / "dot.png")
    return folder


@pytest.fixture(scope="session")
def new_workshop(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, tiny_sd_folder: Path
) -> Callable[[], Workshop]:
    """Makes empty places for runs; all share one store."""
    store = tmp_path_factory.mktemp("store")
    given = (f"dataset.dir={pictures}", f"backbone.source={tiny_sd_folder}", f"paths.store={store}")
    return lambda: Workshop(tmp_path_factory.mktemp("workshop"), (*SMALL, *given))


@pytest.fixture(scope="session")
def workshop(new_workshop: Callable[[], Workshop]) -> Workshop:
    """The place of the shared run."""
    return new_workshop()


@pytest.fixture(scope="session")
def tiny_run(workshop: Workshop) -> Path:
    """The folder of the shared run, with everything that a run leaves."""
    return workshop.train()


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    return SMALL


@pytest.fixture(scope="session")
def plain() -> tuple[str, ...]:
    """Overrides for a run without images and scores."""
    return PLAIN
