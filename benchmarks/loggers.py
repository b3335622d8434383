"""What a dashboard costs training, also while its server is down: python benchmarks/loggers.py [CALLS]

Each setting has a process of its own, which computes and logs in turns, as training does. "ms a call" is how long
training waits for one row of twelve metrics, the median. The ratio is that of steps per second with and without a
logger, for steps of 100 ms (the miniature on a CPU, SD1.5 on a fast GPU) and the default of one row every ten steps.
"hangs" is a server that takes the connection and never answers. Start and end are seconds, outside of training.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

SETTINGS = ("none", "wandb, offline", "wandb, unreachable", "wandb, hangs", "trackio", "mlflow, unreachable")
#: Metrics of a row.
METRICS = {f"train/metric_{number}": 0.5 for number in range(12)}
STEP_MS, EVERY = 100.0, 10
TIMEOUTS = {"init_timeout_s": 3.0, "finish_timeout_s": 3.0}


def main(calls: int) -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # nobody accepts; the system completes the connections
    servers = {"unreachable": "http://127.0.0.1:9", "hangs": f"http://127.0.0.1:{silent.getsockname()[1]}"}
    print(f"{'logger':<22}{'ms a call':>11}{'ratio':>7}{'start, s':>10}{'end, s':>8}")
    for name in SETTINGS:
        environment = {
            **os.environ,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_BASE_URL": servers.get(name.partition(", ")[2], ""),
        }
        environment.pop("WANDB_MODE", None)
        if not environment["WANDB_BASE_URL"]:
            del environment["WANDB_BASE_URL"]
        command = [sys.executable, __file__, str(calls), name]
        done = subprocess.run(command, env=environment, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if done.returncode:
            print(f"{name:<22} not installed")
            continue
        measured = json.loads(done.stdout.splitlines()[-1])
        ratio = STEP_MS / (STEP_MS + measured["call_ms"] / EVERY)
        print(
            f"{name:<22}{measured['call_ms']:>11.2f}{ratio:>7.3f}{measured['start']:>10.1f}{measured['end']:>8.1f}",
            flush=True,
        )
    silent.close()


def measure(name: str, calls: int) -> dict[str, float]:
    """Median milliseconds of a call, and seconds of start and end."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["TRACKIO_DIR"] = place
        started = time.monotonic()
        logger = make(name, Path(place))
        if logger is not None:
            logger.log_hyperparams({"seed": 0})
            logger.log_metrics(METRICS, 0)
        start = time.monotonic() - started
        seconds: list[float] = []
        matrix = torch.rand(400, 400)
        for step in range(1, calls + 1):
            for _ in range(4):
                matrix = torch.mm(matrix, matrix).sigmoid()
            before = time.perf_counter()
            if logger is not None:
                logger.log_metrics(METRICS, step)
            seconds.append(time.perf_counter() - before)
        started = time.monotonic()
        if logger is not None:
            logger.finish(success=True)
        end = time.monotonic() - started
    return {"call_ms": 1000 * statistics.median(seconds), "start": start, "end": end}


def make(name: str, folder: Path) -> Any:
    from partcraft_lit import loggers

    kind, _, state = name.partition(", ")
    if kind == "wandb":
        return loggers.wandb_logger(folder, project="p", mode="offline" if state == "offline" else "online", **TIMEOUTS)
    if kind == "trackio":
        return loggers.trackio_logger(folder, project="p")
    if kind == "mlflow":
        server = os.environ["WANDB_BASE_URL"]
        return loggers.mlflow_logger(folder, experiment="p", place=str(folder), tracking_uri=server, **TIMEOUTS)
    return None


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 150
    if len(sys.argv) > 2:
        print(json.dumps(measure(sys.argv[2], count)))
    else:
        main(count)
