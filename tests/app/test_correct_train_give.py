"""A real browser corrects a part, trains and stops, and exports."""

from __future__ import annotations

import json
import zipfile

import pytest
from helpers import eventually

import partcraft_lit as pc
from partcraft_lit.commands.app.train import Trainer
from workshop import SMALL

pytestmark = pytest.mark.app


def test_a_corrected_part_is_seen_everywhere(open_page, address, run, logs):
    page = open_page(f"{address}/#correct")
    page.wait_for_selector(".part-row")
    names = [part.name for part in run.parts]
    page.fill('.part-row input[data-part="1"]', "crest")
    page.keyboard.press("Enter")
    page.wait_for_selector("#apply")
    assert page.locator("#changes li").all_inner_texts() == [f"{names[1]} is called crest"]
    page.click("#apply")
    page.wait_for_selector('section[aria-label="crest"]')
    assert (run.folder / "parts.yaml").is_file()
    assert pc.open_run(run.folder, device="cpu").parts[1].name == "crest"

    page.click('nav a[href="#pick"]')
    page.wait_for_selector('.pill[data-part="1"] >> text=crest')
    assert page.locator('.slot[data-part="1"]').inner_text().startswith("Crest")
    other = open_page(f"{address}/#compose")
    other.wait_for_selector(".slot")
    assert "Crest" in other.locator(".slots").inner_text()

    page.click('nav a[href="#correct"]')
    page.click("#undo")
    page.wait_for_selector(f'section[aria-label="{names[1]}"]')
    assert pc.open_run(run.folder, device="cpu").parts[1].name == names[1]


def test_names_that_cannot_be_are_a_sentence(open_page, address):
    page = open_page(f"{address}/#correct")
    page.wait_for_selector(".part-row")
    page.fill('.part-row input[data-part="1"]', "two words")
    page.keyboard.press("Enter")
    page.click("#apply")
    page.wait_for_selector(".toast.bad")
    assert "cannot name a part" in page.locator(".toast.bad span").inner_text()
    page.get_by_role("button", name="Forget these").click()
    page.wait_for_selector("#changes", state="hidden")


def test_train_ten_steps_and_stop(open_page, address, pictures, logs, workshop, monkeypatch, tmp_path):
    (logs / "images").symlink_to(pictures)  # a data set behind a link, below a folder that may be read
    tiny = [text for text in (*SMALL, *workshop.arguments) if not text.startswith(("dataset", "trainer.max_steps"))]
    own = Trainer.overrides

    def overrides(self, request, verb):  # the smallest model, so that a test trains in seconds
        given = [text for text in own(self, request, verb) if not text.startswith(("backbone", "parts.features"))]
        known = ("parts", "features", "paths.store") if verb == "discover" else ("",)
        return [*given, *(text for text in tiny if text.startswith(known))]

    monkeypatch.setattr(Trainer, "overrides", overrides)
    monkeypatch.setattr(Trainer, "_folder", lambda self, text: (logs / text).resolve())
    page = open_page(f"{address}/#train")
    page.wait_for_selector("#train-start")
    page.check('input[name="data"][value="folder"]')
    page.fill("#train-folder", "images")
    page.click("#train-look")
    page.wait_for_selector('.job[data-kind="discover"][data-state="done"] img', timeout=120_000)

    page.fill("#train-steps", "100000")
    page.check("#train-quick")
    page.click("#train-start")
    page.wait_for_selector('.job[data-kind="train"][data-state="running"]')
    page.click("#train-start")  # one at a time
    page.wait_for_selector(".toast.bad")
    assert "still running" in page.locator(".toast.bad span").inner_text()
    job = page.locator(".job[data-kind='train']").first
    eventually(page, "Number(document.querySelector('.job[data-kind=train]').dataset.step) >= 10", 180)
    page.close()  # the browser is closed, and training goes on

    page = open_page(f"{address}/#train")
    page.wait_for_selector('.job[data-kind="train"][data-state="running"]')
    page.click('[data-task="stop"]')
    page.wait_for_selector('.job[data-kind="train"][data-state="stopped"]', timeout=120_000)
    job = page.locator(".job[data-kind='train']").first
    reached = int(job.get_attribute("data-step"))
    page.click('[data-task="resume"]')
    eventually(page, f"Number(document.querySelector('.job[data-kind=train]').dataset.step) > {reached}", 180)
    page.click('[data-task="stop"]')
    page.wait_for_selector('.job[data-kind="train"][data-state="stopped"]', timeout=120_000)


def test_folders_outside_are_refused(open_page, address, tmp_path, logs):
    (logs / "out").symlink_to(tmp_path)
    page = open_page(f"{address}/#train")
    page.wait_for_selector("#train-start")
    page.check('input[name="data"][value="folder"]')
    for place in ("/etc", "..", str(tmp_path), "out"):
        page.fill("#train-folder", place)
        page.click("#train-look")
        page.wait_for_selector(".toast.bad")
        assert "outside" in page.locator(".toast.bad span").last.inner_text()
        eventually(page, "document.querySelector('.toast.bad')?.remove() ?? true")


def test_export(open_page, address, run, tmp_path):
    page = open_page(f"{address}/#give")
    page.wait_for_selector("#give-start")
    choice = page.locator("[data-choice]").first
    choice.check()
    part, code = (int(text) for text in choice.get_attribute("data-choice").split(":"))
    page.uncheck('input[value="a1111"]')
    page.fill("#give-name", "mine")
    page.click("#give-start")
    page.wait_for_selector('#exports .job[data-state="done"] a.primary', timeout=240_000)
    assert page.locator("#exports .files li").first.inner_text().startswith("diffusers draws the same image")
    with page.expect_download() as download:
        page.locator("#exports a.primary").click()
    download.value.save_as(tmp_path / "export.zip")
    with zipfile.ZipFile(tmp_path / "export.zip") as archive:
        names = archive.namelist()
        manifest = json.loads(archive.read(next(name for name in names if name.endswith("export.json"))))
    assert [(entry["part"], entry["code"]) for entry in manifest["parts"]] == [(part, code)]
    assert any("/comfyui/" in name for name in names) and not any("/a1111/" in name for name in names)


def test_the_public_gets_none_of_this(make_app, open_page):
    import httpx

    address = make_app(public=True)
    page = open_page(address)
    page.wait_for_selector(".tile .fit")
    assert page.locator("nav a").all_inner_texts() == ["Pick", "Compose"]
    name = httpx.get(f"{address}/api/app").json()["run"]
    for path in ("/api/jobs", "/api/folders", f"/api/runs/{name}/corrections"):
        assert httpx.get(address + path).status_code == 404
    for path in ("/api/jobs/train/start", f"/api/runs/{name}/export", f"/api/runs/{name}/corrections"):
        assert httpx.post(address + path, json={}).status_code in (404, 405)


def test_an_export_can_be_composed_with(make_app, open_page, run, logs, monkeypatch):
    from partcraft_lit import cli

    folder = logs / "an export"
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["export", f"run={run.folder}", "to=[diffusers]", f"output_dir={folder}", "trainer=cpu", "thumbnails=2"]
        )
    assert ended.value.code == 0
    monkeypatch.chdir(logs)
    page = open_page(make_app(first=folder))
    page.wait_for_selector(".empty")  # it came without its images
    assert page.locator("nav a").all_inner_texts() == ["Pick", "Compose", "Train"]
    page.click("#surprise")
    eventually(page, "document.querySelector('.slot').dataset.codes")
    page.wait_for_selector(".toast.bad")  # its base model is a folder that this export does not name: one sentence
    assert "This export is for" in page.locator(".toast.bad span").inner_text()
