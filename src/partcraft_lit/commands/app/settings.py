"""Settings of ``partcraft app``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from partcraft_lit.core.settings import Positive, UserPath

Port = Annotated[int, Field(ge=0, le=65535)]


@dataclass(frozen=True)
class ServerSettings:
    """How the page is served.

    Attributes:
        host: address to listen on; others than this computer's own need a password.
        port: 0 takes any that is free.
        user, password: asked by the browser; None asks nobody.
        public: serve everybody without a password, as a demo; then nothing can be trained, corrected or exported.
        open_browser: show the page in the default browser.
        folders: images to train on are looked for below these alone.
        max_upload_mb: of one file.
        max_images: drawn at once.
        max_waiting: drawings in the queue; further ones are turned away.
        kept_results: images that are kept for their authors; older ones are removed.
    """

    host: str
    port: Port
    user: str
    password: str | None
    public: bool
    open_browser: bool
    folders: tuple[UserPath, ...]
    max_upload_mb: Positive
    max_images: Positive
    max_waiting: Positive
    kept_results: Positive


@dataclass(frozen=True)
class AppSettings:
    """``partcraft app``.

    Attributes:
        run: the run or exported bundle that is shown first.
        app: how the page is served.
    """

    run: str
    app: ServerSettings
