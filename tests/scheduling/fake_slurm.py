"""A cluster of this machine alone, for tests: stand-ins for sbatch, srun, squeue, scontrol and scancel.

The state of a job is a folder below ``$FAKE_SLURM``. Signals go to every process of a job, as SLURM's do.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ["FAKE_SLURM"])


def sbatch(arguments: list[str]) -> None:
    script = Path(arguments[-1]).resolve()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script.read_text(encoding="utf-8"), re.MULTILINE))
    if options.get("partition", "").strip("'") == "nowhere":
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    job = 100 + len(list(ROOT.glob("submitted-*")))
    (ROOT / f"submitted-{job}").write_text(json.dumps(options), encoding="utf-8")
    array = re.match(r"(\d+)-(\d+)", options.get("array", ""))
    names = [f"{job}_{i}" for i in range(int(array[2]) + 1)] if array else [str(job)]
    print(f"Submitted batch job {job}", flush=True)
    for name in names:
        (ROOT / name).mkdir()
        (ROOT / name / "script").write_text(str(script), encoding="utf-8")
        start(name)


def start(name: str) -> None:
    job, _, element = name.partition("_")
    variables = {"SLURM_JOB_ID": name, "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
    variables |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "here"}
    if element:
        variables |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": element}
    script = (ROOT / name / "script").read_text(encoding="utf-8")
    with (ROOT / name / "output").open("a", encoding="utf-8") as output:
        process = subprocess.Popen(
            ["bash", script], env=os.environ | variables, stdout=output, stderr=output, start_new_session=True
        )
    (ROOT / name / "pid").write_text(str(process.pid), encoding="utf-8")


def srun(arguments: list[str]) -> None:
    """The task's output goes where srun would put it, by its own name."""
    place = {"%j": os.environ["SLURM_JOB_ID"], "%A": os.environ.get("SLURM_ARRAY_JOB_ID", ""), "%t": "0"}
    place["%a"] = os.environ.get("SLURM_ARRAY_TASK_ID", "")
    while arguments[0].startswith("--"):
        option = arguments.pop(0)
        if option in ("--output", "--error"):
            path = arguments.pop(0)
            for sign, value in place.items():
                path = path.replace(sign, value)
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(number, 1 if option == "--output" else 2)
    os.execvp(arguments[0], arguments)


def alive(name: str) -> bool:
    try:
        pid = int((ROOT / name / "pid").read_text(encoding="utf-8"))
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (OSError, ValueError):
        return not (ROOT / name / "pid").exists()


def squeue(_arguments: list[str]) -> None:
    for folder in sorted(ROOT.iterdir()):
        if folder.is_dir() and alive(folder.name):
            print(folder.name, "RUNNING")


def scontrol(arguments: list[str]) -> None:
    """requeue: the job ends and starts again, by a process that outlives both."""
    name = arguments[1]
    pid = int((ROOT / name / "pid").read_text(encoding="utf-8"))
    (ROOT / name / "pid").unlink()
    code = "import os, sys, time\nwhile os.path.exists('/proc/%s' % sys.argv[1]): time.sleep(0.05)\n"
    code += "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    again = [sys.executable, "-S", "-c", code, str(pid), __file__, "start", name]
    subprocess.Popen(again, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def scancel(arguments: list[str]) -> None:
    number = signal.SIGKILL
    for text in arguments:
        if text.startswith("--signal="):
            number = signal.Signals[f"SIG{text.partition('=')[2]}"]
    for session in [int((ROOT / text / "pid").read_text(encoding="utf-8")) for text in arguments if text[0] != "-"]:
        for pid in descendants(session):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def descendants(root: int) -> list[int]:
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                stat = (folder / "stat").read_text(encoding="utf-8")
            except OSError:
                continue
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]  # SLURM signals the steps, not the shell of the script


if __name__ == "__main__":
    command, *given = sys.argv[1:]
    if command == "start":
        start(given[0])
    else:
        globals()[command](given)
