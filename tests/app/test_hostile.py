"""Hundreds of requests that ask for files outside, and uploads that are none: nothing gets out, and the app goes on."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import random
import socket
from urllib.parse import quote, urlsplit

import pytest

import partcraft_lit as pc

pytestmark = pytest.mark.app
CANARY = "canary-7f3a91"


@pytest.fixture(scope="module")
def secret(tmp_path_factory, logs):
    """A file beside the run that nobody may read, and a link to it inside the run."""
    path = tmp_path_factory.mktemp("secret") / "secret.txt"
    path.write_text(CANARY, encoding="utf-8")
    (logs / "secret.txt").write_text(CANARY, encoding="utf-8")
    (logs / "app").mkdir(exist_ok=True)
    return path


def ask(address, method, path, body=None, headers=()):
    """Status and body of a request whose path is sent as it is."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


JSON = (("Content-Type", "application/json"),)
FILE = (("Content-Type", "application/octet-stream"),)


def paths(secret, run):
    """Requests for files, in the ways that such requests are written."""
    name, up = run.folder.name, "../" * 8
    targets = [str(secret), "/etc/passwd", f"{up}etc/passwd", f"..{secret}", "C:\\Windows\\win.ini", f"//{secret}"]
    ways = [lambda x: x, quote, lambda x: quote(x, safe=""), lambda x: quote(quote(x, safe=""), safe="")]
    forms = [
        "/gradio_api/file={}",
        "/gradio_api/file/{}",
        "/file={}",
        "/file/{}",
        "/gradio_api/proxy={}",
        "/proxy=http://127.0.0.1/{}",
        "/static/{}",
        "/assets/{}",
        "/svelte/{}",
        "/page/{}",
        "/page/..%2f{}",
        "/custom_component/x/y/z/{}",
        "/gradio_api/custom_component/x/client/component/{}",
        "/api/images/{}.png",
        "/api/images/{}",
        "/api/photos/{}/large.jpg",
        "/api/runs/{}",
        "/api/runs/{}/images",
        "/api/runs/" + name + "/images/{}/large.jpg",
        "/api/runs/" + name + "/parts/{}/0.jpg",
        "/api/jobs/{}/sample.png",
        "/api/jobs/{}/export.zip",
        "/api/jobs/{}/files",
        "/api/results/{}",
    ]
    for form, target, way in itertools.product(forms, targets, ways):
        yield form.format(way(target))


def test_no_file_outside_is_given_out(address, secret, run):
    asked = 0
    for path in paths(secret, run):
        path = path.replace(" ", "%20").replace("\\", "%5c")
        if not path.isascii() or "\n" in path:
            continue
        status, body = ask(address, "GET", path)
        asked += 1
        assert status in (400, 404), (path, status)
        assert CANARY.encode() not in body and b"root:" not in body
    assert asked >= 500
    assert ask(address, "GET", "/api/app")[0] == 200


def test_calls_of_gradio_that_name_files(address, secret, run):
    functions = json.loads(ask(address, "GET", "/api/queue")[1])["functions"]
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}, "orig_name": "x", "url": f"file://{secret}"}
    composition = {"choices": [{"part": 1, "code": 0}], "before": None, "after": None, "negative": []}
    good = {"run": run.folder.name, "composition": composition, "seed": 0}
    calls = [
        file,
        [file],
        str(secret),
        None,
        {},
        {"run": file, "composition": composition},
        {**good, "run": str(secret)},
        {**good, "run": "../.."},
        {**good, "composition": {**composition, "before": f"<{secret}:0>"}},
        {**good, "composition": {**composition, "choices": [{"part": 1, "code": file}]}},
        {**good, "composition": {**composition, "choices": [{"part": 1, "code": 10**6}]}},
        {**good, "composition": {**composition, "choices": [{"part": 1, "code": 0}] * 10_000}},
        {**good, "seed": 2**70},
        {"id": str(secret)},
        {"id": "../secret.txt"},
    ]
    for number, (call, name) in enumerate(itertools.product(calls, functions)):
        session = f"hostile{number}"
        body = json.dumps({"data": [call], "fn_index": functions[name], "session_hash": session}).encode()
        status, answer = ask(address, "POST", "/gradio_api/queue/join", body, JSON)
        if status == 200:
            _, answer = ask(address, "GET", f"/gradio_api/queue/data?session_hash={session}")
            assert b'"success":false' in answer, (name, call, answer)
        assert CANARY.encode() not in answer and b"Traceback" not in answer
    for index in (-1, 99, "x", 1.5, {"a": 1}):
        body = json.dumps({"data": [], "fn_index": index, "session_hash": "x"}).encode()
        assert ask(address, "POST", "/gradio_api/queue/join", body, JSON)[0] >= 400
    assert ask(address, "GET", "/api/app")[0] == 200


