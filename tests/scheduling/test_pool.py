"""The pool: what is done, what fails, what is passed over, and what a killed scheduler leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.scheduling import gpus
from partcraft_lit.scheduling.ledger import Ledger
from partcraft_lit.scheduling.pool import run_in_pool
from partcraft_lit.scheduling.running import environment_of
from partcraft_lit.scheduling.settings import PoolSettings
from partcraft_lit.scheduling.tasks import Step, Task


def task(tmp_path: Path, name: str, code: str, *more: str) -> Task:
    """Each step runs Python code and is done when it has written ``<name>.<number>``."""
    folder = tmp_path / name
    steps = []
    for number, text in enumerate((code, *more)):
        mark = tmp_path / f"{name}.{number}"
        whole = f"import os, sys, pathlib\n{textwrap.dedent(text)}\npathlib.Path({str(mark)!r}).touch()"
        steps.append(Step((sys.executable, "-S", "-c", whole), mark.is_file))
    return Task(name, folder, tuple(steps), key=name)


def run(tasks, jobs=1, log=lambda text: None, **more):
    return run_in_pool(tasks, PoolSettings(jobs), log, **more).failed


def wait_for(condition, seconds=30.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_a_failure_is_noted_and_the_rest_goes_on(tmp_path):
    said = []
    tasks = [
        task(tmp_path, "one", "print('x')"),
        task(tmp_path, "bad", "print('partcraft: dataset.dir=/x is not a folder.'); sys.exit(2)", "print('never')"),
        task(tmp_path, "two", "print('first')", "print('second')"),
    ]
    ledger = Ledger(tmp_path)
    assert run(tasks, 2, said.append, ledger=ledger) == {"bad": "partcraft: dataset.dir=/x is not a folder."}
    assert tasks[0].is_done() and tasks[2].is_done() and not tasks[1].is_done()
    assert (tmp_path / "two" / "job.log").read_text() == "first\nsecond\n"
    assert said[0] == "0 of 3 jobs are done; 3 to do, 2 at once." and sum("FAILED" in line for line in said) == 1
    latest = ledger.latest()
    assert {key: entry.status for key, entry in latest.items()} == {"one": "done", "bad": "failed", "two": "done"}
    assert latest["bad"].code == 2 and latest["bad"].message == "partcraft: dataset.dir=/x is not a folder."
    assert latest["one"].folder == "one"


def test_what_is_done_is_not_started(tmp_path):
    one = task(tmp_path, "one", "print('x')", "print('y')")
    (tmp_path / "one.0").touch()
    assert run([one]) == {}
    assert (tmp_path / "one" / "job.log").read_text() == "y\n"
    assert run([one]) == {}
    assert (tmp_path / "one" / "job.log").read_text() == "y\n"


def test_a_command_that_leaves_nothing_has_failed(tmp_path):
    silent = Task("silent", tmp_path / "silent", (Step((sys.executable, "-S", "-c", ""), lambda: False),))
    assert run([silent]) == {"silent": "It ended with code 0 and without any output."}


def test_a_command_that_was_killed_says_so(tmp_path):
    killed = task(tmp_path, "killed", "print('working', flush=True); os.kill(os.getpid(), 9)")
    ledger = Ledger(tmp_path)
    assert run([killed], ledger=ledger)["killed"].startswith("working\nIt was killed (SIGKILL)")
    assert ledger.latest()["killed"].code == 137


def test_cores_and_devices_are_divided(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-ab,6,7")
    show = "print(os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES'])"
    tasks = [task(tmp_path, name, show + "; import time; time.sleep(0.3)") for name in "ab"]
    assert run_in_pool(tasks, PoolSettings(64, gpus=(1, 3)), lambda text: None).failed == {}
    assert {(tmp_path / name / "job.log").read_text() for name in "ab"} == {"1 GPU-ab\n", "1 7\n"}
    said = []
    tasks = [task(tmp_path, name, show + "; import time; time.sleep(0.3)") for name in "cd"]
    assert run_in_pool(tasks, PoolSettings(), said.append, gpus_each=2).failed == {}
    assert said[0].endswith("2 to do, 2 at once.")  # as many as there are pairs of GPUs
    assert {(tmp_path / name / "job.log").read_text().split()[1] for name in "cd"} == {"3,GPU-ab", "6,7"}


@pytest.mark.parametrize("given, threads", [("1", "1"), ("99", None), ("many", None), ("0", None)])
def test_threads_that_were_asked_for_stand_where_they_are_fewer(given, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    found = environment_of(1, None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == (threads or str(cores))


def test_a_command_that_reached_its_time_limit_has_not_failed(tmp_path):
    text = "print('step 3'); print('partcraft: stopped by trainer.max_time at step 3 of 6.'); sys.exit(75)"
    limited = task(tmp_path, "limited", f"import sys; assert os.environ['PARTCRAFT_LIT_SCHEDULED']; {text}")
    ledger, said = Ledger(tmp_path), []
    outcome = run_in_pool([limited], PoolSettings(), said.append, ledger)
    assert outcome.stopped == {"limited": "partcraft: stopped by trainer.max_time at step 3 of 6."}
    assert not outcome.failed and "limited: stopped after" in said[-1]
    assert ledger.latest()["limited"].status == "stopped"


def test_which_devices_are_dealt_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert gpus.deal(None) == ["4", "5"] and gpus.deal([1]) == ["5"] and gpus.deal(None, 0) == []
    with pytest.raises(UserError, match=r"gpus=\[2\]: there is no device 2; torch sees 2 here"):
        gpus.deal([2])
    with pytest.raises(UserError, match="Each job takes 3 GPUs"):
        gpus.deal(None, 3)
    for nothing in ("4", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert gpus.deal(None) == []


def test_a_folder_that_another_process_holds_is_waited_for(tmp_path):
    one = task(tmp_path, "one", "print('x')")
    code = (
        "import sys, time; from pathlib import Path; from partcraft_lit.core import rundir\n"
        "with rundir.held(Path(sys.argv[1])): print('held', flush=True); time.sleep(1.0)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(one.folder)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert rundir.in_use(one.folder)
        run([one])
        assert holder.poll() is not None or not rundir.in_use(one.folder)
    assert one.is_done()


def test_a_folder_that_vanishes_is_a_failed_job_and_no_crash(tmp_path):
    gone = task(tmp_path, "gone", f"import shutil; shutil.rmtree({str(tmp_path / 'gone')!r}); sys.exit(1)")
    rest = task(tmp_path, "rest", "print('x')")
    errors = run([gone, rest])
    assert list(errors) == ["gone"] and "was removed while it ran" in errors["gone"]
    assert rest.is_done()


SCHEDULER = """
import sys
from pathlib import Path
from partcraft_lit.scheduling.ledger import Ledger
from partcraft_lit.scheduling.pool import run_in_pool
from partcraft_lit.scheduling.settings import PoolSettings
from partcraft_lit.scheduling.tasks import Step, Task

