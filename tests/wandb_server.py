"""A W&B server for tests, on loopback: as much GraphQL and file stream as wandb 0.31 needs; it records everything."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Run:
    """What a server knows of a run."""

    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    exit_codes: list[int] = field(default_factory=list)
    name: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    project: str | None = None

    def curve(self, key: str) -> list[tuple[int, Any]]:
        return [(row["trainer/global_step"], row[key]) for row in self.history if key in row]


class WandbServer:
    """Records runs by id.

    Attributes:
        url: where it listens.
        runs: id -> what arrived.
        artifacts: names of the artifacts that were asked for.
        views: id -> a workspace or report that was saved.
        refuse: given the path and body of a request, the status it is refused with, or None; "hang" never answers, and
            "slow" answers after a while.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.artifacts: list[str] = []
        self.views: dict[str, dict[str, Any]] = {}
        self.refuse: Any = lambda path, body: None
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"state": self})
        self.http = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        with self._lock:
            if path == "/graphql":
                request = json.loads(body)
                return {"data": self._graphql(request["query"], request.get("variables") or {})}
            if path.endswith("/file_stream"):
                self._stream(self.runs[path.split("/")[-2]], json.loads(body))
            return {}

    def _graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        entity = {"id": "E", "name": "me"}
        if "upsertBucket" in query:
            inserted = given["name"] not in self.runs
            run = self.runs.setdefault(given["name"], Run())
            for ours, theirs in (("name", "displayName"), ("group", "groupName"), ("job_type", "jobType")):
                setattr(run, ours, given.get(theirs) or getattr(run, ours))
            run.tags = given.get("tags") or run.tags
            run.project = given.get("project")
            config = json.loads(given.get("config") or "{}")
            run.config |= {key: entry["value"] for key, entry in config.items()}
            bucket = self._bucket(given["name"], run) | {
                "sweepName": None,
                "description": None,
                "project": {"id": "P", "name": given["project"], "entity": entity},
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
        if "createRunFiles" in query:
            run_id, names = given["run"], given["files"]
            self.runs[run_id].files |= set(names)
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{run_id}/{name}"} for name in names]
            return {"createRunFiles": {"runID": "ID", "uploadHeaders": [], "files": files}}
        if "run(name:" in query or "run(name" in query.replace(" ", ""):
            run = self.runs.get(given.get("name") or given.get("run"))
            return {"project": {"internalId": "1", "run": None if run is None else self._public(given, run)}}
        if "bucket(" in query:
            run = self.runs.get(given["name"])
            bucket = None if run is None else self._bucket(given["name"], run)
            return {"model": {"id": "P", "name": given["project"], "entity": entity, "bucket": bucket}}
        if "upsertView" in query:
            view_id = given.get("id") or f"view-{given['name']}"
            self.views[view_id] = {**given, "spec": json.loads(given["spec"])}
            project = {"id": "P", "name": given["projectName"], "entityName": given["entityName"]}
            kept = {"id": view_id, "name": given["name"], "displayName": given["displayName"], "description": ""}
            dates = {"createdAt": "2026-11-26T00:00:00", "updatedAt": "2026-11-26T00:00:00"}
            view = {**kept, **dates, "project": project, "spec": given["spec"]}
            return {"upsertView": {"view": view, "inserted": True}}
        if "internalId" in query:
            return {"project": {"internalId": "1"}}
        if "models(" in query:  # projects of an entity
            node = {
                "id": "P",
                "name": "birds",
                "entityName": given["entity"],
                "createdAt": "",
                "isBenchmark": False,
                "user": None,
            }
            page = {"edges": [{"node": node, "cursor": ""}], "pageInfo": {"endCursor": "", "hasNextPage": False}}
            return {"models": page}
        if "viewer" in query:
            viewer = {"id": "V", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer}
        if "ArtifactType" in query:
            return {"project": {"artifact": None}}
        if "createArtifact(" in query:
            if given["input"]["artifactTypeName"] != "run_table":
                self.artifacts.append(given["input"]["artifactCollectionName"])
            # As if it were there already, so that nothing is uploaded.
            sequence = {"id": "S", "name": "artifact", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": "A", "state": "COMMITTED", "artifactSequence": sequence}}}
        return {}

    def _public(self, given: dict[str, Any], run: Run) -> dict[str, Any]:
        """As the public API asks for a run."""
        keys: dict[str, Any] = {}
        for key in {key for row in run.history for key in row}:
            keys[key] = {"typeCounts": [{"type": "any", "count": sum(key in row for row in run.history)}]}
        return {
            **self._bucket(given.get("name") or given.get("run"), run),
            "state": "finished",
            "group": run.group,
            "jobType": run.job_type,
            "systemMetrics": "{}",
            "createdAt": "2026-11-26T00:00:00",
            "projectId": "1",
            "historyKeys": {"keys": keys, "lastStep": len(run.history) - 1},
        }

    def _bucket(self, name: str, run: Run) -> dict[str, Any]:
        return {
            "id": f"id-{name}",
            "name": name,
            "displayName": run.name,
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "tags": run.tags,
            "notes": None,
            "wandbConfig": json.dumps({"t": {"value": {}}}),
        }

    @staticmethod
    def _stream(run: Run, content: dict[str, Any]) -> None:
        for name, lines in content.get("files", {}).items():
            if name == "wandb-history.jsonl":
                run.history[lines["offset"] :] = [json.loads(line) for line in lines["content"]]
            elif name == "wandb-summary.json":
                run.summary = json.loads(lines["content"][-1])
        if content.get("complete"):
            run.exit_codes.append(content.get("exitcode", 0))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has left is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: WandbServer

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if "/otel/" in self.path:  # of no interest
            self._send(200, {})
            return
        refused = self.state.refuse(self.path, body)
        if refused == "slow":
            self.state.stopping.wait(0.3)
            self._send(200, self.state.answer(self.path, body))
        elif refused == "hang":
            self.state.stopping.wait()
            self.close_connection = True
        elif refused:
            self._send(refused, {"errors": [{"message": "refused"}], "error": "refused"})
        else:
            self._send(200, self.state.answer(self.path, body))

    do_GET = do_PUT = do_POST

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    server = WandbServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.http.shutdown()
        server.http.server_close()
