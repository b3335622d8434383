"""Training by torchrun on two hosts; network namespaces, which know each other over one cable, stand in for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from jobs import HERE, ROOT, SMALL, TRAINING

pytestmark = pytest.mark.slurm

STEPS = 6
#: Images are drawn for scores, and for the prior.
SCORED = (
    "method=custom_diffusion",
    "prior.images=4",
    "prior.steps=1",
    "prior.batch_size=2",
    "sample.steps=1",
    "eval.reconstructions=4",
    "eval.compositions=2",
    "eval.species=[2]",
    "eval.untrained=0",
    "eval.ceiling_images=2",
    "eval.pictures=[]",
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[str]]:
    """Two namespaces with an address each: 10.199.77.1 and 10.199.77.2 on their interfaces ``cable``."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("Network namespaces need root and the program ip (Debian's iproute2).")
    names = [f"partcraft-{os.getpid()}-{number}" for number in (1, 2)]

    def ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=check)

    if ip("netns", "add", names[0], check=False).returncode:
        pytest.skip("This system lets nobody make network namespaces.")
    try:
        ip("netns", "add", names[1])
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.199.77.{number}/24", "dev", "cable")
            for interface in ("lo", "cable"):
                ip("-n", name, "link", "set", interface, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name, check=False)


def torchrun(hosts: Sequence[str], processes: int, folder: Path, *overrides: str) -> None:
    """One command per host, as a person would give them; all have to end well."""
    settings = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable", "PYTHONPATH": f"{ROOT / 'src'}:{HERE}"}
    folder.mkdir()
    started, said = [], [folder / f"host_{number}.txt" for number in range(1, len(hosts) + 1)]
    for number, (host, output) in enumerate(zip(hosts, said, strict=True), start=1):
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(hosts)}"]
        meeting = [
            f"--nproc-per-node={processes}",
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=10.199.77.1:29555",
            f"--rdzv-conf=is_host={number == 1}",  # a real host finds its name at that address
            f"--local-addr=10.199.77.{number}",
        ]
        shape = [f"trainer.devices={processes}", f"trainer.num_nodes={len(hosts)}", "trainer.strategy=ddp"]
        own = [f"paths.store={folder / 'store'}", f"hydra.run.dir={folder / 'run'}"]
        command = [*launcher, *meeting, "-m", "partcraft_lit", "train", *overrides, *shape, *own]
        with output.open("w") as file:
            started.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", host, *command],
                    env={**os.environ, **settings},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    codes = wait(started)
    texts = [output.read_text() for output in said]
    assert codes == [0] * len(hosts), "\n\n".join(map(str, [codes, *texts]))
    assert "".join(texts).count("Report: ") == 1


def wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float = 300) -> list[int | None]:
    """Exit codes at the end of all, or of the first that fails: torchrun on the other host would wait for minutes."""
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            codes = [process.poll() for process in processes]
            if None not in codes or any(codes):
                break
            time.sleep(0.1)
        return [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_two_hosts_train_and_score_what_one_host_does(hosts: list[str], tiny_sd_folder: Path, tmp_path: Path) -> None:
    overrides = [text for text in TRAINING if not text.startswith(("eval.enabled", "trainer.max_steps"))]
    overrides = [*SMALL, *overrides, *SCORED, f"trainer.max_steps={STEPS}", f"backbone.source={tiny_sd_folder}"]
    torchrun(hosts[:1], 2, tmp_path / "one", *overrides)
    torchrun(hosts, 1, tmp_path / "two", *overrides)
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    weights = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, two)]
    assert weights[0]["global_step"] == weights[1]["global_step"] == STEPS
    assert weights[0]["state_dict"].keys() == weights[1]["state_dict"].keys()
    for name, value in weights[0]["state_dict"].items():
        assert torch.equal(value, weights[1]["state_dict"][name]), name
    for name in ("scores.json", "evaluation/scores.csv", "parts/dictionary.json", "parts/codes.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    images = sorted(path.relative_to(one) for path in one.rglob("evaluation/**/*.png"))
    assert images and all((one / path).read_bytes() == (two / path).read_bytes() for path in images)