root = Path(sys.argv[1])
tasks = []
for name in sys.argv[3].split(","):
    command = (sys.executable, "-S", "-c", sys.argv[4], str(root), name)
    tasks.append(Task(name, root / name, (Step(command, (root / name / "done").is_file),), key=name))
failed = run_in_pool(tasks, PoolSettings(int(sys.argv[2])), lambda text: print(text, flush=True), Ledger(root)).failed
sys.exit(bool(failed))
"""
#: Writes who it is, waits for the file "go", and is done. What it is told, it writes down.
WORKER = """
import os, pathlib, signal, subprocess, sys, time
root, name = pathlib.Path(sys.argv[1]), sys.argv[2]
def stop(number, frame):
    (root / f"{name}.told").write_text(str(number)); sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, stop)
with (root / "starts").open("a") as file: file.write(name + "\\n")
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(100)"])
(root / f"{name}.pids").write_text(f"{os.getpid()} {child.pid}")
while not (root / "go").exists(): time.sleep(0.02)
child.kill()
(root / name / "done").touch()
"""


def scheduler(root: Path, jobs: int, names: str, worker: str = WORKER) -> subprocess.Popen:
    command = [sys.executable, "-c", SCHEDULER, str(root), str(jobs), names, worker]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_scheduler_leaves_nothing_at_work_and_the_next_loses_nothing(tmp_path):
    with scheduler(tmp_path, 2, "a,b,c") as first:
        wait_for(lambda: (tmp_path / "a.pids").exists() and (tmp_path / "b.pids").exists())
        time.sleep(0.1)
        first.kill()
    pids = [int(pid) for name in "ab" for pid in (tmp_path / f"{name}.pids").read_text().split()]
    wait_for(lambda: not any(map(alive, pids)))
    assert {(tmp_path / f"{name}.told").read_text() for name in "ab"} == {str(int(signal.SIGTERM))}
    with (tmp_path / "jobs.jsonl").open("a") as file:
        file.write('{"key": "a", "sta')  # a line that was being written
    (tmp_path / "go").touch()
    with scheduler(tmp_path, 2, "a,b,c") as second:
        assert second.wait(60) == 0
    assert sorted((tmp_path / "starts").read_text().split()) == ["a", "a", "b", "b", "c"]
    assert {entry.status for entry in Ledger(tmp_path).latest().values()} == {"done"}
    broken = [line for line in (tmp_path / "jobs.jsonl").read_text().splitlines() if not line.endswith("}")]
    assert broken == ['{"key": "a", "sta']


def test_two_schedulers_share_the_work(tmp_path):
    (tmp_path / "go").touch()
    slow = WORKER.replace("child.kill()", "time.sleep(0.3); child.kill()")
    running = [scheduler(tmp_path, 1, "a,b,c,d", slow) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert sorted((tmp_path / "starts").read_text().split()) == ["a", "b", "c", "d"]
    for process in running:
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_commands(number, tmp_path):
    with scheduler(tmp_path, 1, "a,b") as running:
        wait_for((tmp_path / "a.pids").exists)
        time.sleep(0.1)
        os.kill(running.pid, number)
        running.wait(60)
    assert (tmp_path / "a.told").read_text() == str(int(number))
    assert (tmp_path / "starts").read_text() == "a\n"
    assert json.loads((tmp_path / "jobs.jsonl").read_text().splitlines()[-1])["status"] == "stopped"
