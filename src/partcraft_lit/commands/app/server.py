"""The server: gradio's queue and API engine, our own page."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from partcraft_lit.commands.app import browse, give
from partcraft_lit.commands.app.correct import Corrector
from partcraft_lit.commands.app.draw import CompositionRequest, Drawings, for_queue, sentence_of
from partcraft_lit.commands.app.guard import Guard
from partcraft_lit.commands.app.jobs import Jobs, state_of
from partcraft_lit.commands.app.settings import ServerSettings
from partcraft_lit.commands.app.shelf import RecentCache, Runs, version
from partcraft_lit.commands.app.train import Trainer
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.progress import Stages

if TYPE_CHECKING:
    import gradio
    from starlette.requests import Request
    from starlette.responses import Response

logger = logging.getLogger(__name__)

_PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
#: Photos of visitors that are kept, and their longer side.
_PHOTOS, _PHOTO_SIDE = 64, 768


def serve(settings: ServerSettings, folder: Path, *, logs: Path, first: Path | None) -> None:
    """Serves until interrupted."""
    server, url = start(settings, folder, logs=logs, first=first)
    Stages().log(f"The composer is at {url}  (Ctrl-C ends it)")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        server.close(verbose=False)


def start(settings: ServerSettings, folder: Path, *, logs: Path, first: Path | None) -> tuple[gradio.Blocks, str]:
    """Starts the server in threads of its own; returns it and its address.

    Raises:
        UserError: if the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    logging.getLogger("httpx").setLevel(logging.WARNING)
    import gradio

    from partcraft_lit.composer.run import open_run

    runs = Runs(logs, first, open_run, alone=settings.public)
    drawings = Drawings(runs, folder, settings.kept_results, settings.max_images)
    server = gradio.Server(title="partcraft", docs_url=None, redoc_url=None, openapi_url=None)
    for work in (drawings.preview, drawings.draw, drawings.attention):
        server.api(for_queue(work), name=work.__name__, concurrency_limit=1, concurrency_id="model")
    PageRoutes(settings, runs, drawings).add_to(server)
    if not settings.public:
        LocalRoutes(settings, runs, logs).add_to(server)
    server.add_middleware(
        Guard,
        host=settings.host,
        user=settings.user,
        password=None if settings.public else settings.password,
        max_upload=settings.max_upload_mb << 20,
        framed=settings.public,
    )
    if first is not None:
        _warm_up(runs, first.name)
    try:
        server.launch(
            server_name=settings.host,
            server_port=settings.port or None,
            inbrowser=settings.open_browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            run_history=False,
            mcp_server=False,
            enable_monitoring=False,
            _frontend=False,
        )
    except OSError as error:
        raise UserError(
            f"app.port={settings.port}: {error}. Another app may be running; app.port=0 takes a free one."
        ) from error
    blocks = server.get_blocks()
    blocks._queue.max_size = settings.max_waiting  # queue(max_size=...) would replace the queue that is running
    return blocks, str(blocks.local_url)


def _warm_up(runs: Runs, name: str) -> None:
    """Opens the first run, and its model in the background, so that the first visitor does not wait for them."""
    try:
        run = runs.get(name)
        if run.has_images:
            browse.tile(run.image(0))
    except Exception as error:  # it is said when somebody asks for what is missing
        sentence_of(error)
        return
    threading.Thread(target=_load_model, args=(run,), daemon=True).start()


def _load_model(run: Any) -> None:
    try:
        run.load()
    except Exception as error:
        sentence_of(error)


