"""A SLURM of one node, this machine, to try jobs and to test them; no configuration of the system is touched.

    python tools/slurm_node.py check              says what it lacks here; exit code 1 if anything
    python tools/slurm_node.py install            the same, after an attempt to install it, where there are apt and root
    eval "$(python tools/slurm_node.py start)"    starts it, in a temporary folder, and sets SLURM_CONF for this shell
    sbatch docs/slurm/train.sbatch ...
    python tools/slurm_node.py stop               stops the daemons of $SLURM_CONF and removes their folder

Needs Debian's packages slurm-wlm and munge (or others with the same programs) and root, since slurmd starts jobs as
their owners. Processes are followed by /proc, and nothing is confined: it also runs in a container without cgroups.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo")
#: Debian's, which have them.
PACKAGES = "slurm-wlm munge"
#: In the order in which they are stopped.
_DAEMONS = ("slurmd", "slurmctld", "munged")
#: Tasks and memory that the node says it has: more than a small machine, since tests hardly use any.
_CPUS, _MEMORY_MB = 4, 4000
_STARTS_WITHIN_S = 30.0
_CONFIGURATION = """\
ClusterName=partcraft
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
KillWait=10
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=9
"""


def missing() -> str:
    """What a node cannot be started without here, in a sentence; "" if nothing."""
    absent = [name for name in PROGRAMS if _program(name) is None]
    if absent:
        return f"SLURM is not installed: there is no {', '.join(absent)}. On Debian: apt-get install {PACKAGES}."
    if os.geteuid() != 0:
        return "SLURM's daemons have to be started as root."
    return ""


def install() -> None:
    """Installs Debian's packages where that is possible and something is missing."""
    if missing() and os.geteuid() == 0 and (apt := shutil.which("apt-get")):
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        network = ["-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=1"]  # where there is none, know it soon
        for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *PACKAGES.split()]):
            subprocess.run([apt, *network, *command], env=quiet, stdout=sys.stderr, check=False)


def start(folder: Path) -> Path:
    """Starts the daemons in an empty folder; returns the path of their configuration.

    Raises:
        RuntimeError: if a daemon does not start, or the node is not idle after a while; what they logged is shown.
    """
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    values = {"host": socket.gethostname().partition(".")[0], "folder": folder, "ports": (_free_port(), _free_port())}
    configuration.write_text(_CONFIGURATION.format(cpus=_CPUS, memory=_MEMORY_MB, **values), encoding="utf-8")
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid"}
    files |= {"log-file": folder / "munged.log", "seed-file": folder / "munged.seed"}
    munged = [f"--{name}={path}" for name, path in files.items()]
    try:
        # In a folder of /tmp that others may write to, it starts only when told so.
        for command in (["munged", "--force", *munged], ["slurmctld", "-c"], ["slurmd"]):
            started = subprocess.run(
                [_program(command[0]) or command[0], *command[1:]],
                env=environment,
                capture_output=True,
                encoding="utf-8",
            )
            if started.returncode:
                raise RuntimeError(f"{command[0]} does not start: {started.stdout}{started.stderr}")
        _wait_until_idle(environment)
    except RuntimeError as error:
        logs = "\n".join(
            f"{path.name}:\n{path.read_text(encoding='utf-8', errors='replace')[-3000:]}"
            for path in folder.glob("*.log")
        )
        stop(folder)
        raise RuntimeError(f"{error}\n{logs}") from None
    return configuration


def stop(folder: Path) -> None:
    """Cancels all jobs and stops the daemons; the folder stays."""
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run(["scancel", "--me", "--signal=KILL"], env=environment, capture_output=True, timeout=30, check=False)
    for name in _DAEMONS:
        _end(folder / f"{name}.pid")


def _end(pid_file: Path) -> None:
    """Ends the daemon that wrote the file, which removes it at its end."""
    try:
        process = int(pid_file.read_text(encoding="utf-8"))
        os.kill(process, signal.SIGTERM)
        for _ in range(100):
            time.sleep(0.1)
            os.kill(process, 0)
        os.kill(process, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return


def _wait_until_idle(environment: dict[str, str]) -> None:
    state = ""
    until = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < until:
        asked = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, encoding="utf-8")
        state = asked.stdout.strip() + asked.stderr.strip()
        if asked.returncode == 0 and set(asked.stdout.split()) == {"idle"}:
            return
        time.sleep(0.2)
    raise RuntimeError(f"The node is not idle after {_STARTS_WITHIN_S:.0f} s, but {state or 'silent'}.")


def _program(name: str) -> str | None:
    """Its path; the daemons are where only root's PATH leads."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("check", "install", "start", "stop"))
    action = parser.parse_args().action
    if action == "install":
        install()
    if action != "stop" and (lacks := missing()):
        sys.exit(lacks)
    if action == "start":
        folder = Path(tempfile.mkdtemp(prefix="partcraft-slurm-"))
        folder.chmod(0o755)
        print(f"export SLURM_CONF={start(folder)}")
    elif action == "stop":
        configuration = Path(os.environ.get("SLURM_CONF", ""))
        if not configuration.parent.name.startswith("partcraft-slurm-"):
            sys.exit("SLURM_CONF does not name a node that was started here.")
        stop(configuration.parent)
        shutil.rmtree(configuration.parent)


if __name__ == "__main__":
    main()
