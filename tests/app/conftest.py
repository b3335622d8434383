"""The app on the shared tiny run, and Debian's Chromium."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for helpers: pytest's importlib mode adds no folder by itself

import partcraft_lit as pc

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def logs(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of logs with a copy of the shared run, which tests may change."""
    root = tmp_path_factory.mktemp("logs")
    shutil.copytree(tiny_run, root / "train" / "runs" / tiny_run.name)
    return root


@pytest.fixture(scope="module")
def make_app(logs: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory):
    """``make_app(**settings) -> address`` of an app on a free port."""
    pytest.importorskip("gradio")
    from partcraft_lit.commands.app.server import start
    from partcraft_lit.commands.app.settings import ServerSettings

    servers = []

    def make(first: Path | None = logs / "train" / "runs" / tiny_run.name, folder: Path | None = None, **changed):
        values = {
            "host": "127.0.0.1",
            "port": 0,
            "user": "partcraft",
            "password": None,
            "public": False,
            "open_browser": False,
            "folders": (logs,),
            "max_upload_mb": 4,
            "max_images": 8,
            "max_waiting": 200,
            "kept_results": 50,
            **changed,
        }
        own = folder or tmp_path_factory.mktemp("app")
        server, address = start(ServerSettings(**values), own, logs=logs, first=first)
        servers.append(server)
        return address.rstrip("/")

    yield make
    for server in servers:
        server.close(verbose=False)


@pytest.fixture(scope="module")
def address(make_app) -> str:
    return make_app()


@pytest.fixture(scope="module")
def run(logs: Path, tiny_run: Path) -> pc.Run:
    return pc.open_run(logs / "train" / "runs" / tiny_run.name, device="cpu")


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no Chromium; name it with the environment variable CHROMIUM")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=[*FLAGS])
        yield found
        found.close()


@pytest.fixture
def open_page(browser):
    """``open_page(address)``: a new visitor; errors of scripts and requests elsewhere fail the test."""
    contexts, problems = [], []

    def visit(address: str, **options):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((address.partition("#")[0], "data:", "blob:"))
                else problems.append(request.url)
            ),
        )
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert problems == []
