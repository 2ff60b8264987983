"""The page of `decoder.demo`: what it shows, as HTML that a screen reader can read, and its server.

Gradio makes the page and carries the files; captioner and search know nothing of it.
"""

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable
from html import escape
from pathlib import Path
from typing import Any

import torch

from decoder.captioning.captioner import Captioned, Captioner, usual_writing
from decoder.captioning.confidence import load
from decoder.captioning.options import DemoOptions
from decoder.captioning.writer import Told, tell
from decoder.data.pictures import features_of
from decoder.generation.options import GenerateOptions
from decoder.ranking.searcher import Found, Searcher
from evaluation.gallery import picture, shade
from features.errors import UserError, first_few
from features.images import PictureError
from pipeline.work import RunFolder

TITLE = "Captions of pictures"
ALTERNATIVES = 3
# Other captions worth reading differ from the first, which the plain beam's do not.
_DIVERSE = GenerateOptions(beam=8, groups=4, captions=4)
_WORD_WIDTH, _PICTURE_WIDTH = 200, 480
_CAUTION = (
    "The captioner is small: it says what the whole of an everyday photograph shows, and often "
    "gets colours, numbers and what is rare wrong. Do not rely on it where that matters."
)
_CSS = """
.caption { font-size: 1.5em; margin: 0 0 .3em }
.result img.whole { max-width: 100%; border-radius: 6px }
.words, .found { display: grid; gap: 12px; padding: 0; list-style: none }
.words { grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)) }
.found { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) }
.words li, .found li { margin: 0 }
.words .look { position: relative; line-height: 0 }
.words img, .found img { width: 100%; border-radius: 4px }
.words .shade { position: absolute; inset: 0; height: 100% }
.words span, .found span { display: block; overflow-wrap: anywhere; line-height: 1.4 }
.unsure { font-weight: bold }
footer { display: none !important }
"""


class Describer:
    """Captions one picture at a time for the page; its CNN and decoder are loaded once.

    Args:
        run: the run or captioner.
        unsure: captions less probable than this to be good are marked.
        device: where it runs.
    """

    def __init__(self, run: RunFolder, unsure: float, device: torch.device) -> None:
        self._captioner = Captioner([(run, run.best)], usual_writing(run), device)
        self._diverse = Captioner([(run, run.best)], _DIVERSE, device)
        self._confidence = load(run.path)
        self._unsure = unsure
        self._backbone = self._captioner.backbone()

    def describe(self, path: Path) -> str:
        """Return caption, confidence, alternatives and attention as HTML.

        Raises:
            PictureError: the picture cannot be read.
            UserError: likewise, where it is drawn.
        """
        features = features_of(self._backbone, path)
        best = self._captioner.caption(features)[0]
        others = [one for one in self._diverse.captions(features)[0] if one.text != best.text]
        told = tell(best, self._confidence, self._unsure)
        sentences = [tell(one, None, 0).sentence for one in others[:ALTERNATIVES]]
        return _result(told, sentences, path, self._words(features, best, path))

    def _words(self, features: Any, best: Captioned, path: Path) -> str:
        if not self._captioner.attends:
            return ""
        height, width = self._captioner.config["features"]["grid"]
        (looked_TR,) = self._captioner.attention(features, [best])
        small = picture(path, _WORD_WIDTH)
        items = [
            f'<li><div class="look"><img src="{small}" alt="">'
            f'<img class="shade" src="{shade(weights_R.reshape(height, width))}" '
            f'alt="Where it looked for “{escape(word)}”"></div><span>{escape(word)}</span></li>'
            for word, weights_R in zip(
                self._captioner.vocabulary.words_of(best.ids), looked_TR, strict=False
            )
        ]
        return (
            "<h3>Where it looked for each word</h3><p>Bright is where the decoder looked.</p>"
            f'<ol class="words">{"".join(items)}</ol>'
        )


def _result(told: Told, others: list[str], path: Path, words: str) -> str:
    sure = "How sure it is, is not known of this captioner."
    if told.confidence is not None:
        mark = '<span class="unsure">Unsure.</span> ' if told.unsure else ""
        sure = f"{mark}Probability that this is a good caption: {told.confidence:.0%}."
    listed = "".join(f"<li>{escape(one)}</li>" for one in others) or "<li>None was found.</li>"
    return (
        f'<div class="result"><p class="caption">{escape(told.sentence)}</p>'
        f'<p class="confidence">{sure}</p>'
        f'<img class="whole" src="{picture(path, _PICTURE_WIDTH)}" alt="{escape(told.sentence)}">'
        f'<h3>Other captions</h3><ul class="others">{listed}</ul>{words}</div>'
    )


