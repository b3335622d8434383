"""The images of the app in the documentation: ``python tools/app_shots.py [--run RUN]``.

Starts the app on a run of the drawn zoo, drives it in Chromium, and writes a screenshot of each screen and the
animation of pick and compose into ``docs/images``. Needs the extras ``app`` and ``app-test``.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from app_load import wait_for
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import partcraft_lit as pc

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
#: Bytes that a file may have.
SHOT, FILM = 300_000, 1_500_000


def click(page: Page, place: int, x: float, y: float, film: Film | None = None) -> None:
    """Clicks on an image of the wall."""
    box = page.locator(".tile .fit").nth(place).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
    page.wait_for_timeout(250)
    if film is not None:
        film.take(page, 900, pointer=(box["x"] + x * box["width"], box["y"] + y * box["height"]))
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def middle(run: pc.Run, index: int, part: int) -> tuple[float, float]:
    """A place inside a part, as shares of the image."""
    labels = run.image(index).labels((96, 96))
    rows, columns = (labels == part).nonzero()
    near = ((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin()
    return float(columns[near] + 0.5) / 96, float(rows[near] + 0.5) / 96


class Film:
    """Frames of an animation."""

    def __init__(self) -> None:
        self.frames: list[Image.Image] = []
        self.times: list[int] = []

    def take(self, page: Page, milliseconds: int, pointer: tuple[float, float] | None = None) -> None:
        with Image.open(io.BytesIO(page.screenshot())) as image:
            frame = image.convert("RGB")
        if pointer is not None:
            _draw_pointer(frame, pointer)
        self.frames.append(frame.resize((880, 550), Image.Resampling.LANCZOS))
        self.times.append(milliseconds)

    def write(self, path: Path) -> None:
        """With as many colours as the size allows."""
        width, height = self.frames[0].size
        all_frames = Image.new("RGB", (width, height * len(self.frames)))
        for number, frame in enumerate(self.frames):
            all_frames.paste(frame, (0, number * height))
        for colors in (255, 160, 96, 48):
            palette = all_frames.quantize(colors, method=Image.Quantize.MEDIANCUT)
            frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self.frames]
            frames[0].save(path, save_all=True, append_images=frames[1:], duration=self.times, loop=0, optimize=True)
            if path.stat().st_size <= FILM:
                return
        raise SystemExit(f"{path} has {path.stat().st_size} bytes; {FILM} are allowed.")


def _draw_pointer(image: Image.Image, place: tuple[float, float]) -> None:
    from PIL import ImageDraw

    x, y = place
    outline = [(0, 0), (0, 19), (4.5, 15), (8, 22), (11, 20.5), (7.6, 14), (13.5, 14)]
    ImageDraw.Draw(image).polygon([(x + dx, y + dy) for dx, dy in outline], fill="white", outline="black")


def shoot(page: Page, path: Path) -> None:
    """A PNG, with fewer colours if it would be too large."""
    data = page.screenshot()
    with Image.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB")
    for colors in (256, 128, 64):
        rgb.quantize(colors, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(
            path, optimize=True
        )
        if path.stat().st_size <= SHOT:
            return
    raise SystemExit(f"{path} has {path.stat().st_size} bytes; {SHOT} are allowed.")


def indices(page: Page) -> list[int]:
    return page.locator(".frame[data-index]").evaluate_all("(all) => all.map((one) => Number(one.dataset.index))")


def film(page: Page, run: pc.Run, out: Path) -> None:
    """Two clicks, a surprise, four images."""
    frames = Film()
    frames.take(page, 1200)
    shown = indices(page)
    for place, part in ((1, 1), (2, 2), (3, 3)):
        click(page, place, *middle(run, shown[place], part), film=frames)
        page.wait_for_timeout(200)
        page.wait_for_selector("#preview-image:not(.stale)")
        page.mouse.move(640, 84)
        page.locator("#toasts").evaluate("(place) => place.replaceChildren()")
        page.wait_for_timeout(200)
        frames.take(page, 1300)
    shoot(page, out / "app-pick.png")
    click(page, 6, *middle(run, shown[6], 4))
    click(page, 5, *middle(run, shown[5], 5))
    page.wait_for_timeout(300)
    page.wait_for_selector("#preview-image:not(.stale)")
    page.mouse.move(640, 84)
    page.locator("#toasts").evaluate("(place) => place.replaceChildren()")
    frames.take(page, 1300)
    page.click("#make")
    page.wait_for_selector(".result .waiting")
    frames.take(page, 600)
    page.wait_for_selector(".result .read")
    page.wait_for_selector("#preview-image:not(.stale)")
    page.wait_for_timeout(500)
    frames.take(page, 3200)
    shoot(page, out / "app-compose.png")
    frames.write(out / "app.gif")


def screens(page: Page, out: Path) -> None:
    page.click('nav a[href="#correct"]')
    page.wait_for_selector(".part-row .samples img")
    page.wait_for_timeout(1500)
    shoot(page, out / "app-correct.png")
    page.click('nav a[href="#train"]')
    page.wait_for_selector("#train-start")
    page.check('input[name="data"][value="zoo"]')
    page.check("#train-quick")
    page.click("#train-start")
    page.wait_for_selector('.job[data-kind="train"] .progress', timeout=300_000)
    for _ in range(2400):
        step = page.locator(".job").first.get_attribute("data-step") or "0"
        if int(step) >= 300:
            break
        page.wait_for_timeout(500)
    shoot(page, out / "app-train.png")
    page.click('[data-task="stop"]')
    page.wait_for_selector('.job[data-state="stopped"]', timeout=120_000)
    page.click('nav a[href="#give"]')
    page.wait_for_selector(".pick-parts img")
    page.wait_for_timeout(1500)
    shoot(page, out / "app-give.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="latest")
    parser.add_argument("--logs", default="logs")
    parser.add_argument("--port", type=int, default=7898)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    args = parser.parse_args()
    command = [sys.executable, "-m", "partcraft_lit", "app", f"run={args.run}", f"app.port={args.port}"]
    with subprocess.Popen([*command, "app.open_browser=false", f"paths.logs={args.logs}"]) as process:
        try:
            address = f"http://127.0.0.1:{args.port}"
            wait_for(address, process)
            _visit(address, pc.open_run(args.run, logs=args.logs), args.out)
        finally:
            process.terminate()
    for path in sorted(args.out.glob("app*")):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def _visit(address: str, run: pc.Run, out: Path) -> None:
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=[*FLAGS])
        context: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
        page = browser.new_context(color_scheme="light", **context).new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        page.wait_for_selector(".tile .fit img")
        page.wait_for_timeout(1500)
        film(page, run, out)
        screens(page, out)
        browser.close()


if __name__ == "__main__":
    main()
