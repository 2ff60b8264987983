"""Who may use the page of `decoder.demo`: hosts, origins, the password, and the size of a request.

A web site can point its own name at this machine (DNS rebinding), and its scripts may then read
what the page answers. The browser still sends the name of that site as the host, so the host is
checked. Pages that other machines reach ask for a password instead.
"""

import base64
import binascii
import getpass
import hashlib
import hmac
import ipaddress
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

from features.errors import UserError, require

PASSWORD = "DEMO_PASSWORD"
"""Name of the environment variable that may hold the password."""
SHORTEST = 12
"""Shortest password that is accepted, in characters: guesses are not slowed down."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
Host = tuple[str, int | None]
"""A name or address in lower case, and its port; None stands for any port."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_ALWAYS = [
    # The browser loads nothing from elsewhere, runs only the page's own script, and shows the page
    # in no other one, where a visitor could be led to click on it unknowingly.
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        b"img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),  # for browsers that do not know frame-ancestors
    (b"x-content-type-options", b"nosniff"),
]


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach an IP address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def host_of(text: str) -> Host | None:
    """Return the host in a Host header, or None if it is malformed."""
    match = _HOST.fullmatch(text.lower())
    if match is None:
        return None
    name, port = match.groups()
    return name, None if port is None else int(port)


def trusted_hosts(address: str, port: int, allowed: Iterable[str]) -> frozenset[Host] | None:
    """Return the hosts that a page listening on an address answers to; None stands for any.

    Args:
        address: IP address that the page listens on.
        port: port that it listens on.
        allowed: further hosts, each with a port or for any port.
    """
    more = {host for host in map(host_of, allowed) if host is not None}
    if not more and not is_loopback(address):
        return None  # this machine has more names than it knows; the password protects the page
    shown = f"[{address}]" if ":" in address else address
    return frozenset({(name, port) for name in ("localhost", "127.0.0.1", "[::1]", shown)} | more)


def read_password(file: Path | None, *, needed: bool) -> str | None:
    """Return the password of the page: from a file, else from the environment, else from a person.

    Args:
        file: file whose first line is the password; nobody but its owner may read it.
        needed: ask for the password on the terminal if there is no other.

    Returns:
        The password, or None if it is not needed and there is none.

    Raises:
        UserError: the file cannot be read or others can read it, the password is too short, or it
            is needed and there is none.
    """
    # Programs that are started from here need not know it.
    password = os.environ.pop(PASSWORD, None)
    source = f"in the environment variable {PASSWORD}"
    if file is not None:
        password, source = _first_line(file), f"in {file}"
    elif password is None and needed and sys.stdin is not None and sys.stdin.isatty():
        try:
            password, source = getpass.getpass("Password for the page: "), "on the terminal"
        except EOFError:
            password = None
    if password is None:
        require(
            not needed,
            "expected a password, because other machines can reach the page at this --host; set "
            f"the environment variable {PASSWORD}, or name a file that only you can read with "
            "--password-file; a password on the command line could be read by other users",
        )
        return None
    require(
        len(password) >= SHORTEST,
        f"expected a password of at least {SHORTEST} characters {source}, found {len(password)}",
    )
    return password


def _first_line(file: Path) -> str:
    try:
        with file.open(encoding="utf-8-sig") as opened:  # Notepad writes a mark
            mode = os.fstat(opened.fileno()).st_mode & 0o777
            require(
                mode & 0o077 == 0,
                f"expected a password file that only its owner can read, found mode {mode:04o} "
                f"on {file}; run: chmod 600 {file}",
            )
            return opened.readline().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"the password file {file} is not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise UserError(
            f"cannot read the password file {file}: {error.strerror or error}"
        ) from error


