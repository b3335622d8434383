"""The app in a real browser: ``python benchmarks/app.py [--run RUN] [--logs logs]``, on a run of the drawn zoo.

Seconds until the first page shows images, from a click to the part in its slot, of a preview and of four images; and
what it takes to jump through 10,000 images whose parts nobody has read yet, with the memory of the page. Needs the
extras ``app`` and ``app-test``.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from app_load import memory_mb, wait_for
from playwright.sync_api import Page, sync_playwright

from partcraft_lit.core import rundir

FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
#: Seconds that each may take.
GOALS = {"first page": 2.0, "click to slot": 0.15, "preview": 1.5, "four images": 6.0, "jump to images": 1.0}
_CLICK = """async (place) => {
    const fit = document.querySelectorAll(".tile .fit")[place], box = fit.getBoundingClientRect();
    const codes = () => [...document.querySelectorAll(".slot")].map((slot) => slot.dataset.codes).join("/");
    const before = codes(), begun = performance.now();
    const at = {clientX: box.left + box.width / 2, clientY: box.top + box.height / 2};
    fit.dispatchEvent(new MouseEvent("click", {bubbles: true, ...at}));
    while (codes() === before && performance.now() - begun < 3000) await new Promise(requestAnimationFrame);
    return (performance.now() - begun) / 1000;
}"""


def with_many_images(run: Path, folder: Path) -> Path:
    """A copy of a run of the zoo that has seen 10,000 drawings, 500 of each species."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluation", "samples", "attention", "*.png"))
    settings = folder / ".hydra" / "config.yaml"
    text, number = re.subn(r"images_per_species: \d+", "images_per_species: 500", settings.read_text(encoding="utf-8"))
    if number != 1:
        raise SystemExit(f"{run} is no run of the drawn zoo.")
    settings.write_text(text, encoding="utf-8")
    codes = folder / "parts" / "codes.csv"
    with codes.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    species: dict[str, list[list[str]]] = {}
    for row in rows:
        species.setdefault(row[0].partition("/")[0], []).append(row[1:])
    with codes.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for name, known in species.items():
            writer.writerows([f"{name}/{number:03d}", *known[number % len(known)]] for number in range(500))
    return folder


def measure(page: Page, address: str) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in list(GOALS)[:4]}
    for _ in range(3):
        begun = time.perf_counter()
        page.goto(address)
        page.wait_for_selector(".tile .fit img")
        times["first page"].append(time.perf_counter() - begun)
    for place in range(6):
        begun = time.perf_counter()
        seconds = page.evaluate(_CLICK, place)
        if seconds < 3:  # else the part was there already
            times["click to slot"].append(seconds)
        page.wait_for_timeout(90)
        page.wait_for_selector("#preview .busy", state="detached")
        times["preview"].append(time.perf_counter() - begun)
        page.wait_for_timeout(300)
    times["preview"] = times["preview"][1:]  # the first has loaded the model
    for _ in range(3):
        page.click("#make")
        page.wait_for_selector(".result .waiting")
        begun = time.perf_counter()
        page.wait_for_selector(".result .read")
        times["four images"].append(time.perf_counter() - begun)
        page.wait_for_timeout(300)
    return times


def scroll(page: Page, address: str) -> tuple[list[float], list[int], int]:
    """Jumps through the whole wall: seconds until images are there, and bytes of the page's heap."""
    page.goto(f"{address}/#pick")
    page.wait_for_selector(".tile .fit img")
    session = page.context.new_cdp_session(page)
    seconds, heaps = [], []
    for number in range(90):  # each place twice: the label maps of the first time are not in the store
        share = (number * 37 % 45) / 45
        begun = time.perf_counter()
        page.evaluate("(share) => window.scrollTo(0, share * document.body.scrollHeight)", share)
        page.wait_for_timeout(16)
        while not page.evaluate(_SHOWN):
            page.wait_for_timeout(16)
        seconds.append(time.perf_counter() - begun)
        if number % 10 == 9:
            session.send("HeapProfiler.collectGarbage")
            heaps.append(int(page.evaluate("performance.memory.usedJSHeapSize")))
    return seconds, heaps, page.evaluate("document.querySelectorAll('.tile').length")


#: Whether all tiles in sight have their pixels.
_SHOWN = """() => {
    const seen = [...document.querySelectorAll(".tile")].filter((tile) => {
        const box = tile.getBoundingClientRect();
        return box.bottom > 60 && box.top < innerHeight;
    });
    return seen.length > 0 && seen.every((tile) => tile.querySelector("img"));
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="latest")
    parser.add_argument("--logs", default="logs")
    parser.add_argument("--port", type=int, default=7897)
    args = parser.parse_args()
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    rows: dict[str, Any] = {}
    one = rundir.find_run(args.run, Path(args.logs) / "train" / "runs")
    place = Path(tempfile.mkdtemp())
    for run, many in ((one, False), (with_many_images(one, place / "many"), True)):
        command = [sys.executable, "-m", "partcraft_lit", "app", f"run={run}", f"app.port={args.port}"]
        settings = ["app.open_browser=false", f"paths.logs={args.logs}"]
        with subprocess.Popen([*command, *settings], stdout=subprocess.DEVNULL) as process, sync_playwright() as api:
            try:
                address = f"http://127.0.0.1:{args.port}"
                wait_for(address, process)
                flags = [*FLAGS, "--enable-precise-memory-info"]
                browser = api.chromium.launch(executable_path=path, args=flags)
                page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
                page.set_default_timeout(300_000)
                if many:
                    seconds, heaps, tiles = scroll(page, address)
                    rows["jump, read anew"], rows["jump to images"] = seconds[:45], seconds[45:]
                    print(f"tiles in the page {tiles}; heap after every 10 jumps, MB:", [h >> 20 for h in heaps])
                    print(f"memory of the app: {memory_mb(process.pid):.0f} MB")
                else:
                    rows |= measure(page, address)
                browser.close()
            finally:
                process.terminate()
    shutil.rmtree(place)
    print(f"{'what':18} {'median s':>9} {'worst s':>9} {'goal s':>7}")
    missed = 0
    for name, values in rows.items():
        median, goal = statistics.median(values), GOALS.get(name, float("inf"))
        missed += median > goal
        print(f"{name:18} {median:9.3f} {max(values):9.3f} {goal:7.2f}{'  MISSED' if median > goal else ''}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
