"""The browser page of `decoder.demo`: its content, as HTML made for screen readers, and its server.

Gradio builds the page and handles uploads; the captioner and the search do not depend on it.
"""

import os
import signal
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Any

import torch

from decoder.captioning.access import Guard, Host
from decoder.captioning.captioner import Candidate, Captioner, default_generation
from decoder.captioning.confidence import confidence_of
from decoder.captioning.writer import Caption, describe
from decoder.data.batches import Features
from decoder.data.pictures import features_of
from decoder.generation.options import GenerateOptions
from decoder.ranking.searcher import Found, Searcher
from evaluation.gallery import picture, shade
from features.errors import UserError, first_few
from features.images import PictureError
from pipeline.text import as_sentence
from pipeline.work import RunFolder

TITLE = "Captions of pictures"
ALTERNATIVES = 3
# How often uploads are looked at, and the age at which they are deleted, in seconds.
_DELETE_UPLOADS = (60, 1800)
# Gradio keeps the last result of this number of visitors; its default is 10,000.
_SESSIONS = 4
# Alternatives should differ from the caption; those of a plain beam search hardly do.
_DIVERSE = GenerateOptions(beam=8, groups=4, captions=4)
_WORD_WIDTH, _PICTURE_WIDTH = 200, 480
_CAUTION = (
    "The captioner is small: it describes an everyday photograph as a whole, and often gets "
    "colours, numbers and rare things wrong. Do not rely on it where that matters."
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


class PageCaptioner:
    """Captions one picture at a time for the page; the CNN and the decoder are loaded once.

    Args:
        run: the run or captioner.
        threshold: captions whose confidence is below this are marked as unsure.
        device: where to compute.
    """

    def __init__(self, run: RunFolder, threshold: float, device: torch.device) -> None:
        self._captioner = Captioner([(run, run.best)], default_generation(run), device)
        self._diverse = Captioner([(run, run.best)], _DIVERSE, device)
        self._confidence = confidence_of(self._captioner)
        self._threshold = threshold
        self._backbone = self._captioner.backbone()

    def html(self, path: Path) -> str:
        """Return the caption, confidence, alternatives and attention of a picture as HTML.

        Raises:
            PictureError: the picture cannot be read.
            UserError: the picture cannot be read again to show it.
        """
        features = features_of(self._backbone, path)
        best = self._captioner.caption(features)[0]
        others = [one for one in self._diverse.captions(features)[0] if one.text != best.text]
        caption = describe(best, self._confidence, self._threshold)
        sentences = [as_sentence(other.text) for other in others[:ALTERNATIVES]]
        return _result(caption, sentences, path, self._words(features, best, path))

    def _words(self, features: Features, best: Candidate, path: Path) -> str:
        """Return the attention at each word as HTML, nothing if no model attends."""
        if not self._captioner.attends:
            return ""
        height, width = self._captioner.config["features"]["grid"]
        (attention_TR,) = self._captioner.attention(features, [best])
        small = picture(path, _WORD_WIDTH)
        items = [
            f'<li><div class="look"><img src="{small}" alt="">'
            f'<img class="shade" src="{shade(weights_R.reshape(height, width))}" '
            f'alt="Where it looked for “{escape(word)}”"></div><span>{escape(word)}</span></li>'
            for word, weights_R in zip(
                self._captioner.vocabulary.words_of(best.ids), attention_TR, strict=False
            )
        ]
        return (
            "<h3>Where it looked for each word</h3><p>Bright is where the decoder looked.</p>"
            f'<ol class="words">{"".join(items)}</ol>'
        )


def _result(caption: Caption, others: list[str], path: Path, words: str) -> str:
    confidence = "This captioner has no confidence estimate."
    if caption.confidence is not None:
        mark = '<span class="unsure">Unsure.</span> ' if caption.unsure else ""
        confidence = f"{mark}Probability that this is a good caption: {caption.confidence:.0%}."
    listed = "".join(f"<li>{escape(one)}</li>" for one in others) or "<li>There are none.</li>"
    sentence = escape(caption.caption or "")
    return (
        f'<div class="result"><p class="caption">{sentence}</p>'
        f'<p class="confidence">{confidence}</p>'
        f'<img class="whole" src="{picture(path, _PICTURE_WIDTH)}" alt="{sentence}">'
        f'<h3>Other captions</h3><ul class="others">{listed}</ul>{words}</div>'
    )


def _search_results(found: list[Found], unknown: list[str]) -> str:
    """Return the pictures that a search found as an HTML list, the best first."""
    note = f"<p>Unknown words were ignored: {escape(first_few(unknown))}.</p>" if unknown else ""
    items = []
    for number, one in enumerate(found, 1):
        name = escape(one.file.name)
        try:
            shown = (
                f'<img src="{picture(one.file, _WORD_WIDTH * 2)}" alt="Result {number}: {name}">'
            )
        except UserError:  # the data set was moved, but its features are still searched
            shown = "<p>The picture is no longer there.</p>"
        items.append(f"<li>{shown}<span>{name}</span><span>score {one.score:.2f}</span></li>")
    return f'{note}<ol class="found">{"".join(items)}</ol>'


def _error(message: str) -> str:
    return f'<p class="problem" role="alert">{escape(message)}</p>'


def _blocks(captioner: PageCaptioner, searcher: Searcher | None, max_queue: int) -> Any:
    """Return the page as Gradio's Blocks. One visitor at a time uses the models, others queue."""
    import gradio as gr

    # Libraries keep memory for every thread that calls them, and Gradio calls from many.
    computing = ThreadPoolExecutor(max_workers=1)

    def caption(content: bytes | None) -> str:
        if content is None:
            return _error("There is no picture. Choose one.")
        try:
            with tempfile.NamedTemporaryFile(dir=os.environ["GRADIO_TEMP_DIR"]) as file:
                file.write(content)
                file.flush()
                return computing.submit(captioner.html, Path(file.name)).result()
        except PictureError as error:
            return _error(f"This picture cannot be read: {error}. Try another one.")
        except UserError as error:
            return _error(str(error))

    def search(sentence: str) -> str:
        assert searcher is not None  # otherwise there is no search tab
        try:
            found = computing.submit(searcher.find, sentence).result()
            return _search_results(found, searcher.unknown(sentence))
        except UserError as error:
            return _error(str(error))

    one = {"concurrency_limit": 1, "concurrency_id": "models", "api_visibility": "private"}
    # Uploads are deleted by age, because two visitors who upload the same file share one.
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=_DELETE_UPLOADS) as page:
        gr.Markdown(f"# {TITLE}\n{_CAUTION}")
        with gr.Tab("Caption a picture"):
            # As "filepath", Gradio would leave an empty file behind for each picture.
            file = gr.File(label="Picture", file_types=["image"], type="binary", elem_id="picture")
            result = gr.HTML(elem_id="caption", html_template=_LIVE)
            # Clearing the file makes room for the next picture.
            gr.on(
                [file.upload], lambda content: (caption(content), None), file, [result, file], **one
            )
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
    page.queue(max_size=max_queue)
    page.state_session_capacity = _SESSIONS
    return page


