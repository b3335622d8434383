"""The app without gradio: who may reach it, what is let through, what is kept."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from pydantic import ValidationError

from partcraft_lit.commands import app
from partcraft_lit.commands.app.browse import Cache, _stride
from partcraft_lit.commands.app.draw import DrawRequest, sentence_of
from partcraft_lit.commands.app.guard import Guard
from partcraft_lit.commands.app.shelf import DrawnImages, RecentCache, Runs, title_of
from partcraft_lit.config import compose as config
from partcraft_lit.core.errors import UserError


def values(*overrides):
    return config.plain(config.compose("app", list(overrides)))


@pytest.fixture(autouse=True)
def with_gradio(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.delenv("PARTCRAFT_APP_PASSWORD", raising=False)


# Who may reach it.


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "example.org"])
def test_other_computers_need_a_password(host, tmp_path, monkeypatch):
    given = (f"app.host='{host}'", f"paths.logs={tmp_path}")
    with pytest.raises(UserError, match="a password is needed"):
        app.check(values(*given))
    with pytest.raises(UserError, match="at least 8"):
        app.check(values(*given, "app.password=short"))
    assert app.check(values(*given, "app.password=long enough")).app.password == "long enough"
    assert app.check(values(*given, "app.public=true")).app.public
    monkeypatch.setenv("PARTCRAFT_APP_PASSWORD", "from outside")
    assert app.check(values(*given)).app.password == "from outside"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "'::1'"])
def test_this_computer_needs_none(host, tmp_path):
    assert app.check(values(f"app.host={host}", f"paths.logs={tmp_path}")).app.password is None


def test_without_gradio_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"partcraft-lit\[app\]"):
        app.check(values(f"paths.logs={tmp_path}"))


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such run"):
        app.check(values("run=nowhere", f"paths.logs={tmp_path}"))
    with pytest.raises(UserError, match=r"app\.folders"):
        app.check(values("app.folders=[nowhere]", f"paths.logs={tmp_path}"))


# What is let through.


def ask(guard, path="/", method="GET", body=b"", **headers):
    """Status and headers that a request gets."""
    given = {"host": "127.0.0.1:7860", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "path": path,
        "method": method,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    chunks, sent = [body[start : start + 1000] for start in range(0, len(body), 1000)] or [b""], []

    async def receive():
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


async def echo(scope, receive, send):
    """Reads the whole body, and answers."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def guarded(inner=echo, **changed):
    given = {"host": "127.0.0.1", "user": "me", "password": None, "max_upload": 5000, **changed}
    return Guard(inner, **given)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/proxy=http://example.org",
        "/gradio_api/upload",
        "/gradio_api/component_server",
        "/gradio_api/info",
        "/config",
        "/monitoring",
        "/static/../../etc/passwd",
        "/svelte/x",
        "/gradio_api/stream/a/b/c/playlist.m3u8",
        "/page\\..\\x",
        "/page/\0",
        "/apix",
    ],
)
def test_nothing_of_gradio_is_open_but_the_queue(path):
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(guarded(), path, method, content_type="application/json")[0] == 404
    assert ask(guarded(), "/gradio_api/queue/join", "POST", content_type="application/json")[0] == 200


def test_answers_forbid_everything_from_elsewhere():
    status, headers = ask(guarded())
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "https://huggingface.co" in ask(guarded(framed=True))[1]["content-security-policy"]


def test_other_hosts_origins_and_forms_are_refused():
    assert ask(guarded(), host="evil.example:7860")[0] == 421  # a name that was rebound to this computer
    assert ask(guarded(host="0.0.0.0", password="12345678"), host="mine.example")[0] == 401
    post = {"path": "/api/x", "method": "POST"}
    assert ask(guarded(), **post, content_type="application/json", origin="http://127.0.0.1:7860")[0] == 200
    assert ask(guarded(), **post, content_type="application/json", origin="http://evil.example")[0] == 403
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""):
        assert ask(guarded(), **post, content_type=kind)[0] == 415


def test_bodies_are_counted():
    post = {"path": "/api/x", "method": "POST", "content_type": "application/octet-stream"}
    assert ask(guarded(), **post, body=b"x" * 5000)[0] == 200
    assert ask(guarded(), **post, body=b"x" * 5001)[0] == 413  # chunked, without a length
    assert ask(guarded(), **post, content_length="5001")[0] == 413
    assert ask(guarded(), **post, content_length="-1")[0] == 413


def test_a_password_is_asked_of_everybody():
    guard = guarded(password="secret word")
    status, headers = ask(guard)
    assert status == 401 and headers["www-authenticate"].startswith("Basic")
    good = base64.b64encode(b"me:secret word").decode()
    assert ask(guard, authorization=f"Basic {good}")[0] == 200
    for wrong in ("Basic", f"Bearer {good}", f"Basic {good[:-4]}", "Basic bWU6"):
        assert ask(guard, "/api/app", authorization=wrong)[0] == 401


