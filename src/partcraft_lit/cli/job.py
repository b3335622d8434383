"""One job of a command, and what Hydra and Lightning find in this process while it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from partcraft_lit.cli.ending import Progress, end_further_process, left_behind, print_end
from partcraft_lit.core import stopping


def run_job(cfg: Any, module: ModuleType, progress: Progress) -> Any:
    """One job. Errors are kept for later: in a sweep the other jobs go on, and only ``report_error`` prints them."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from partcraft_lit.config import compose as config
    from partcraft_lit.core import environment, rundir
    from partcraft_lit.core.allocation import keep_freed_memory
    from partcraft_lit.scheduling.results import write_result

    folder = Path(HydraConfig.get().runtime.output_dir)
    progress.folder = folder
    keep_freed_memory()
    if "trainer" in cfg:
        environment.set_local_processes(config.plain(cfg.trainer))
    try:
        # Further processes of a run work in the folder that its first holds.
        with rundir.held(folder) if environment.is_first_process() else nullcontext():
            values = config.plain(cfg)
            returned = module.main(values, folder)
            if environment.is_first_process():
                write_result(folder, values.get("objective"), returned)
            return returned
    except stopping.TimeLimitReached as end:
        progress.time_limit = True
        end_further_process(0)
        stopping.end_followers(by_themselves=True)
        scores = f"partcraft evaluate run={folder} scores what there is"
        print_end(f"stopped by trainer.max_time {end.reached}", left_behind(progress), scores)
        return None
    except Exception as error:
        progress.errors.append(error)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"partcraft: the job in {folder} stopped: {error}", file=sys.stderr, flush=True)
            raise  # whatever launched it has to know
        if progress.made == folder:
            rundir.discard_unused(folder)
        return None


@contextmanager
def command_line(argv: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def hydra_errors_shown(*, shown: bool) -> Iterator[None]:
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = str(int(shown))
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before
