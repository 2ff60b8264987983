"""Who the page lets in, over real HTTP: hosts, origins, the password, sizes and a full queue."""

import base64
import contextlib
import http.client
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from decoder import demo
from decoder.captioning.access import PASSWORD, Guard, read_password, trusted_hosts
from tests.pictures import moon

SECRET = "pässword with spaces"
needs_server = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("starlette", "uvicorn"))),
    reason="needs starlette and uvicorn, which the extra demo installs",
)


def basic(password: str, user: str = "anyone") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    text: str


@dataclass
class Page:
    """A running page; `temporary` is its folder for temporary files."""

    port: int
    temporary: Path

    def ask(self, method: str = "GET", path: str = "/", body: bytes = b"", **headers) -> Answer:
        """Send a request with the right host and password; None leaves a header out."""
        sent = {
            "Host": f"localhost:{self.port}",
            "Authorization": basic(SECRET),
            "Content-Length": str(len(body)),
        }
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused halfway
                connection.endheaders(body or None)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read().decode())
        finally:
            connection.close()

    def caption(self, content: bytes) -> Answer:
        return self.ask("POST", "/api/caption", content)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    temporary = tmp_path_factory.mktemp("temporary")
    options = ["--port", "0", "--max-upload", "1", "--max-queue", "2"]
    options += ["--allow-host", "Demo.example.org", "--allow-host", "proxy.example:8443"]
    server = subprocess.Popen(
        [sys.executable, "-m", "decoder.demo", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, PASSWORD: SECRET, "TMPDIR": str(temporary)},
    )
    line = server.stdout.readline()
    assert "needs the password" in line, (line, server.communicate(timeout=60))
    yield Page(int(line.split("/")[2].rsplit(":")[-1]), temporary)
    server.send_signal(signal.SIGTERM)
    assert server.communicate(timeout=60)[1] == ""
    assert server.returncode == 0


ROUTES = [
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/static/page.js"),
    ("GET", "/samples/skier.jpg"),
    ("GET", "/api/picture/x"),
    ("POST", "/api/caption"),
    ("POST", "/api/search"),
    ("POST", "/api/download/csv"),
    ("POST", "/api/save/csv"),
    ("OPTIONS", "/api/caption"),
    ("GET", "/no/such/route"),
]


def cannot_be_framed(answer: Answer) -> bool:
    policy = answer.headers.get_all("Content-Security-Policy")
    return (
        len(policy) == 1
        and "frame-ancestors 'none'" in policy[0]
        and answer.headers["X-Frame-Options"] == "DENY"
    )


@needs_server
def test_every_route_refuses_a_foreign_host_origin_and_visitor(page):
    for method, path in ROUTES:
        for refused, status in [
            ({"Host": f"evil.example:{page.port}"}, 403),
            ({"Origin": "http://evil.example"}, 403),
            ({"Authorization": None}, 401),
        ]:
            answer = page.ask(method, path, **refused)
            assert answer.status == status, (method, path, refused)
            assert cannot_be_framed(answer)


@needs_server
def test_only_the_hosts_of_this_machine_and_allowed_ones_are_answered(page):
    port = page.port
    for host in [
        f"localhost:{port}",
        f"LOCALHOST:{port}",
        f"127.0.0.1:{port}",
        f"[::1]:{port}",
        "demo.example.org",
        "demo.example.org:1234",
        "proxy.example:8443",
    ]:
        answer = page.ask(path="/", Host=host)
        assert (answer.status, cannot_be_framed(answer)) == (200, True), host
    for host in [
        "evil.example",
        "localhost",
        f"localhost:{port + 1}",
        f"localhost.evil.example:{port}",
        f"127.0.0.1.nip.example:{port}",
        f"127.0.0.2:{port}",
        f"localhost:{port}@evil.example",
        f"localhost:{port}, evil.example",
        "sub.demo.example.org",
        "proxy.example",
        "proxy.example:8444",
        "",
    ]:
        answer = page.ask(path="/", Host=host)
        assert answer.status == 403, host
        assert "--allow-host" in answer.text
        assert "demo.example.org" not in answer.text  # the name of a tunnel may be a secret
    assert page.ask(path="/", Host=None).status == 400
    forwarded = {"X_Forwarded_Host": f"localhost:{port}", "X_Forwarded_Proto": "wss"}
    assert page.ask(path="/", Host="evil.example", **forwarded).status == 403


