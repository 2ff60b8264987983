"""The page of `decoder.demo` under load, by hand:

    python -m tests.benchmarks.page [--run RUN] [--minutes 10] [--uploads 50]

Visitors upload pictures at once, good and broken ones in turn, and each sends the next when the
last is answered. Meanwhile the page is opened every second, and the memory of the server is read.
Reports the answers, the seconds until they came, and the highest memory of each minute.
"""

import asyncio
import contextlib
import io
import itertools
import random
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
from PIL import Image, ImageDraw, ImageFilter


def files(seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of uploads without end; every second one is broken.

    The good ones are drawn, in three formats and several sizes, each four times in turn, so that
    visitors also upload the same file at the same time.
    """
    draw = random.Random(seed)
    for number in itertools.count():
        size = draw.choice([(320, 240), (640, 480), (1024, 768), (2000, 1500), (3000, 2000)])
        noise = Image.effect_noise((size[0] // 8, size[1] // 8), 90).convert("RGB").resize(size)
        picture = noise.filter(ImageFilter.GaussianBlur(3))
        colour = tuple(draw.randrange(256) for _ in range(3))
        ImageDraw.Draw(picture).ellipse((0, 0, size[0] // 2, size[1] // 2), fill=colour)
        kind = draw.choice(["jpeg", "png", "webp"]) if size[0] <= 1024 else "jpeg"
        written = io.BytesIO()
        picture.save(written, kind)
        good = written.getvalue()
        broken = [
            good[: len(good) // 3],
            b"",
            b"<!DOCTYPE html><title>404</title>Not found",
            bytes(draw.randrange(256) for _ in range(20_000)),
            # A picture of 60,000 x 60,000 pixels, as its header says.
            b"BM" + (54).to_bytes(12, "little") + (40).to_bytes(4, "little")
            + (60_000).to_bytes(4, "little") * 2 + b"\1\0\x18\0" + bytes(24),
            b"version https://git-lfs.github.com/spec/v1\n",
        ]  # fmt: skip
        for turn in range(4):
            yield f"good{number}.{kind}", good
            yield f"broken{number}-{turn}.jpg", draw.choice(broken)


async def upload(client: httpx.AsyncClient, content: bytes) -> str:
    """Upload a file as the browser does and return what became of it."""
    answer = await client.post("/api/caption", content=content)
    if answer.status_code == 200:
        return "caption" if answer.json()["caption"] else "empty caption"
    if answer.status_code == 422 and "This picture cannot be read" in answer.json()["error"]:
        return "unreadable"
    return f"status {answer.status_code}"


def memory(process: int) -> float:
    """Return the resident memory of a process in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def load(address: str, process: int, minutes: float, uploads: int) -> None:
    """Put the page under load and print the figures."""
    start = time.monotonic()
    outcomes: Counter[str] = Counter()
    waits: list[float] = []
    opened: list[float] = []
    highest: dict[int, float] = {}
    answers: dict[int, int] = {}
    source = files(seed=1)

    async def visit(client: httpx.AsyncClient) -> None:
        while time.monotonic() - start < 60 * minutes:
            name, content = next(source)
            began = time.monotonic()
            try:
                outcome = await upload(client, content)
            except httpx.HTTPError as error:
                outcome = type(error).__name__
            outcomes[f"{name[:4].replace('brok', 'broken')} -> {outcome}"] += 1
            waits.append(time.monotonic() - began)

    async def watch(client: httpx.AsyncClient) -> None:
        while True:
            began = time.monotonic()
            (await client.get("/")).raise_for_status()
            opened.append(time.monotonic() - began)
            minute = int((began - start) / 60)
            answers[minute] = sum(outcomes.values())
            highest[minute] = max(highest.get(minute, 0), memory(process))
            await asyncio.sleep(1)

    # No connection is used twice: the server may close it at the moment when it is taken again.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        watching = asyncio.create_task(watch(client))
        await asyncio.gather(*(visit(client) for _ in range(uploads)))
        if watching.done():
            watching.result()  # raises what ended it
        watching.cancel()
    print(f"{sum(outcomes.values())} uploads, {uploads} at once, {minutes:g} minutes")
    for outcome, count in outcomes.most_common():
        print(f"  {outcome}: {count}")
    for name, seconds in {"answer to an upload": waits, "opening the page": opened}.items():
        median = statistics.median(seconds)
        print(f"{name}: median {median:.2f} s, slowest {max(seconds):.2f} s")
    print("MB, highest of each minute:", [round(one) for _, one in sorted(highest.items())])
    print("answers by the end of each minute:", [answers[one] for one in sorted(answers)])
    early = max(mb for minute, mb in highest.items() if minute < 2)
    late = max((mb for minute, mb in highest.items() if minute >= 2), default=early)
    print(f"highest after the second minute against before: {late / early - 1:+.1%}")


def main() -> None:
    """Start the page, put it under load and end it."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="without it, the captioner in this package")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--uploads", type=int, default=50)
    options = parser.parse_args()
    command = [sys.executable, "-m", "decoder.demo", "--port", "0"]
    command += [] if options.run is None else ["--run", str(options.run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[1]
            asyncio.run(load(address, server.pid, options.minutes, options.uploads))
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.terminate()


if __name__ == "__main__":
    main()
