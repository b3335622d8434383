"""Processes: what is done, what fails, what is passed over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from partcraft_lit.commands.table.jobs import Step, Task, run_tasks
from partcraft_lit.core import rundir


def task(tmp_path: Path, name: str, code: str, *more: str) -> Task:
    """Each step runs Python code and is done when it has written ``<name>.<number>``."""
    folder = tmp_path / name
    steps = []
    for number, text in enumerate((code, *more)):
        mark = tmp_path / f"{name}.{number}"
        whole = f"import os, sys, pathlib\n{textwrap.dedent(text)}\npathlib.Path({str(mark)!r}).touch()"
        steps.append(Step((sys.executable, "-S", "-c", whole), mark.is_file))
    return Task(name, folder, tuple(steps))


def test_a_failure_is_noted_and_the_rest_goes_on(tmp_path):
    said = []
    tasks = [
        task(tmp_path, "one", "print('x')"),
        task(tmp_path, "bad", "print('partcraft: dataset.dir=/x is no folder.'); sys.exit(2)", "print('never')"),
        task(tmp_path, "two", "print('first')", "print('second')"),
    ]
    errors = run_tasks(tasks, 2, said.append)
    assert errors == {"bad": "partcraft: dataset.dir=/x is no folder."}
    assert tasks[0].is_done() and tasks[2].is_done() and not tasks[1].is_done()
    assert (tmp_path / "two" / "job.log").read_text() == "first\nsecond\n"
    assert said[0] == "0 of 3 jobs are done; 3 to do, 2 at once." and sum("FAILED" in line for line in said) == 1


def test_what_is_done_is_not_started(tmp_path):
    one = task(tmp_path, "one", "print('x')", "print('y')")
    (tmp_path / "one.0").touch()
    assert run_tasks([one], 1, lambda text: None) == {}
    assert (tmp_path / "one" / "job.log").read_text() == "y\n"
    assert run_tasks([one], 1, lambda text: None) == {}
    assert (tmp_path / "one" / "job.log").read_text() == "y\n"


def test_a_command_that_leaves_nothing_has_failed(tmp_path):
    silent = Task("silent", tmp_path / "silent", (Step((sys.executable, "-S", "-c", ""), lambda: False),))
    assert run_tasks([silent], 1, lambda text: None) == {"silent": "It ended with code 0 and without any output."}


def test_cores_and_devices_are_divided(tmp_path):
    show = "print(os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES'])"
    tasks = [task(tmp_path, name, show) for name in "ab"]
    assert run_tasks(tasks, 64, lambda text: None, gpus=[5, 7]) == {}
    assert {(tmp_path / name / "job.log").read_text() for name in "ab"} == {"1 5\n", "1 7\n"}


def test_a_folder_that_another_process_holds_is_waited_for(tmp_path):
    one = task(tmp_path, "one", "print('x')")
    code = (
        "import sys, time; from pathlib import Path; from partcraft_lit.core import rundir\n"
        "with rundir.held(Path(sys.argv[1])): print('held', flush=True); time.sleep(1.0)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(one.folder)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert rundir.in_use(one.folder)
        run_tasks([one], 1, lambda text: None)
        assert holder.poll() is not None or not rundir.in_use(one.folder)
    assert one.is_done()


def test_an_interrupt_reaches_the_processes(tmp_path):
    code = f"""
        import sys; from pathlib import Path; from partcraft_lit.commands.table.jobs import Step, Task, run_tasks
        child = "import pathlib, signal, time\\n"  # a shell's background jobs are started deaf to interrupts
        child += "signal.signal(signal.SIGINT, signal.default_int_handler)\\n"
        child += "try:\\n  pathlib.Path('{tmp_path}/up').touch(); time.sleep(60)\\n"
        child += "except KeyboardInterrupt:\\n  pathlib.Path('{tmp_path}/told').touch()"
        steps = (Step((sys.executable, "-S", "-c", child), lambda: False),)
        run_tasks([Task("x", Path("{tmp_path}/x"), steps)], 1, print)
        """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.DEVNULL) as table:
        for _ in range(600):
            if (tmp_path / "up").exists():
                break
            time.sleep(0.1)
        os.kill(table.pid, signal.SIGTERM)
        table.wait(60)
    assert (tmp_path / "told").exists()


def test_a_folder_that_vanishes_is_a_failed_job_and_no_crash(tmp_path):
    gone = task(tmp_path, "gone", f"import shutil; shutil.rmtree({str(tmp_path / 'gone')!r}); sys.exit(1)")
    rest = task(tmp_path, "rest", "print('x')")
    errors = run_tasks([gone, rest], 1, lambda text: None)
    assert list(errors) == ["gone"] and "was removed while it ran" in errors["gone"]
    assert rest.is_done()