@needs_server
def test_requests_of_other_web_sites_are_refused(page):
    for origin, status in [
        (None, 200),
        (f"http://localhost:{page.port}", 200),
        (f"http://127.0.0.1:{page.port}", 200),
        ("https://demo.example.org", 200),
        ("null", 403),
        ("http://localhost", 403),
        ("http://localhost:3000", 403),
        (f"http://localhost:{page.port}.evil.example", 403),
        ("https://evil.example", 403),
        ("file://", 403),
    ]:
        answer = page.ask("POST", "/api/download/csv", b'{"captions": []}', Origin=origin)
        assert answer.status == status, (origin, answer)
    for headers, status in [
        ({"Referer": "https://evil.example/page"}, 403),
        ({"Referer": f"http://localhost:{page.port}/"}, 200),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
    ]:
        answer = page.ask("POST", "/api/download/csv", b'{"captions": []}', **headers)
        assert answer.status == status, (headers, answer)


@needs_server
def test_only_the_right_password_is_accepted(page):
    for authorization, status in [
        (basic(SECRET, user=""), 200),
        (basic(SECRET).replace("Basic", "basic"), 200),
        (basic(SECRET + "x"), 401),
        (basic(SECRET[:-1]), 401),
        (basic(""), 401),
        (basic(SECRET).replace("Basic", "Bearer"), 401),
        ("Basic ???", 401),
        ("", 401),
    ]:
        answer = page.ask(path="/", Authorization=authorization)
        assert answer.status == status, authorization
        assert (answer.headers["WWW-Authenticate"] is None) == (status == 200)