def found_as_html(found: list[Found], unknown: list[str]) -> str:
    """Return the pictures that were found as a list, the best first."""
    note = f"<p>Left out, for unknown: {escape(first_few(unknown))}.</p>" if unknown else ""
    items = []
    for number, one in enumerate(found, 1):
        name = escape(one.file.name)
        try:
            shown = (
                f'<img src="{picture(one.file, _WORD_WIDTH * 2)}" alt="Result {number}: {name}">'
            )
        except UserError:  # the data set was moved; its features are still found
            shown = "<p>The picture is not there any more.</p>"
        items.append(f"<li>{shown}<span>{name}</span><span>score {one.score:.2f}</span></li>")
    return f'{note}<ol class="found">{"".join(items)}</ol>'


def _trouble(message: str) -> str:
    return f'<p class="trouble" role="alert">{escape(message)}</p>'


def blocks(describer: Describer, searcher: Searcher | None) -> Any:
    """Return the page as Gradio's Blocks. One visitor at a time uses the models, others queue."""
    import gradio as gr

    def describe(path: str) -> str:
        try:
            return describer.describe(Path(path))
        except PictureError as error:
            return _trouble(f"This picture cannot be read: {error}. Try another one.")
        except UserError as error:
            return _trouble(str(error))
        finally:
            Path(path).unlink(missing_ok=True)

    def search(sentence: str) -> str:
        assert searcher is not None  # there is no tab else
        try:
            return found_as_html(searcher.find(sentence), searcher.unknown(sentence))
        except UserError as error:
            return _trouble(str(error))

    one = {"concurrency_limit": 1, "concurrency_id": "models", "api_visibility": "private"}
    # Files are deleted after use; should a visitor leave in between, within the hour.
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# {TITLE}\n{_CAUTION}")
        with gr.Tab("Caption a picture"):
            file = gr.File(label="Picture", file_types=["image"], elem_id="picture")
            told = gr.HTML(elem_id="told", html_template=_LIVE)
            # The file goes again, which makes room for the next picture.
            gr.on([file.upload], lambda path: (describe(path), None), file, [told, file], **one)
        if searcher is not None:
            with gr.Tab("Search"):
                count = len(searcher.images)
                query = gr.Textbox(
                    label=f"What to look for in {count:,} pictures",
                    placeholder="a dog in the snow",
                    max_length=1000,
                    elem_id="query",
                )
                button = gr.Button("Search", variant="primary")
                found = gr.HTML(elem_id="found", html_template=_LIVE)
                gr.on([query.submit, button.click], search, query, found, **one)
    return page


# What changes in it is read out by screen readers.
_LIVE = '<div role="status" aria-live="polite">${value}</div>'


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        UserError: the port is taken, or the address is not one of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another "
            "--port (0 takes any that is free), or --host"
        ) from error
    return listening


def serve(options: DemoOptions, describer: Describer, searcher: Searcher | None) -> None:
    """Serve the page until SIGTERM or Ctrl-C, and print where it is.

    Uploaded files lie in a folder of their own, which goes when the server does.

    Raises:
        UserError: see `listen`.
    """
    with tempfile.TemporaryDirectory(prefix="captions-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI, Request, Response

        app = FastAPI(openapi_url=None)

        @app.middleware("http")
        async def only_from_here(
            request: Request, call_next: Callable[[Request], Awaitable[Response]]
        ) -> Response:
            response = await call_next(request)
            # Whatever the page's libraries would like to load, the browser does not.
            response.headers["Content-Security-Policy"] = (
                "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
            )
            return response

        # Fonts by name: Gradio's own theme would ask the net for them.
        theme = gr.themes.Default(
            primary_hue="blue",  # Gradio's orange has too little contrast with white
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        )
        gr.mount_gradio_app(
            app,
            blocks(describer, searcher),
            "/",
            theme=theme,
            css=_CSS,
            footer_links=[],
            max_file_size=options.max_upload * 2**20,
            ssr_mode=False,
            enable_monitoring=False,
        )
        with contextlib.closing(listen(options.host, options.port)) as listening:
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host

            class Server(uvicorn.Server):
                async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                    await super().startup(sockets)
                    print(f"demo: http://{shown}:{port}/ (Ctrl-C ends it)", flush=True)

            # The server raises the signal that ended it once more when it is done.
            signal.signal(signal.SIGTERM, lambda *_: None)
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
            Server(config).run(sockets=[listening])
