"""Builds the wheel and runs it from another folder: ``python tools/wheel_smoke.py``.

The wheel is installed alone into a fresh environment that borrows its dependencies from the running interpreter's, so
nothing is downloaded but the build backend. It finds what a checkout hides: configuration or weights missing from the
wheel, imports of modules outside the package, paths relative to the repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Run in an empty folder, the cheapest first; the last one discovers parts, trains one step and samples.
COMMANDS = (
    ["partcraft", "--version"],
    ["partcraft", "--help"],
    ["partcraft", "train", "--cfg", "job", "method=break_a_scene", "backbone=sd15"],
    ["partcraft", "doctor", "doctor.measure=false"],
    [
        "partcraft", "train", "trainer.max_steps=1", "dataset.species=2", "dataset.images_per_species=4",
        "parts.K=2", "data.batch_size=2", "sample.steps=2", "eval.enabled=false", "logger=none", "callbacks=none",
    ],
)  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="wheel-smoke-") as folder:
        smoke(Path(folder))
    print("The wheel works from another folder.")


def smoke(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], ROOT)
    (wheel,) = folder.glob("*.whl")
    print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB")

    environment, elsewhere = folder / "venv", folder / "elsewhere"
    elsewhere.mkdir()
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    # A path in a .pth file does not have its own .pth files read, so the editable install of this checkout stays out.
    (site_packages(environment) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], elsewhere)

    found = run([str(python), "-c", "import partcraft_lit; print(partcraft_lit.__file__)"], elsewhere).strip()
    if not Path(found).is_relative_to(environment):
        sys.exit(f"partcraft_lit was imported from {found}, not from the wheel.")
    for command in COMMANDS:
        print("$", *command, flush=True)
        run([str(environment / "bin" / command[0]), *command[1:]], elsewhere)


def site_packages(environment: Path) -> Path:
    return next((environment / "lib").glob("python*/site-packages"))


def run(command: list[str], folder: Path) -> str:
    """Standard output of ``command``; ends the process with all that it printed if it fails."""
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    settings |= {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
