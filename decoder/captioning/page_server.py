"""The server of `decoder.demo`: one page in static/, and the few requests that its script sends.

One request at a time uses the models; a limited number of others wait.
"""

import asyncio
import base64
import errno
import json
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from html import escape
from pathlib import Path
from typing import IO, Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from decoder.captioning import page_files, samples
from decoder.captioning.access import Application, Guard, Host
from decoder.captioning.page import PageCaptioner, Search, Shown
from evaluation.gallery import picture as as_data_uri
from features.errors import UserError, first_few, require
from features.images import PictureError

_STATIC = Path(__file__).with_name("static")
_PREVIEW_WIDTH, _RESULT_WIDTH = 1200, 440
_UPLOAD_SECONDS = 300  # a picture that takes longer to arrive would keep others out
_LONGEST_QUERY = 1000  # characters
_T = TypeVar("_T")


class _Json(JSONResponse):
    """JSON that may hold the name of a file, which need not be UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False).encode(errors="backslashreplace")


class Page:
    """The requests of the page.

    Args:
        captioner: captions the pictures.
        search: finds pictures; without it there is no search tab.
        album: folder of `search` into which the page may write; None if it may not.
        max_upload: largest picture accepted, in megabytes.
        max_queue: number of requests that may wait for the models.
    """

    def __init__(
        self,
        captioner: PageCaptioner,
        search: Search | None,
        album: Path | None,
        *,
        max_upload: int,
        max_queue: int,
    ) -> None:
        self._captioner = captioner
        self._search = search
        self._album = album
        self._max_upload = max_upload
        self._shown = Shown()
        self._places = max_queue + 1  # one is not waiting but being answered
        # Libraries keep memory for every thread that calls them, so one thread uses the models.
        self._turn = asyncio.Lock()
        self._models, self._pictures = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def application(self) -> Starlette:
        """Return the application that answers the requests."""
        routes = [
            Route("/", self._page),
            Route("/samples/{name}.jpg", self._sample),
            Route("/api/caption", self._caption, methods=["POST"]),
            Route("/api/search", self._find, methods=["POST"]),
            Route("/api/picture/{key}", self._picture),
            Route("/api/download/{kind}", self._download, methods=["POST"]),
            Route("/api/save/{kind}", self._save, methods=["POST"]),
        ]
        handlers: Any = {
            UserError: _problem(422),
            PictureError: _unreadable,
            HTTPException: _refusal,
            OSError: _disk_problem,
        }
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.mount("/static", StaticFiles(directory=_STATIC))
        return app

    async def _page(self, request: Request) -> Response:
        settings = {
            "maxUpload": self._max_upload,
            "samples": samples.NAMES,
            "search": self._search
            and {"name": _name(self._search.folder), "count": self._search.count},
            "album": self._album and _name(self._album),
        }
        page = (_STATIC / "page.html").read_text(encoding="utf-8")
        page = page.replace("{settings}", escape(json.dumps(settings)))
        return Response(page, media_type="text/html", headers={"cache-control": "no-cache"})

    async def _sample(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in samples.NAMES:
            raise HTTPException(404)
        return Response(samples.sample(name), media_type="image/jpeg")

    async def _caption(self, request: Request) -> Response:
        """Caption the picture in the body, or the one on this machine with the key `picture`."""
        preview = "preview" in request.query_params
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise HTTPException(
                415,
                "Expected the bytes of a picture, found a form. With curl: --data-binary @FILE.",
            )

        def describe(path: Path) -> dict[str, Any]:
            described = self._captioner.describe(path)
            if preview:  # for kinds of pictures that the browser cannot show
                described["preview"] = as_data_uri(path, _PREVIEW_WIDTH)
            return described

        async with self._place():
            if "picture" in request.query_params:
                path = self._shown_path(request.query_params["picture"])
                return _Json(await self._use_models(request, lambda: describe(path)))
            with tempfile.NamedTemporaryFile(prefix="captions-") as file:
                await _receive(request, file)
                path = Path(file.name)
                return _Json(await self._use_models(request, lambda: describe(path)))

    async def _find(self, request: Request) -> Response:
        search = self._search
        if search is None:
            raise HTTPException(404)
        sentence = str((await _json(request)).get("sentence", ""))
        require(
            len(sentence) <= _LONGEST_QUERY,
            f"expected at most {_LONGEST_QUERY} characters to search for, found {len(sentence)}",
        )
        async with self._place():
            matches, unknown = await self._use_models(request, lambda: search.find(sentence))
        return _Json(
            {
                "pictures": [
                    {
                        "picture": self._shown.key(one.path),
                        "name": _within(search.folder, one.path),
                        "match": one.match,
                    }
                    for one in matches
                ],
                "unknown": f"Unknown words were ignored: {first_few(unknown)}." if unknown else "",
            }
        )

    async def _picture(self, request: Request) -> Response:
        path = self._shown_path(request.path_params["key"])
        width = _PREVIEW_WIDTH if "large" in request.query_params else _RESULT_WIDTH
        uri = await _in(self._pictures, lambda: as_data_uri(path, width))
        return Response(base64.b64decode(uri.partition(",")[2]), media_type="image/jpeg")

    async def _download(self, request: Request) -> Response:
        captions = page_files.parse(await _json(request))
        kind, identity = request.path_params["kind"], self._captioner.identity
        name, content = await _in(
            self._pictures, lambda: page_files.download(captions, kind, identity)
        )
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def _save(self, request: Request) -> Response:
        if self._album is None:
            raise HTTPException(404)
        sent = await _json(request)
        captions: dict[Path, page_files.Reviewed] = {}
        numbers: dict[Path, int] = {}
        for number, one in enumerate(page_files.parse(sent)):
            if one.picture:
                path = self._shown_path(one.picture)
                # Of two cards of a picture an edited one counts, else the newest, sent first.
                if path not in captions or one.corrected > captions[path].corrected:
                    captions[path], numbers[path] = one, number
        album, kind, replace = self._album, request.path_params["kind"], sent.get("replace") is True
        identity = self._captioner.identity
        saved = await _in(
            self._pictures, lambda: page_files.save(captions, album, kind, identity, replace)
        )
        written = [numbers[path] for path in saved.pictures]
        return _Json({"said": saved.said, "written": written})

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Take one of the places of the queue."""
        if self._places == 0:
            raise HTTPException(503, "The page is busy. Try again in a moment.")
        self._places -= 1
        try:
            yield
        finally:
            self._places += 1

    async def _use_models(self, request: Request, work: Callable[[], _T]) -> _T:
        """Return what `work` returns, unless the visitor has left before its turn came."""
        async with self._turn:
            if await request.is_disconnected():
                raise HTTPException(499)
            return await _in(self._models, work)

    def _shown_path(self, key: str) -> Path:
        path = self._shown.path(key)
        if path is None:
            raise HTTPException(404, "The page was started again. Search once more.")
        return path