@needs_server
def test_no_websocket_is_opened(page):
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    upgrade["Sec_WebSocket_Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    assert page.ask(path="/", **upgrade).status == 200  # a plain answer, not 101
    assert page.ask(path="/", Host="evil.example", **upgrade).status == 403


@needs_server
def test_requests_that_are_too_large_are_refused(page):
    picture = page.caption(bytes(2**20 + 1))
    assert (picture.status, "exceeds the maximum of 1 MB" in picture.text) == (413, True)
    for path in ("/api/caption", "/api/search"):
        # What it announces is enough: nothing of it is read.
        announced = page.ask("POST", path, Content_Length=str(10**12))
        assert announced.status == 413
        assert "--max-upload" in announced.text
        endless = page.ask("POST", path, Content_Length=None, Transfer_Encoding="chunked")
        assert endless.status == 411


@needs_server
def test_a_full_queue_refuses_further_pictures_and_captions_the_waiting_ones(page):
    written = io.BytesIO()
    moon((640, 480)).save(written, "jpeg")
    # The same file each time, as when two visitors try the same picture.
    with ThreadPoolExecutor(8) as visitors:
        answers = list(visitors.map(page.caption, [written.getvalue()] * 8))
    refused = [answer for answer in answers if answer.status != 200]
    assert refused
    assert {answer.status for answer in refused} == {503}
    assert all("The page is busy" in answer.text for answer in refused)
    captioned = [json.loads(answer.text) for answer in answers if answer.status == 200]
    assert len(captioned) >= 2
    for one in captioned:
        assert one["caption"].startswith(one["attention"]["words"][0]["text"])
        sure = one["sure"].partition(" It may show")[0]
        assert sure.endswith(("in 10 such captions are right.", "look like a photograph."))


@needs_server
def test_a_broken_picture_is_reported_and_no_upload_is_left(page):
    answer = page.caption(b"\xff\xd8\xff<b>")
    assert (answer.status, "This picture cannot be read" in answer.text) == (422, True)
    white = io.BytesIO()
    Image.new("RGB", (320, 240), "white").save(white, "png")
    assert "it shows nothing" in page.caption(white.getvalue()).text
    form = page.ask("POST", "/api/caption", b"--x", Content_Type="multipart/form-data; boundary=x")
    assert (form.status, "--data-binary" in form.text) == (415, True)
    assert list(page.temporary.iterdir()) == []


@needs_server
def test_a_folder_that_is_gone_is_not_called_a_full_disk(page):
    aside = page.temporary.rename(page.temporary.with_name("aside"))
    answer = page.caption(b"")
    aside.rename(page.temporary)
    assert answer.status == 500
    assert "The server cannot read or write: No such file or directory." in answer.text


@needs_server
def test_only_pictures_that_were_found_can_be_seen_and_nothing_is_saved_without_a_folder(page):
    for path in ("/api/picture/" + "0" * 32, "/api/picture/..%2f..%2fetc%2fhostname"):
        assert page.ask(path=path).status == 404
    assert page.ask("POST", "/api/caption?picture=/etc/hostname").status == 404
    assert page.ask("POST", "/api/save/csv", b'{"captions": []}').status == 404
    assert page.ask("POST", "/api/search", b'{"sentence": "a dog"}').status == 404
    for path in ("/static/../page.py", "/static/%2e%2e/page.py", "/samples/..%2fpage.jpg"):
        assert page.ask(path=path).status == 404
    for body in (b"", b"[]", b"{", b'{"captions": [1]}', b'{"captions": [{"name": 1}]}'):
        assert page.ask("POST", "/api/download/csv", body).status == 422


@needs_server
def test_a_page_for_other_machines_needs_a_password(monkeypatch, capsys):
    monkeypatch.delenv(PASSWORD, raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for host in ("0.0.0.0", "::"):
        if host == "::" and not socket.has_ipv6:
            continue
        assert demo.main(["--host", host, "--port", "0"]) == 2
        error = capsys.readouterr().err
        assert PASSWORD in error
        assert "--password-file" in error
    monkeypatch.setenv(PASSWORD, "short")
    assert demo.main(["--host", "0.0.0.0", "--port", "0"]) == 2
    assert "at least 12 characters in the environment" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["https://demo.example.org/", "*", "a b", "", "name:port"])
def test_an_allowed_host_is_a_name(name, capsys):
    assert demo.main(["--allow-host", name]) == 2
    assert "expected --allow-host NAME" in capsys.readouterr().err


@needs_server
def test_a_password_file_is_read_only_if_others_cannot(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(PASSWORD, "from the environment")
    file = tmp_path / "password.txt"
    file.write_text(f"{SECRET}\r\nsecond line\n", encoding="utf-8")
    for mode in (0o640, 0o604, 0o620, 0o644):
        file.chmod(mode)
        assert demo.main(["--port", "0", "--password-file", str(file)]) == 2
        assert f"chmod 600 {file}" in capsys.readouterr().err
    for mode in (0o600, 0o400):
        file.chmod(mode)
        assert read_password(file, needed=True) == SECRET
    file.chmod(0o600)
    file.write_text(SECRET, encoding="utf-8-sig")
    assert read_password(file, needed=True) == SECRET
    file.write_bytes(b"\xff\xfe not UTF-8 at all")
    assert demo.main(["--port", "0", "--password-file", str(file)]) == 2
    assert "is not UTF-8" in capsys.readouterr().err
    assert demo.main(["--port", "0", "--password-file", str(tmp_path)]) == 2
    assert "cannot read the password file" in capsys.readouterr().err
    assert read_password(None, needed=False) is None  # the environment forgets it once read


def test_the_terminal_is_asked_for_a_password_only_if_one_is_needed(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv(PASSWORD, raising=False)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda prompt: SECRET)
    assert read_password(None, needed=True) == SECRET
    assert read_password(None, needed=False) is None


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("photos.example", "https://photos.example", 200),
        ("photos.example:443", "https://photos.example", 200),
        ("192.0.2.7:7860", "http://192.0.2.7:7860", 200),
        ("192.0.2.7:7860", None, 200),
        ("192.0.2.7:7860", "http://192.0.2.7:8000", 403),
        ("photos.example", "https://evil.example", 403),
        ("photos.example", "null", 403),
    ],
)
def test_a_page_for_other_machines_answers_by_any_name_but_to_its_own_origin(host, origin, status):
    statuses = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        statuses.append(message.get("status"))

    hosts = trusted_hosts("0.0.0.0", 7860, ())
    headers = [(b"host", host.encode()), (b"authorization", basic(SECRET).encode())]
    headers += [] if origin is None else [(b"origin", origin.encode())]
    guard = Guard(app, hosts=hosts, password=SECRET, max_body=1)
    waiting = guard({"type": "http", "scheme": "http", "headers": headers}, None, send)
    with pytest.raises(StopIteration):
        waiting.send(None)
    assert statuses[0] == status
