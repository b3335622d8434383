"""Kills a sweep and a table with kill -9, again and again, and compares the end with that of one that ran in peace.

    python tools/kill_sweeps.py [KILLS [NAME]]   # 20 for the sweep and 20 for the table: about five minutes

The jobs are commands of half a second that count their starts and steps, for the schedulers are what is tried: each job
goes on from its own last step, as a training run does from its checkpoint. It must hold: no step is done twice, no
finished job starts again, nothing is left at work, and the results are those of an undisturbed run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

#: Ten steps of 30 ms; a step is a line in "steps", and the result follows from all of them.
JOB = """
import json, os, pathlib, sys, time
folder, number = pathlib.Path(sys.argv[1]), int(sys.argv[2])
with (folder / "starts").open("a") as file: file.write(f"{os.getpid()}\\n")
steps = folder / "steps"
done = len(steps.read_text().splitlines()) if steps.exists() else 0
for step in range(done, 10):
    time.sleep(0.03)
    with steps.open("a") as file: file.write(f"{step}\\n")
value = sum(int(line) * number for line in steps.read_text().splitlines())
temporary = folder / f".{os.getpid()}.tmp"
temporary.write_text(json.dumps(RESULT))
temporary.replace(folder / TARGET)
"""
SWEEP_JOB = (
    JOB.replace("RESULT", '{"key": os.environ["PARTCRAFT_LIT_JOB"], "objective": None, "value": value}')
    .replace("TARGET", '"job_result.json"')
    .replace("pathlib.Path(sys.argv[1]), int(sys.argv[2])", "pathlib.Path(given['hydra.run.dir']), int(given['seed'])")
    .replace(
        "folder, number",
        "given = {k: v.strip(\"'\") for k, _, v in (t.partition('=') for t in sys.argv[1:])}\nfolder, number",
        1,
    )
)
#: ``partcraft pretrain -m seed=1,2,...`` with that job in place of the command; everything else is the real thing.
SWEEP = """
import sys
from partcraft_lit import cli
from partcraft_lit.config import launchers
launchers.python_command = lambda *given: (sys.executable, "-S", "-c", {job!r}, *given)
cli.main(["pretrain", "-m", "seed=1,2,3,4,5,6,7,8", "hydra.launcher.jobs=2", "hydra.sweep.dir=sweep"])
"""
#: The scheduler as a table uses it: two steps for each run, each done when its file is there.
TABLE = """
import sys
from pathlib import Path
from partcraft_lit.scheduling.ledger import Ledger
from partcraft_lit.scheduling.schedule import run_tasks
from partcraft_lit.scheduling.settings import PoolSettings
from partcraft_lit.scheduling.tasks import Step, Task
tasks = []
for number in range(1, 9):
    folder = Path("table").absolute() / str(number)
    steps = [Step((sys.executable, "-S", "-c", job, str(folder), str(number)), (folder / name).is_file)
             for name, job in {jobs!r}]
    tasks.append(Task(f"run {{number}}", folder, tuple(steps), key=str(number)))
outcome = run_tasks(tasks, PoolSettings(2), lambda text: print(text, flush=True), Ledger(Path("table")))
sys.exit(bool(outcome.failed))
"""


def main() -> int:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    scored = JOB.replace('"steps"', '"scoring"').replace("range(done, 10)", "range(done, 3)")
    jobs = [("trained.json", JOB), ("scored.json", scored)]
    jobs = [(name, job.replace("RESULT", "value").replace("TARGET", repr(name))) for name, job in jobs]
    programs = {"sweep": SWEEP.format(job=SWEEP_JOB), "table": TABLE.format(jobs=jobs)}
    faults = 0
    for name in sys.argv[2:] or programs:
        program = programs[name]
        with tempfile.TemporaryDirectory() as root:
            wanted = results(run_in_peace(name, program, Path(root) / "peace"))
            seconds = time.monotonic()
            count, found = drill(name, program, Path(root) / "killed", kills, wanted)
            print(f"{name}: {count} kills, {len(found)} faults, {time.monotonic() - seconds:.0f} s", flush=True)
            for fault in found:
                print(f"  {fault}")
            faults += len(found)
    return int(faults > 0)


def run_in_peace(name: str, program: str, folder: Path) -> Path:
    folder.mkdir()
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / name


def drill(name: str, program: str, folder: Path, kills: int, wanted: dict[str, str]) -> tuple[int, list[str]]:
    """Kills as often as asked, in as many sweeps as that takes; returns the kills and what was wrong."""
    random.seed(0)
    count, found = 0, []
    while count < kills:
        place = folder / str(count)
        place.mkdir(parents=True)
        while count < kills and not ended(program, place, name):
            count += 1
            if orphans := at_work(place):
                found.append(f"kill {count}: {orphans} at work after it")
        subprocess.run([sys.executable, "-c", program], cwd=place, check=True, stdout=subprocess.DEVNULL)
        found += faults_of(place / name, wanted)
    return count, found


def ended(program: str, place: Path, name: str) -> bool:
    """Starts the command and kills it at a random moment after its first job began; whether it ended before."""
    begun = sum(1 for _ in place.glob(f"{name}/*/starts"))
    with subprocess.Popen([sys.executable, "-c", program], cwd=place, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while process.poll() is None and sum(1 for _ in place.glob(f"{name}/*/starts")) == begun:
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.6))
        if process.poll() is not None:
            return True
        os.kill(process.pid, signal.SIGKILL)
    return False


def at_work(place: Path) -> list[int]:
    """Processes that were started below a folder and live five seconds after the kill."""
    pids = {int(line) for file in place.glob("*/*/starts") for line in file.read_text(encoding="utf-8").split()}
    until = time.monotonic() + 5
    while (alive := [pid for pid in pids if is_alive(pid, str(place))]) and time.monotonic() < until:
        time.sleep(0.02)
    return alive


def is_alive(pid: int, place: str) -> bool:
    try:
        return place in Path(f"/proc/{pid}/cmdline").read_bytes().decode() or place == str(
            Path(f"/proc/{pid}/cwd").readlink()
        )
    except OSError:
        return False


def faults_of(folder: Path, wanted: dict[str, str]) -> list[str]:
    """What differs from a run in peace, and what was done twice."""
    found = [] if results(folder) == wanted else [f"{folder}: other results: {results(folder)}"]
    for file in folder.glob("*/s*"):
        if file.name in ("steps", "scoring"):
            lines = file.read_text(encoding="utf-8").split()
            if lines != [str(number) for number in range(len(lines))]:
                found.append(f"{file}: {lines}")
    latest = {}
    for line in (folder / "jobs.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if latest.get(entry["key"]) == "done" and entry["status"] != "done":
            found.append(f"{folder}: job {entry['name']} ran again after it was done")
        latest[entry["key"]] = entry["status"]
    if set(latest.values()) != {"done"}:
        found.append(f"{folder}: the ledger ends with {latest}")
    return found


def results(folder: Path) -> dict[str, str]:
    files = [path for pattern in ("*/*.json", "*.csv") for path in folder.glob(pattern)]
    texts = {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in sorted(files)}
    # times differ
    return {name: text if not name.endswith(".csv") else without_seconds(text) for name, text in texts.items()}


def without_seconds(table: str) -> str:
    rows = [line.split(",") for line in table.splitlines()]
    place = rows[0].index("seconds")
    return "\n".join(",".join([*row[:place], *row[place + 1 :]]) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
