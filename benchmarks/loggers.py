"""Steps per second with dashboards whose server is down, against none: python benchmarks/loggers.py [STEPS] [REPEATS]

Each setting trains the miniature from nothing in a process of its own; the settings take turns, and the fastest of each
counts. "hangs" is a server that takes the connection and never answers.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WANDB = ("logger=wandb", "logger.wandb.init_timeout_s=3", "logger.wandb.finish_timeout_s=3")
SETTINGS = {
    "none": ("logger=none",),
    "wandb, offline": (*WANDB, "logger.wandb.mode=offline"),
    "wandb, unreachable": WANDB,
    "wandb, hangs": WANDB,
    "trackio": ("logger=trackio",),
}
DEMO = (
    "experiment=demo", "dataset.images_per_species=2", "parts.K=2", "trainer=cpu", "trainer.log_every_n_steps=1",
    "eval.enabled=false", "eval.hybrids=1", "~callbacks.samples", "~callbacks.attention_maps", "ckpt_path=null",
)  # fmt: skip


def main(steps: int, repeats: int) -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # nobody accepts; the system completes the connections
    servers = {
        "wandb, unreachable": "http://127.0.0.1:9",
        "wandb, hangs": f"http://127.0.0.1:{silent.getsockname()[1]}",
    }
    speed: dict[str, list[float]] = {name: [] for name in SETTINGS}
    whole: dict[str, list[float]] = {name: [] for name in SETTINGS}
    with tempfile.TemporaryDirectory() as place:
        run(Path(place), "first", SETTINGS["none"], 1, None)  # fills the store
        for repeat in range(repeats):
            for name, overrides in SETTINGS.items():
                seconds, wall = run(Path(place), str(repeat), overrides, steps, servers.get(name))
                speed[name].append(steps / seconds)
                whole[name].append(wall)
    silent.close()
    print(f"{'logger':<20}{'steps/s':>9}{'ratio':>8}{'whole command, s':>18}")
    for name, speeds in speed.items():
        print(f"{name:<20}{max(speeds):>9.2f}{max(speeds) / max(speed['none']):>8.2f}{min(whole[name]):>18.1f}")


def run(place: Path, name: str, overrides: tuple[str, ...], steps: int, server: str | None) -> tuple[float, float]:
    """Seconds of training, and of the whole command."""
    folder = place / f"{name}-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "partcraft_lit", "train", *DEMO, *overrides, f"trainer.max_steps={steps}"]
    command += [f"paths.logs={place}", f"paths.store={place / 'store'}", f"hydra.run.dir={folder}"]
    environment = {**os.environ, "TRACKIO_DIR": str(place / "trackio")}
    environment.pop("WANDB_MODE", None)
    if server is not None:
        environment |= {"WANDB_BASE_URL": server, "WANDB_API_KEY": "0" * 40}
    started = time.monotonic()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    wall = time.monotonic() - started
    return float(json.loads((folder / "costs.json").read_text(encoding="utf-8"))["train_seconds"]), wall


if __name__ == "__main__":
    given = [int(text) for text in sys.argv[1:]]
    main(*(given + [40, 2][len(given) :]))