def test_questions_that_make_no_sense(address, run):
    name = run.folder.name
    generator = random.Random(0)
    alphabet = ["0", "-1", "1e9", "NaN", "null", "%00", "[]", "a" * 5000, "99999999999999999999", "'", "<b>", "%2e%2e"]
    for _ in range(150):
        one, two = generator.choice(alphabet), generator.choice(alphabet)
        for path in (
            f"/api/runs/{name}/images?offset={one}&limit={two}",
            f"/api/runs/{name}/images?part={one}&code={two}",
            f"/api/runs/{name}/tiles?i={one},{two}",
            f"/api/runs/{name}/parts/{one}/{two}.jpg",
        ):
            status, body = ask(address, "GET", path)
            assert status in (200, 400, 404), path
            assert b"Traceback" not in body
    for body in (b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"a":' * 3000, b'{"composition": 1, "seeds": [0]}'):
        for path in (f"/api/runs/{name}/describe", f"/api/runs/{name}/export", "/api/jobs/train/start"):
            assert ask(address, "POST", path, body, JSON)[0] in (400, 422), (path, body)
    assert ask(address, "GET", "/api/app")[0] == 200


def test_uploads_that_are_mutated_or_too_large(address, run):
    where = f"/api/runs/{run.folder.name}/files"
    buffer = io.BytesIO()
    run.image(0).pixels.save(buffer, format="PNG")
    whole, generator = buffer.getvalue(), random.Random(1)
    statuses = set()
    for _ in range(60):
        mutated = bytearray(whole)
        for _ in range(generator.randint(1, 30)):
            mutated[generator.randrange(len(mutated))] = generator.randrange(256)
        if generator.random() < 0.3:
            del mutated[generator.randrange(len(mutated)) :]
        statuses.add(ask(address, "POST", where, bytes(mutated), FILE)[0])
    assert statuses <= {200, 400} and 400 in statuses
    assert ask(address, "POST", where, bytes(5 << 20), FILE)[0] == 413
    bomb = whole[:16] + (60_000).to_bytes(4, "big") * 2 + whole[24:]  # a header that claims 3.6 gigapixels
    assert ask(address, "POST", where, bomb, FILE)[0] == 400
    lying = socket.create_connection(("127.0.0.1", urlsplit(address).port), timeout=30)
    lying.sendall(
        f"POST {where} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n".encode()
        + b"Transfer-Encoding: chunked\r\n\r\n"
    )
    try:
        for _ in range(100):
            lying.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
    except OSError:
        pass  # it was cut off
    lying.close()
    assert ask(address, "GET", "/api/app")[0] == 200


def test_a_run_that_is_deleted_and_a_full_disk_are_sentences(make_app, logs, run, tmp_path, monkeypatch):
    import shutil

    address = make_app()
    copy = run.folder.with_name("copy of a run")
    shutil.copytree(run.folder, copy)
    assert ask(address, "GET", f"/api/runs/{quote(copy.name)}")[0] == 200
    shutil.rmtree(copy)
    status, body = ask(address, "GET", f"/api/runs/{quote(copy.name)}/images")
    assert status == 400 and "not here any more" in json.loads(body)["error"]
    monkeypatch.setattr(pc.Run, "read", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    buffer = io.BytesIO()
    run.image(0).pixels.save(buffer, format="PNG")
    status, body = ask(address, "POST", f"/api/runs/{run.folder.name}/files", buffer.getvalue(), FILE)
    assert status == 400 and "disk is full" in json.loads(body)["error"]
    monkeypatch.undo()
    assert ask(address, "POST", f"/api/runs/{run.folder.name}/files", buffer.getvalue(), FILE)[0] == 200


def test_a_password_guards_everything(make_app):
    address = make_app(password="a long secret", host="127.0.0.1")
    for path in ("/", "/page/app.css", "/api/app", "/gradio_api/queue/data?session_hash=x"):
        assert ask(address, "GET", path)[0] == 401
    good = (("Authorization", "Basic cGFydGNyYWZ0OmEgbG9uZyBzZWNyZXQ="),)
    assert ask(address, "GET", "/api/app", headers=good)[0] == 200