# Screen readers read out what changes in a live region.
_LIVE = '<div role="status" aria-live="polite">${value}</div>'


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
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another "
            "--port (0 takes a free one), or --host"
        ) from error
    return listening


def serve(
    captioner: PageCaptioner,
    searcher: Searcher | None,
    *,
    listening: socket.socket,
    hosts: frozenset[Host] | None,
    password: str | None,
    max_upload: int,
    max_queue: int,
) -> None:
    """Serve the page until SIGTERM or Ctrl-C, and print its address.

    Uploaded files lie in a temporary folder, which is deleted when the server ends.

    Args:
        captioner: captions the pictures.
        searcher: searches a work directory; without it there is no search tab.
        listening: socket that listens on the page's address.
        hosts: hosts that the page answers to; None stands for any.
        password: password of the page; None lets everyone in.
        max_upload: largest picture accepted, in megabytes.
        max_queue: number of pictures and searches that may wait; further ones are refused.
    """
    with tempfile.TemporaryDirectory(prefix="captions-") as folder:
        os.environ |= {
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_RUN_HISTORY": "False",  # the browser would keep the pictures
        }
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI

        app = FastAPI(openapi_url=None)
        # Local fonts: Gradio's own theme would load fonts from the web.
        theme = gr.themes.Default(
            primary_hue="blue",  # Gradio's orange has too little contrast with white
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        )
        gr.mount_gradio_app(
            app,
            _blocks(captioner, searcher, max_queue),
            "/",
            theme=theme,
            css=_CSS,
            footer_links=[],
            max_file_size=max_upload * 2**20,
            ssr_mode=False,
            enable_monitoring=False,
        )
        # A megabyte for what surrounds the picture in an upload.
        guard = Guard(app, hosts=hosts, password=password, max_body=(max_upload + 1) * 2**20)
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
