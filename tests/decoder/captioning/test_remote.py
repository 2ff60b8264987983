"""Pictures from standard input and from the web."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from PIL import Image

from decoder import caption
from decoder.captioning import remote
from features.errors import UserError


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "JPEG")
    return file.getvalue()


ANSWERS = {
    "/photo.jpg": (200, {}, jpeg()),
    "/my%20caf%C3%A9.jpg?a=%C3%BC": (200, {}, jpeg()),
    "/no.jpg": (404, {}, b""),
    "/page.jpg": (200, {}, b"<!DOCTYPE html><title>Log in</title>" + b" " * 2000),
    "/moved.jpg": (302, {"Location": "/photo.jpg"}, b""),
    "/file.jpg": (302, {"Location": "file:///etc/hostname"}, b""),
    "/large.jpg": (200, {}, jpeg() + b"\0" * 200_000),
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a web server with `ANSWERS`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, content = ANSWERS[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def standard_input(content: bytes, terminal: bool = False) -> SimpleNamespace:
    return SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: terminal)


def test_pictures_from_the_web_and_from_standard_input_are_captioned(address, capsys, monkeypatch):
    monkeypatch.setattr(remote.sys, "stdin", standard_input(jpeg()))
    given = [f"{address}/moved.jpg", "-", f"{address}/no.jpg"]
    assert caption.main(["--json", *given]) == 1
    shown = capsys.readouterr()
    lines = [json.loads(line) for line in shown.out.splitlines()]
    assert [line["path"] for line in lines] == given
    assert lines[0]["caption"] == lines[1]["caption"] != ""
    assert lines[2]["error"] == "the server answered 404 Not Found"
    assert f"error: cannot read {address}/no.jpg: the server answered 404" in shown.err


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/page.jpg", "not a picture but an HTML page"),
        ("/file.jpg", "'file:///etc/hostname' is not allowed"),
        ("/large.jpg", "more than 0 MB"),
        (" .jpg", "cannot download it"),
    ],
)
def test_what_is_not_a_picture_of_sensible_size_is_not_downloaded(
    path, reason, address, tmp_path, monkeypatch
):
    monkeypatch.setattr(remote, "MOST_BYTES", 100_000)
    fetched = remote.fetch([address + path], tmp_path)
    assert not fetched.paths
    assert not any(tmp_path.iterdir())
    ((file, error),) = fetched.failed
    assert reason in str(error)
    assert fetched.names[file] == address + path


def test_addresses_are_taken_as_browsers_show_them(address, tmp_path):
    (tmp_path / "my café.jpg").write_bytes(jpeg())
    (tmp_path / "fetched").mkdir()
    given = [f"{address}/my café.jpg?a=ü", f"{address}/my%20caf%C3%A9.jpg?a=%C3%BC"]
    fetched = remote.fetch(given, tmp_path / "fetched")
    assert [path.read_bytes() for path in fetched.paths] == [jpeg()] * 2
    local = remote.fetch([(tmp_path / "my café.jpg").as_uri()], tmp_path / "fetched")
    assert local.paths == [tmp_path / "my café.jpg"]


def test_a_server_that_is_not_there_is_named_with_the_reason(tmp_path):
    ((_, error),) = remote.fetch(["http://127.0.0.1:9/a.jpg"], tmp_path).failed
    assert "Connection refused" in str(error)


def test_standard_input_must_not_be_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(remote.sys, "stdin", standard_input(b"", terminal=True))
    with pytest.raises(UserError, match=r"caption - < photo\.jpg"):
        remote.fetch(["-"], tmp_path)


@pytest.mark.parametrize("option", [["--out", "c.csv"], ["--sidecar", "txt"]])
def test_remote_pictures_have_no_file_to_write_beside_or_to_list(option, capsys):
    assert caption.main(["-", *option]) == 2
    assert "--out and --sidecar are for files, found -" in capsys.readouterr().err