async def _in(executor: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
    """Return what `work` returns in a thread of its own."""
    return await asyncio.get_running_loop().run_in_executor(executor, work)


def _name(folder: Path) -> str:
    return folder.resolve().name


def _within(folder: Path, path: Path) -> str:
    """Return how people know a picture: by its path in the folder that is searched."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


async def _receive(request: Request, file: IO[bytes]) -> None:
    """Write the body of a request to a file; its size has been checked."""
    try:
        async with asyncio.timeout(_UPLOAD_SECONDS):
            async for chunk in request.stream():
                file.write(chunk)
            file.flush()
    except TimeoutError:
        raise HTTPException(408, "The picture took too long to arrive. Try again.") from None
    except ClientDisconnect:
        raise HTTPException(400, "The picture did not arrive completely. Try again.") from None


async def _json(request: Request) -> dict[str, Any]:
    try:
        content = await request.json()
    except (ValueError, RecursionError, ClientDisconnect):
        content = None
    if not isinstance(content, dict):
        raise UserError("expected a JSON object")
    return content


def _problem(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, error: Exception) -> Response:
        text = str(error)
        return _Json({"error": text[:1].upper() + text[1:] + "."}, status)

    return answer


async def _unreadable(request: Request, error: Exception) -> Response:
    text = f"This picture cannot be read: {error}. Try another one."
    return _Json({"error": text}, 422)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _Json({"error": error.detail}, error.status_code, headers=error.headers)


async def _disk_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    text = f"The server cannot {'write' if full else 'read or write'}: {error.strerror or error}."
    return _Json({"error": text}, 507 if full else 500)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        UserError: the port is taken, or the address does not belong to this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except (OSError, UnicodeError) as error:  # a name that cannot be that of a host
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen on {host}, port {port}: {reason}; choose another --port (0 takes a "
            "free one), or --host"
        ) from error
    return listening


def serve(
    captioner: PageCaptioner,
    search: Search | None,
    album: Path | None,
    *,
    listening: socket.socket,
    hosts: frozenset[Host] | None,
    password: str | None,
    max_upload: int,
    max_queue: int,
) -> None:
    """Serve the page until SIGTERM or Ctrl-C, and print its address.

    An uploaded file is a temporary file until it is captioned.

    Args:
        captioner: captions the pictures.
        search: finds pictures; without it there is no search tab.
        album: folder into which the page may write; None if it may not.
        listening: socket that listens on the page's address.
        hosts: hosts that the page answers to; None stands for any.
        password: password of the page; None lets everyone in.
        max_upload: largest picture accepted, in megabytes.
        max_queue: number of pictures and searches that may wait; further ones are refused.
    """
    page = Page(captioner, search, album, max_upload=max_upload, max_queue=max_queue)
    app: Application = page.application()
    guard = Guard(app, hosts=hosts, password=password, max_body=max_upload * 2**20)
    address, port = listening.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    needs = "" if password is None else "needs the password, with any user name; "

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"demo: http://{shown}:{port}/ ({needs}Ctrl-C ends it)", flush=True)

    # When it has stopped, the server raises again the signal that ended it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    config = uvicorn.Config(
        guard,
        http="h11",
        ws="none",  # the page needs no websockets
        log_level="error",
        timeout_graceful_shutdown=3,
    )
    Server(config).run(sockets=[listening])