def test_an_error_in_the_app_is_an_answer(caplog):
    async def broken(scope, receive, send):
        raise RuntimeError("inside")

    assert ask(guarded(broken))[0] == 500
    assert "inside" in caplog.text


# What is kept.


def test_newest_and_cache_are_bounded():
    newest = RecentCache(3)
    names = [newest.put(number) for number in range(5)]
    assert len(newest) == 3 and newest.get(names[0]) is None and newest.get(names[4]) == 4
    assert len(set(names)) == 5 and all(len(name) == 32 for name in names)
    cache, made = Cache(max_bytes=100), []
    for key in (1, 2, 1, 3, 2):
        cache.get(key, lambda key=key: made.append(key) or b"x" * 40)
    assert made == [1, 2, 3, 2]  # 1 was asked for again before 3 came


def test_drawn_images_are_found_by_id_alone(tmp_path):
    kept = DrawnImages(tmp_path / "images", 2)
    names = [kept.add(lambda path: path.write_bytes(b"png")) for _ in range(4)]
    assert sorted(path.stem for path in (tmp_path / "images").iterdir()) == sorted(names[2:])
    assert kept.path(names[3]).is_file()
    (tmp_path / "secret.png").write_bytes(b"x")
    for name in (names[0], "../secret", "..%2fsecret", "", "A" * 32, f"{names[3]}/../x"):
        with pytest.raises(UserError, match="no longer kept"):
            kept.path(name)


def test_only_listed_runs_are_opened(tmp_path):
    def folder(name, finished=True):
        path = tmp_path / "logs" / "train" / "runs" / name
        for inner in (".hydra", "parts", "checkpoints"):
            (path / inner).mkdir(parents=True)
        (path / ".hydra" / "config.yaml").write_text("{}", encoding="utf-8")
        if finished:
            (path / "finished.json").write_text("{}", encoding="utf-8")
        return path

    one, other = folder("2026-11-26_18-05-10-1a2b3c4d"), folder("2026-11-27_08-00-00-1a2b3c4d")
    folder("empty", finished=False)
    opened = []
    runs = Runs(tmp_path / "logs", None, lambda path: opened.append(path) or path.name)
    assert [entry["title"] for entry in runs.listed()] == ["27 Nov, 08:00", "26 Nov, 18:05"]
    assert runs.get(one.name) == runs.get(one.name) == one.name and opened == [one]
    for name in ("..", "../..", str(tmp_path), "empty", "", other.name + "/."):
        with pytest.raises(UserError, match="not here any more"):
            runs.get(name)
    assert Runs(tmp_path / "logs", other, lambda path: path, alone=True).folders() == {other.name: other}
    linked = tmp_path / "disk"  # a folder of runs behind a link
    linked.symlink_to(tmp_path / "logs")
    assert set(Runs(linked, None, lambda path: path).folders()) == {one.name, other.name}


def test_titles_of_other_names():
    assert title_of("my run") == "my run"


@pytest.mark.parametrize("number", [0, 1, 2, 6, 9, 600, 10_000])
def test_mixed_order_meets_each_image_once(number):
    assert sorted(place * _stride(number) % max(number, 1) for place in range(number)) == list(range(number))


# What is asked for.


@pytest.mark.parametrize(
    "changed",
    [
        {"seeds": []},
        {"seeds": [-1]},
        {"seeds": list(range(65))},
        {"steps": 0},
        {"steps": 10_000},
        {"guidance": float("nan")},
        {"composition": {"choices": []}},
        {"composition": {"choices": [{"part": -1, "code": 0}]}},
        {"composition": {"choices": [{"part": 1, "code": 0, "weight": 1e9}]}},
        {"composition": {"choices": [{"part": 1, "code": 0}], "before": "x" * 301}},
        {"composition": {"choices": [{"part": 1, "code": 0, "path": "/etc/passwd"}]}},
        {"composition": None},
    ],
)
def test_requests_that_do_not_fit(changed):
    good = {"run": "run", "composition": {"choices": [{"part": 1, "code": 0}]}, "seeds": [0]}
    assert DrawRequest.model_validate(good).steps is None
    with pytest.raises(ValidationError) as error:
        DrawRequest.model_validate({**good, **changed})
    assert sentence_of(error.value) == "The app did not understand that request."


def test_errors_become_sentences(caplog):
    assert sentence_of(UserError("Say it so.")) == "Say it so."
    assert "memory" in sentence_of(MemoryError())
    assert "memory" in sentence_of(RuntimeError("CUDA out of memory. Tried to allocate"))
    assert "disk is full" in sentence_of(OSError(28, "No space left on device"))
    assert "/secret" not in sentence_of(RuntimeError("/secret/path"))
    assert "/secret" in caplog.text


def test_settings_are_plain_json(tmp_path):
    assert json.dumps(values(f"paths.logs={tmp_path}")["app"])