class Guard:
    """An ASGI application that passes on the requests that may use the page, and no others.

    Every answer, a refusal too, forbids other web sites to show the page in a frame.

    Args:
        app: the application that answers.
        hosts: hosts that are answered; None stands for any.
        password: what a browser must send by HTTP Basic authentication, with any user name; None
            lets everyone in.
        max_body: largest body of a request, in bytes.
    """

    def __init__(
        self,
        app: Application,
        *,
        hosts: frozenset[Host] | None,
        password: str | None,
        max_body: int,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._digest = None if password is None else _digest(password.encode())
        self._max_body = max_body

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        assert scope["type"] == "http", "the server offers no websockets"

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = {name for name, _ in _ALWAYS}
                kept = [one for one in message.get("headers", []) if one[0].lower() not in ours]
                message = {**message, "headers": [*kept, *_ALWAYS]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_guarded)
            return
        status, text = refusal
        body = text.encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),  # the rest of the request is not read
        ]
        if status == 401:
            headers.append((b"www-authenticate", b'Basic realm="captions", charset="UTF-8"'))
        await send_guarded({"type": "http.response.start", "status": status, "headers": headers})
        await send_guarded({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """Return the status and the message that refuse a request, or None if it may pass."""
        host = _host(_values(scope, b"host"), scope["scheme"])
        if not self._trusts(host):
            # The allowed names are not listed: that of a tunnel may be a secret.
            return 403, (
                "This page does not answer to the host of this request. On its own machine, open "
                f"it as http://localhost:{scope['server'][1]}/; to reach it by another name, start "
                "it with --allow-host NAME.\n"
            )
        if not self._knows(_values(scope, b"authorization")):
            return 401, "This page needs its password, with any user name.\n"
        origins = _values(scope, b"origin")
        if not origins and scope.get("method") not in ("GET", "HEAD"):
            origins = [_origin(address) for address in _values(scope, b"referer")]
            if {*_values(scope, b"sec-fetch-site")} & {"cross-site", "same-site"}:
                origins.append("null")
        if origins and not self._trusts_origin(origins, _values(scope, b"host")):
            return 403, "This page does not answer to requests from other web sites.\n"
        return self._refusal_of_body(scope)

    def _trusts(self, host: Host | None) -> bool:
        if host is None or self._hosts is None:
            return host is not None
        return host in self._hosts or (host[0], None) in self._hosts

    def _trusts_origin(self, origins: list[str], hosts: list[str]) -> bool:
        # Browsers send the origin with whatever changes something, "null" if they hide it.
        scheme, separator, netloc = origins[0].partition("://")
        if len(origins) != 1 or not separator or scheme not in _DEFAULT_PORTS:
            return False
        origin = _host([netloc], scheme)
        if self._hosts is not None:
            return self._trusts(origin)
        return origin is not None and origin == _host(hosts, scheme)

    def _knows(self, authorizations: list[str]) -> bool:
        """Return whether a request brings the password."""
        if self._digest is None:
            return True
        scheme, _, credentials = (authorizations or [""])[0].partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            decoded = base64.b64decode(credentials.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        # Digests have one length, so the time of comparing does not tell that of the password.
        return hmac.compare_digest(_digest(decoded.partition(b":")[2]), self._digest)

    def _refusal_of_body(self, scope: Message) -> tuple[int, str] | None:
        if _values(scope, b"transfer-encoding"):
            return 411, "Expected a request that states its length (Content-Length).\n"
        # The server reads no more than this number; it has checked that it is a number.
        length = int((_values(scope, b"content-length") or ["0"])[0])
        if length > self._max_body:
            return 413, (
                f"The request exceeds the maximum of {self._max_body / 2**20:.3g} MB; "
                "choose a smaller picture, or start the page with a larger --max-upload.\n"
            )
        return None


def _values(scope: Message, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _host(values: list[str], scheme: str) -> Host | None:
    """Return the host that one header names, with the port that its scheme implies."""
    host = host_of(values[0]) if len(values) == 1 else None
    if host is None or host[1] is not None:
        return host
    return host[0], _DEFAULT_PORTS.get(scheme, 80)


def _origin(address: str) -> str:
    """Return the origin of a page: the beginning of its address."""
    return "/".join(address.split("/", 3)[:3])


def _digest(password: bytes) -> bytes:
    return hashlib.sha256(password).digest()
