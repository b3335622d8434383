"""Many visitors of the app at once: ``python tools/app_load.py [--clients 50] [--seconds 180] [--run RUN]``.

Starts the app on a run and lets clients browse, pick and draw on loopback. Fails if there is an error, if a result is
not what its client has asked for, or if the memory of the app grows. Needs the extra ``app``.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx

import partcraft_lit as pc

#: Growth of memory between the first third of the time and its end that counts as flat.
FLAT_MB = 64


class Visitor:
    """One client: looks at images, picks parts, draws, and checks that it gets its own."""

    def __init__(self, address: str, number: int, seconds: dict[str, list[float]]) -> None:
        self.http = httpx.AsyncClient(base_url=address, timeout=600)
        self.number = number
        self.random = random.Random(number)
        self.seconds = seconds
        self.model: dict[str, Any] = {}
        self.functions: dict[str, int] = {}

    async def get(self, kind: str, path: str) -> Any:
        begun = time.perf_counter()
        response = await self.http.get(path)
        self.seconds[kind].append(time.perf_counter() - begun)
        if response.status_code != 200:
            raise RuntimeError(f"{path}: {response.status_code} {response.text[:200]}")
        return response.json() if "json" in response.headers["content-type"] else response.content

    async def queued(self, name: str, data: dict[str, Any]) -> Any:
        begun = time.perf_counter()
        session = f"{self.number}-{self.random.getrandbits(64):x}"
        body = {"data": [data], "fn_index": self.functions[name], "session_hash": session, "simple_format": True}
        joined = await self.http.post("/gradio_api/queue/join", json=body)
        if joined.status_code != 200:
            raise RuntimeError(f"{name}: {joined.status_code} {joined.text[:200]}")
        async with self.http.stream("GET", f"/gradio_api/queue/data?session_hash={session}") as stream:
            async for line in stream.aiter_lines():
                if not line.startswith("data: "):
                    continue
                message = json.loads(line[6:])
                if message["msg"] == "process_completed":
                    self.seconds[name].append(time.perf_counter() - begun)
                    if not message["success"]:
                        raise RuntimeError(f"{name}: {message['output']}")
                    return message["output"]["data"][0]
        raise RuntimeError(f"{name}: the stream ended")

    async def visit(self, until: float) -> int:
        """Goes on until ``until``; returns the number of images that it has drawn."""
        await self.get("page", "/")
        name = (await self.get("app", "/api/app"))["run"]
        self.functions = (await self.get("app", "/api/queue"))["functions"]
        base = f"/api/runs/{name}"
        self.model = await self.get("app", base)
        drawn = 0
        while time.monotonic() < until:
            offset = self.random.randrange(500)
            page = await self.get("images", f"{base}/images?offset={offset}&limit=24")
            indices = [image["index"] for image in page["images"]]
            await self.get("tiles", f"{base}/tiles?i={','.join(map(str, indices[:12]))}")
            image = self.random.choice(page["images"])
            shown = [part for part, code in enumerate(image["codes"]) if part and code >= 0]
            picked = self.random.sample(shown, min(2, len(shown)))
            choices = [{"part": part, "code": image["codes"][part]} for part in picked]
            await self.get("crop", f"{base}/images/{image['index']}/parts/{picked[0]}.jpg")
            composition = {"choices": choices, "before": None, "after": f"of visitor {self.number}", "negative": []}
            seed = self.random.randrange(10**6)
            await self.queued("preview", {"run": name, "composition": composition, "seed": seed})
            if self.random.random() < 0.3:
                drawn += await self.draw(name, composition, choices, seed)
            await asyncio.sleep(self.random.uniform(0.1, 1.0))
        await self.http.aclose()
        return drawn

    async def draw(self, name: str, composition: dict[str, Any], choices: list[dict[str, int]], seed: int) -> int:
        """Draws an image and reads in it whose it is."""
        made = await self.queued("draw", {"run": name, "composition": composition, "seeds": [seed]})
        (result,) = made["results"]
        asked = {read["part"]: read["asked"] for read in result["reads"]}
        stored = pc.Composition.from_png(io.BytesIO(await self.get("png", result["url"])))
        wanted = {choice["part"]: [choice["code"]] for choice in choices}
        if asked != wanted or result["seed"] != seed or stored.after != f"of visitor {self.number}":
            raise RuntimeError(f"visitor {self.number} got {result} with {stored}, and had asked for {wanted}")
        return 1


def memory_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


async def load(address: str, clients: int, seconds: float, pid: int) -> bool:
    times: dict[str, list[float]] = defaultdict(list)
    until, memory = time.monotonic() + seconds, []

    async def watch() -> None:
        while time.monotonic() < until:
            memory.append(memory_mb(pid))
            await asyncio.sleep(2)

    visitors = [Visitor(address, number, times) for number in range(clients)]
    results = await asyncio.gather(*(visitor.visit(until) for visitor in visitors), watch(), return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    third = memory[len(memory) // 3 :] or memory
    growth = statistics.median(third[-3:]) - statistics.median(third[:3])
    print(f"{'request':10} {'number':>7} {'median s':>9} {'95 % s':>9}")
    for kind, values in sorted(times.items()):
        print(
            f"{kind:10} {len(values):7} {statistics.median(values):9.3f} {sorted(values)[int(0.95 * len(values))]:9.3f}"
        )
    print(f"memory: {third[0]:.0f} MB after a third of the time, {third[-1]:.0f} MB at the end")
    print(f"errors and mixed results: {len(errors)}")
    for error in itertools.islice(errors, 5):
        print(f"  {type(error).__name__}: {error}")
    if growth > FLAT_MB:
        print(f"memory grew by {growth:.0f} MB; {FLAT_MB} are allowed")
    return not errors and growth <= FLAT_MB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--run", default="latest")
    parser.add_argument("--logs", default="logs")
    parser.add_argument("--port", type=int, default=7899)
    args = parser.parse_args()
    command = [sys.executable, "-m", "partcraft_lit", "app", f"run={args.run}", f"app.port={args.port}"]
    settings = ["app.open_browser=false", f"paths.logs={args.logs}"]
    with subprocess.Popen([*command, *settings], stdout=subprocess.DEVNULL) as process:
        try:
            address = f"http://127.0.0.1:{args.port}"
            wait_for(address, process)
            return 0 if asyncio.run(load(address, args.clients, args.seconds, process.pid)) else 1
        finally:
            process.terminate()


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        if process.poll() is not None:
            raise SystemExit("The app did not start.")
        try:
            httpx.get(f"{address}/api/app", timeout=5).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise SystemExit("The app does not answer.")


if __name__ == "__main__":
    sys.exit(main())