class PageRoutes:
    """The page and what it asks without waiting."""

    def __init__(self, settings: ServerSettings, runs: Runs, drawings: Drawings) -> None:
        self.settings = settings
        self.runs = runs
        self.drawings = drawings
        self.cache = browse.Cache()
        self.photos: RecentCache[Any] = RecentCache(_PHOTOS)
        self.features: list[Any] = []

    def add_to(self, server: gradio.Server) -> None:
        """Registers all addresses."""
        get, post = _adder(server, "GET"), _adder(server, "POST")
        server.add_route("/", _page_file("index.html"), methods=["GET", "HEAD"])
        server.add_route("/page/{name}", _page_files(), methods=["GET", "HEAD"])
        get("/api/app", self.app)
        get("/api/queue", lambda _: {"functions": _functions(server)})
        get("/api/runs/{run}", self.describe)
        get("/api/runs/{run}/images", self.page)
        get("/api/runs/{run}/tiles", self.tiles)
        get("/api/runs/{run}/images/{index:int}/large.jpg", self.large)
        get("/api/runs/{run}/images/{index:int}/parts/{part:int}.jpg", self.crop)
        get("/api/runs/{run}/parts/{part:int}/{code:int}.jpg", self.variant)
        post("/api/runs/{run}/files", self.take_file)
        post("/api/runs/{run}/describe", self.describe_composition)
        get("/api/photos/{id}/large.jpg", self.photo)
        get("/api/photos/{id}/parts/{part:int}.jpg", self.photo_crop)
        get("/api/images/{id}.png", self.drawn)
        get("/api/results/{id}", self.recipe)

    # The app and its runs.

    def app(self, _: Request) -> dict[str, Any]:
        names = self.runs.listed()
        first = self.runs.first.name if self.runs.first is not None else (names[0]["name"] if names else None)
        return {
            "runs": names,
            "run": first,
            "most_bytes": self.settings.max_upload_mb << 20,
            "without": ["correct", "train", "give"] if self.settings.public else [],
        }

    def describe(self, request: Request) -> dict[str, Any]:
        name = request.path_params["run"]
        run = self.runs.get(name)
        sample = run.sample
        known = [part for part in run.parts[1:] if part.variants]
        words = run.compose({part.name: part.variants[0].code for part in known[:1]})
        return {
            **browse.describe(run, name),
            "version": f"{version(self.runs.folder(name)):.0f}",
            "before": words.before,
            "after": words.after,
            "steps": sample.steps,
            "guidance": sample.guidance_scale,
            "most_images": self.settings.max_images,
            "bundle": not (self.runs.folder(name) / ".hydra" / "config.yaml").is_file(),
        }

    # Pick.

    def page(self, request: Request) -> dict[str, Any]:
        query = request.query_params
        numbers = {key: int(query[key]) if query.get(key) else None for key in ("part", "code")}
        offset, limit = int(query.get("offset", 0)), int(query.get("limit", 60))
        return browse.page(self._run(request), offset=offset, limit=limit, text=query.get("text", ""), **numbers)

    def tiles(self, request: Request) -> Response:
        run, name = self._run(request), request.path_params["run"]
        indices = [int(text) for text in request.query_params.get("i", "").split(",") if text][: browse.MAX_TILES]
        made = [
            self.cache.get((name, self._version(name), index), partial(_tile_or_reason, run, index))
            for index in indices
        ]
        return _cached(b'{"tiles":[' + b",".join(made) + b"]}", "application/json")

    def large(self, request: Request) -> Response:
        return _cached(browse.jpeg(_enlarged(self._view(request))), "image/jpeg")

    def crop(self, request: Request) -> Response:
        name, index, part = (request.path_params[key] for key in ("run", "index", "part"))
        key = (name, self._version(name), index, part)
        return _cached(
            self.cache.get(key, lambda: browse.jpeg(self._view(request).crop(part, browse.CROP))), "image/jpeg"
        )

    def variant(self, request: Request) -> Response:
        from PIL import Image

        run, name = self._run(request), request.path_params["run"]
        part, code = request.path_params["part"], request.path_params["code"]
        if part >= len(run.parts):
            raise UserError("This model has no such part.")

        def make() -> bytes:
            image = run.parts[part][code].thumbnail
            if image is None:  # neither atlas nor images are there
                image = Image.new("RGB", (browse.CROP, browse.CROP), run.parts[part].color)
            image.thumbnail((browse.CROP, browse.CROP))
            return browse.jpeg(image)

        return _cached(self.cache.get((name, self._version(name), "variant", part, code), make), "image/jpeg")

    # Files of visitors.

    def take_file(self, request: Request) -> dict[str, Any]:
        """An image made here brings its composition; any other becomes a photo to pick from."""
        import io

        from PIL import Image

        from partcraft_lit.core.images import UnreadableImage, read_image
        from partcraft_lit.core.visualization import to_pil

        data = request.state.content
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            try:
                return self._restored(io.BytesIO(data))
            except UserError:
                pass  # a photo, then
        try:
            pixels = read_image(io.BytesIO(data))
        except UnreadableImage as error:
            raise UserError(f"That file cannot be used as an image: {error.reason}.") from error
        photo = to_pil(pixels)
        photo.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE), Image.Resampling.LANCZOS)
        run = self._run(request)
        view = run.read(photo)
        key = self.photos.put(view)
        name = unquote(request.headers.get("x-name", ""))[:80] or "your photo"
        codes = [int(code) for code in view.part_codes]
        return {
            "photo": {
                "id": key,
                "run": request.path_params["run"],
                "name": Path(name).name,
                "codes": codes,
                "url": f"/api/photos/{key}",
                **browse.tile(view),
            }
        }

    def photo(self, request: Request) -> Response:
        return _cached(browse.jpeg(_enlarged(self._photo(request))), "image/jpeg")

    def photo_crop(self, request: Request) -> Response:
        return _cached(browse.jpeg(self._photo(request).crop(request.path_params["part"], browse.CROP)), "image/jpeg")

    def _photo(self, request: Request) -> Any:
        view = self.photos.get(request.path_params["id"])
        if view is None:
            raise UserError("This photo is no longer kept; drop it again.")
        return view

    # Compose.

    def describe_composition(self, request: Request) -> dict[str, Any]:
        values = json.loads(request.state.content)
        run = self._run(request)
        composition = CompositionRequest.model_validate(values["composition"]).compose(run)
        seeds = [int(seed) for seed in values["seeds"]][:64]
        sample = {"steps": values.get("steps"), "guidance_scale": values.get("guidance")}
        place = request.path_params["run"]
        return {
            "prompt": composition.prompt,
            "command": composition.command(seeds, run=place, **sample),
            "python": composition.python(seeds, run=place, **sample),
        }

    def drawn(self, request: Request) -> Response:
        from starlette.responses import FileResponse

        path = self.drawings.images.path(request.path_params["id"])
        name = f"partcraft-{path.stem[:8]}.png" if "download" in request.query_params else None
        return FileResponse(path, media_type="image/png", filename=name, headers=_FOREVER)

    def recipe(self, request: Request) -> dict[str, Any]:
        with self.drawings.images.path(request.path_params["id"]).open("rb") as file:
            return self._restored(file)

    def _restored(self, file: Any) -> dict[str, Any]:
        """The composition in a PNG, with parts by number.

        Raises:
            UserError: if it holds none, or one of a model that is not here.
        """
        from partcraft_lit.composer.composition import Composition

        composition = Composition.from_png(file)
        file.seek(0)
        name = self.runs.named(composition.run)
        if name is None:
            raise UserError(f"That image was made with a model that is not here: {composition.run or 'it says none'}.")
        run = self.runs.get(name)
        numbers = {part.name: part.index for part in run.parts}

        def choice(piece: Any) -> dict[str, Any]:
            if piece.part not in numbers:
                raise UserError(f"The model has no part called {piece.part} any more.")
            own = {"part": numbers[piece.part], "code": piece.code, "weight": piece.weight}
            return {**own, "from": piece.image_name}

        texts = _png_texts(file)
        return {
            "run": name,
            "composition": {
                "choices": [choice(piece) for piece in composition.choices],
                "negative": [choice(piece) for piece in composition.negative],
                "before": composition.before,
                "after": composition.after,
                **{key: _number(texts.get(text)) for key, text in _RECIPE.items()},
            },
        }

    # Helpers.

    def _run(self, request: Request) -> Any:
        return self.runs.get(request.path_params["run"])

    def _version(self, name: str) -> float:
        return version(self.runs.folder(name))

    def _view(self, request: Request) -> Any:
        run, index = self._run(request), request.path_params["index"]
        return run.image(index)


