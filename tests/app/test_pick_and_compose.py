"""A real browser picks parts by clicking on pixels, composes, reads the result, and brings it back from its PNG."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import eventually
from PIL import Image

import partcraft_lit as pc

pytestmark = pytest.mark.app


def pixel_of(run: pc.Run, index: int, part: int) -> tuple[float, float]:
    """A place well inside a part of an image, as shares of its width and height."""
    view = run.image(index)
    width, height = view.size
    labels = view.labels((width * 4, height * 4))
    inside = labels == part
    for _ in range(12):  # shrink towards the middle
        smaller = inside.copy()
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            smaller &= np.roll(inside, step, axis)
        if not smaller.any():
            break
        inside = smaller
    rows, columns = np.nonzero(inside)
    place = len(rows) // 2
    return (columns[place] + 0.5) / labels.shape[1], (rows[place] + 0.5) / labels.shape[0]


def click_part(page, run: pc.Run, index: int, part: int) -> None:
    x, y = pixel_of(run, index, part)
    fit = page.locator(f'.frame[data-index="{index}"] .fit')
    fit.scroll_into_view_if_needed()
    box = fit.bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def images_with(run: pc.Run, part: int) -> list[int]:
    return [info.index for info in run.images(part=part)]


def slot_codes(page, part: int) -> str:
    return page.locator(f'.slot[data-part="{part}"]').get_attribute("data-codes")


def drop_file(page, path: Path, kind: str) -> None:
    """Drops a file on the page, as a person does."""
    data = page.evaluate_handle(
        """([name, kind, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name, {type: kind}));
            return transfer;
        }""",
        [path.name, kind, list(path.read_bytes())],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("body", event, {"dataTransfer": data})


@pytest.fixture
def picked(open_page, address, run):
    """A page on which one part of one image and another part of another image were clicked."""
    page = open_page(address)
    page.wait_for_selector(".tile .fit")
    first = images_with(run, 1)[0]
    second = next(index for index in images_with(run, 2) if index != first)
    click_part(page, run, first, 1)
    click_part(page, run, second, 2)
    return page, [run.image(first).choice(1), run.image(second).choice(2)]


def test_a_preview_that_was_left_is_drawn_on_the_next_screen(picked):
    page, _ = picked
    page.click("#make")  # while the preview is being drawn
    page.wait_for_selector(".result .read")
    page.wait_for_selector("#preview-image:not(.stale)", timeout=20_000)


def test_the_preview_becomes_the_image_that_was_made_of_it(picked):
    page, _ = picked
    preview = "document.querySelector('#preview-image:not(.stale)')?.getAttribute('src')"
    of_few_steps = f"{preview}?.startsWith('data:')"
    is_made = f"{preview} === document.querySelector('.result img').getAttribute('src')"
    page.click("#make")
    page.wait_for_selector(".result .read")
    eventually(page, is_made)
    for seed, expected in (("7", of_few_steps), ("0", is_made)):
        page.fill("#set-seed", seed)
        page.press("#set-seed", "Enter")
        eventually(page, expected)
    page.dispatch_event("#preview-image", "error")  # a server that was started anew has it no more
    eventually(page, of_few_steps)


def test_two_clicks_compose_and_the_png_brings_it_back(picked, open_page, address, run, tmp_path):
    page, choices = picked
    assert [slot_codes(page, 1), slot_codes(page, 2)] == [str(choice.code) for choice in choices]
    page.wait_for_selector("#preview-image")

    page.click("#make")
    page.wait_for_selector(".result .read")
    assert page.locator(".result").count() == 4
    first = page.locator(".result").first
    reads = first.locator(".read")
    assert [reads.nth(place).get_attribute("data-asked") for place in range(2)] == [str(c.code) for c in choices]

    with page.expect_download() as download:
        first.locator("a[download]").click()
    path = tmp_path / "creature.png"
    download.value.save_as(path)
    stored = pc.Composition.from_png(path)
    assert [(choice.part, choice.code) for choice in stored.choices] == [(c.part, c.code) for c in choices]
    view = run.read(path)  # what the page says of the image is what the API reads in it
    for place, choice in enumerate(choices):
        found = None
        if choice.part in view.codes:
            index, labelled = run.part(choice.part).index, (view.tensor, torch.from_numpy(view.label_map))
            cosines = run.stored.isolated.cosines(labelled, view.part_feature(choice.part), index, [choice.code])
            found = max(cosines, key=cosines.get)
        assert reads.nth(place).get_attribute("data-found") == ("" if found is None else str(found))
        assert reads.nth(place).get_attribute("data-matches") == str(found == choice.code).lower()

    fresh = open_page(address)
    fresh.wait_for_selector(".tile .fit")
    assert slot_codes(fresh, 1) == ""
    drop_file(fresh, path, "image/png")
    eventually(fresh, "document.querySelector('.slot[data-part=\"2\"]')?.dataset.codes")
    assert [slot_codes(fresh, 1), slot_codes(fresh, 2)] == [str(choice.code) for choice in choices]
    fresh.click("#make")
    fresh.wait_for_selector(".result .read")
    assert fresh.locator(".result").count() == 1
    with fresh.expect_download() as download:
        fresh.locator(".result a[download]").click()
    download.value.save_as(tmp_path / "again.png")
    with Image.open(path) as one, Image.open(tmp_path / "again.png") as other:  # alone and in a batch: up to rounding
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 2


def test_hover_names_what_a_click_takes(open_page, address, run):
    page = open_page(address)
    page.wait_for_selector(".tile .fit")
    for index in (0, 1):  # a square image and a wide one
        view = run.image(index)
        box = page.locator(f'.frame[data-index="{index}"] .fit').bounding_box()
        for x, y in np.random.default_rng(index).uniform(0.02, 0.98, (12, 2)):
            column, row = np.floor([x * view.size[0], y * view.size[1]])
            page.mouse.move(
                box["x"] + (column + 0.5) / view.size[0] * box["width"],
                box["y"] + (row + 0.5) / view.size[1] * box["height"],
            )
            choice = view.part_at(column, row)
            expected = "Background" if choice is None else choice.part.capitalize()
            assert page.locator(".tag").inner_text() == expected


def test_a_click_is_in_the_tray_at_once(open_page, address, run):
    page = open_page(address)
    page.wait_for_selector(".tile .fit")
    index = images_with(run, 1)[0]
    x, y = pixel_of(run, index, 1)
    seconds = page.evaluate(
        """async ([index, x, y]) => {
            const fit = document.querySelector(`.frame[data-index="${index}"] .fit`), box = fit.getBoundingClientRect();
            const place = {clientX: box.left + x * box.width, clientY: box.top + y * box.height};
            const slot = () => document.querySelector('.slot[data-part="1"]');
            const begun = performance.now();
            fit.dispatchEvent(new MouseEvent("click", {bubbles: true, ...place}));
            while (!slot().dataset.codes) await new Promise(requestAnimationFrame);
            return (performance.now() - begun) / 1000;
        }""",
        [index, x, y],
    )
    assert seconds < 0.15


def test_two_tabs_do_not_disturb_each_other(picked, address):
    page, _ = picked
    other = page.context.new_page()
    other.goto(address)
    other.wait_for_selector(".tile .fit")
    assert slot_codes(other, 1) == ""
    other.click("#surprise")
    before = slot_codes(page, 1)
    eventually(other, "document.querySelector('.slot[data-part=\"1\"]').dataset.codes")
    assert slot_codes(page, 1) == before
    page.reload()
    page.wait_for_selector(".tile .fit")
    assert slot_codes(page, 1) == before  # and a reload loses nothing


def test_lock_weights_words_and_copies(picked, run):
    page, choices = picked
    page.locator('.slot[data-part="1"] button[aria-pressed]').first.click()
    for _ in range(6):
        page.click("#surprise")
    assert slot_codes(page, 1) == str(choices[0].code)

    page.click("#other-screen")
    page.wait_for_selector("#words-before")
    page.fill("#words-before", "a drawing of a")
    page.locator("#words-before").blur()
    page.fill("#words-after", "in the bad dark")
    page.locator("#words-after").blur()
    page.locator('.slot[data-part="1"] .what').click()
    weight = page.locator('.slot[data-part="1"] input[type=range]')
    weight.fill("1.5")
    page.click("#copy")
    page.wait_for_selector("dialog pre")
    prompt, command, python = page.locator("dialog pre").all_inner_texts()
    assert prompt.startswith("a drawing of a <") and prompt.endswith("in the bad dark") and "*1.5" in prompt
    assert command.startswith("partcraft generate") and run.name in command
    assert python.startswith("import partcraft_lit as pc")


def test_keyboard_alone(open_page, address):
    page = open_page(address)
    page.wait_for_selector(".tile .fit")
    page.locator(".frame[tabindex='0']").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog .part-button")
    page.locator("dialog .part-button").first.focus()
    page.keyboard.press("Enter")
    eventually(page, "[...document.querySelectorAll('.slot')].some((slot) => slot.dataset.codes)")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")


def test_search_filter_and_the_same_part_elsewhere(open_page, address, run):
    page = open_page(address)
    page.wait_for_selector(".tile .fit")
    page.fill("input[type=search]", "species 1")
    eventually(page, "document.querySelector('#count').textContent === '3 images'")
    page.fill("input[type=search]", "no such name")
    page.wait_for_selector(".empty")
    page.fill("input[type=search]", "")
    page.click('.pill[data-part="2"]')
    expected = len(run.images(part=2))
    eventually(page, f"document.querySelector('#count').textContent.startsWith('{expected} image')")


def test_a_photo_of_ones_own(open_page, address, run, tmp_path):
    path = tmp_path / "mine.png"
    run.image(3).pixels.save(path)
    page = open_page(address)
    page.wait_for_selector(".tile .fit")
    drop_file(page, path, "image/png")
    eventually(page, "document.querySelector('.tile .name')?.textContent === 'mine.png'")
    part = next(part for part in (1, 2) if run.read(path).part_codes[part] >= 0)
    page.locator(".tile .icon").first.click()
    page.locator(f'dialog .part-button[data-part="{part}"]').click()
    assert slot_codes(page, part) == str(int(run.read(path).part_codes[part]))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\nbroken", b"GIF89a" + bytes(40)])
def test_what_is_no_image_is_one_sentence(open_page, address, tmp_path, content):
    path = tmp_path / "wrong.png"
    path.write_bytes(content)
    page = open_page(address)
    page.wait_for_selector(".tile .fit")
    drop_file(page, path, "image/png")
    page.wait_for_selector(".toast.bad")
    assert page.locator(".toast.bad span").inner_text()
    page.click("#surprise")  # and the app goes on
    page.wait_for_selector("#preview-image")


def test_attention_history_and_comparison(picked):
    page, _ = picked
    page.click("#make")
    page.wait_for_selector(".result .read")
    page.locator('.result [aria-label="Where each part came from"]').first.click()
    page.wait_for_selector("dialog figure img")
    assert page.locator("dialog figure").count() == 2
    page.keyboard.press("Escape")
    page.locator('.result [aria-label="Compare with another image"]').first.click()
    page.locator("dialog input[type=range]").fill("20")
    assert page.locator(".compare").evaluate("(frame) => frame.style.getPropertyValue('--at')") == "20%"
    page.keyboard.press("Escape")
    before = slot_codes(page, 1)
    page.locator('.slot[data-part="1"] button[aria-label^="Remove"]').click()
    assert slot_codes(page, 1) == ""
    page.locator(".history .strip button").first.click()
    eventually(page, "document.querySelector('.slot[data-part=\"1\"]').dataset.codes")
    assert slot_codes(page, 1) == before


def test_drawing_can_be_stopped_and_errors_are_a_sentence(picked, address, logs, monkeypatch):
    page, _ = picked
    monkeypatch.setattr(pc.Run, "draw", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    page.click("#make")
    page.wait_for_selector(".toast.bad")
    assert "memory" in page.locator(".toast.bad span").first.inner_text()
    monkeypatch.setattr(pc.Run, "draw", lambda *_, **__: time.sleep(2) or [])
    page.click("#make")
    page.get_by_role("button", name="Stop").click()
    eventually(page, "[...document.querySelectorAll('.toast')].some((toast) => toast.textContent === 'Stopped.')")
    monkeypatch.undo()
    page.click("#make")
    page.wait_for_selector(".result .read")


def test_page_and_session_hold_no_words_of_the_trade(open_page, address):
    page = open_page(address)
    page.wait_for_selector(".tile .fit")
    text = page.locator("body").inner_text().lower()
    for word in ("token", "prompt", "embedding", "lora", "seed", "guidance", "steps", "code"):
        assert word not in text
    stored = json.loads(page.evaluate("sessionStorage.getItem('partcraft')"))
    assert set(stored) >= {"run", "slots", "history"}