def _adder(server: gradio.Server, method: str) -> Callable[[str, Callable[[Any], Any]], None]:
    """Adds a function that gives JSON, or a response; errors become one sentence."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response

    def add(path: str, work: Callable[[Any], Any]) -> None:
        async def answer(request: Request) -> Response:
            if method == "POST":
                request.state.content = await request.body()
            try:
                made = await run_in_threadpool(work, request)
            except Exception as error:
                return JSONResponse({"error": sentence_of(error)}, status_code=400)
            return made if isinstance(made, Response) else JSONResponse(made)

        server.add_route(path, answer, methods=[method])

    return add


class LocalRoutes:
    """What changes things on this computer: training, corrections, exports. Not there for the public."""

    def __init__(self, settings: ServerSettings, runs: Runs, logs: Path) -> None:
        self.runs = runs
        self.logs = logs
        self.jobs = Jobs(logs / "app" / "jobs")
        self.trainer = Trainer(self.jobs, logs, settings.folders)
        self.corrector = Corrector()

    def add_to(self, server: gradio.Server) -> None:
        """Registers all addresses."""
        get, post = _adder(server, "GET"), _adder(server, "POST")
        get("/api/jobs", lambda _: {"jobs": [state_of(self.jobs, job) for job in self.jobs.listed()]})
        get("/api/folders", lambda _: {"folders": self.trainer.offered()})
        post("/api/jobs/{verb:str}/start", self.start)
        post("/api/jobs/{id}/stop", lambda request: state_of(self.jobs, self.jobs.stop(request.path_params["id"])))
        post("/api/jobs/{id}/resume", lambda request: state_of(self.jobs, self.jobs.resume(request.path_params["id"])))
        get("/api/jobs/{id}/sample.png", self.sample)
        get("/api/jobs/{id}/atlas.jpg", self.atlas)
        get("/api/jobs/{id}/files", lambda request: give.result(self.jobs.get(request.path_params["id"])))
        get("/api/jobs/{id}/export.zip", self.archive)
        get("/api/runs/{run}/corrections", self.corrections)
        post("/api/runs/{run}/corrections", self.correct)
        post("/api/runs/{run}/corrections/undo", self.undo)
        post("/api/runs/{run}/export", self.export)

    def start(self, request: Request) -> dict[str, Any]:
        verb = request.path_params["verb"]
        if verb not in ("discover", "train"):
            raise UserError("There is no such job.")
        return state_of(self.jobs, self.trainer.start(verb, json.loads(request.state.content)))

    def sample(self, request: Request) -> Response:
        """The newest sample sheet of a training."""
        from starlette.responses import FileResponse

        folder = Path(self.jobs.get(request.path_params["id"]).folder) / "samples"
        names = sorted(path for path in folder.glob("*.png") if path.is_file())
        if not names:
            raise UserError("There is no sample yet.")
        return FileResponse(names[-1], media_type="image/png", headers={"cache-control": "no-cache"})

    def atlas(self, request: Request) -> Response:
        from PIL import Image

        path = Path(self.jobs.get(request.path_params["id"]).folder) / "parts" / "atlas.png"
        if not path.is_file():
            raise UserError("The parts are not there yet.")
        with Image.open(path, formats=["PNG"]) as image:
            image.thumbnail((1600, 4000))
            return _cached(browse.jpeg(image), "image/jpeg")

    def archive(self, request: Request) -> Response:
        from starlette.responses import FileResponse

        job = self.jobs.get(request.path_params["id"])
        path = give.zipped(job, self.jobs.root / job.id)
        return FileResponse(path, media_type="application/zip", filename=f"{Path(job.folder).parent.parent.name}.zip")

    def corrections(self, request: Request) -> dict[str, Any]:
        name = request.path_params["run"]
        return self.corrector.state(self.runs.folder(name), self._names(name))

    def correct(self, request: Request) -> dict[str, Any]:
        name = request.path_params["run"]
        run = self.runs.get(name)
        lines = self.corrector.apply(
            self.runs.folder(name),
            self._names(name),
            lambda index: run.image(index).name,
            json.loads(request.state.content),
        )
        self.runs.close(name)
        return {"changed": lines}

    def undo(self, request: Request) -> dict[str, Any]:
        name = request.path_params["run"]
        self.corrector.undo(self.runs.folder(name))
        self.runs.close(name)
        return {"changed": []}

    def export(self, request: Request) -> dict[str, Any]:
        name = request.path_params["run"]
        values = json.loads(request.state.content)
        job = give.start(self.jobs, self.logs, self.runs.folder(name), self._names(name), values)
        return state_of(self.jobs, job)

    def _names(self, name: str) -> list[str]:
        return [part.name for part in self.runs.get(name).parts]


#: Our names of settings -> text chunks of a drawn PNG.
_RECIPE = {"seed": "seed", "steps": "steps", "guidance": "guidance_scale"}
_FOREVER = {"cache-control": "private, max-age=86400, immutable"}


def _cached(content: bytes, media_type: str) -> Response:
    from starlette.responses import Response

    return Response(content, media_type=media_type, headers=_FOREVER)


def _tile_or_reason(run: Any, index: int) -> bytes:
    """JSON of a tile; an image that is gone leaves its place empty."""
    try:
        return json.dumps({"index": index, **browse.tile(run.image(index))}).encode()
    except UserError as error:
        return json.dumps({"index": index, "error": str(error)}).encode()


def _enlarged(view: Any) -> Any:
    from PIL import Image

    image = view.pixels.copy()
    scale = browse.LARGE / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.LANCZOS)


def _png_texts(file: Any) -> dict[str, str]:
    from PIL import Image

    with Image.open(file, formats=["PNG"]) as image:
        image.load()
        return {str(key): str(value) for key, value in getattr(image, "text", {}).items()}


def _number(text: str | None) -> float | int | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return int(value) if value.is_integer() else value


def _functions(server: Any) -> dict[str, int]:
    """Name -> number of what waits in the queue."""
    return {str(function.api_name): number for number, function in server.get_blocks().fns.items()}


def _page_file(name: str) -> Callable[[Any], Any]:
    async def answer(_: Request) -> Response:
        from starlette.responses import FileResponse

        return FileResponse(_PAGE / name, media_type=_TYPES[Path(name).suffix], headers={"cache-control": "no-cache"})

    return answer


def _page_files() -> Callable[[Any], Any]:
    """Files of the page, by a list that is made once; the colours are the report's."""
    names = {path.name: path for path in _PAGE.iterdir() if path.suffix in _TYPES}
    names["palette.css"] = Path(str(resources.files("partcraft_lit.report") / "templates" / "palette.css"))

    async def answer(request: Request) -> Response:
        from starlette.responses import FileResponse, JSONResponse

        path = names.get(request.path_params["name"])
        if path is None:
            return JSONResponse({"error": "There is nothing here."}, status_code=404)
        return FileResponse(path, media_type=_TYPES[path.suffix], headers={"cache-control": "no-cache"})

    return answer
