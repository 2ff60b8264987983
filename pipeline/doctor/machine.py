"""Whether this machine can do what the stages ask of it: each check does the real thing, small.

Libraries are imported by the checks that need them: a broken one must not hide the others.
"""

import hashlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from features.errors import UserError, first_few
from pipeline.doctor.findings import Finding, ok, problem, warning

_REINSTALL = "install the project anew: remove .venv and run ./run_all.sh or tests/run.sh"
_LEAST_PYTHON = (3, 11)
_LEAST_DISK, _LEAST_MEMORY = 2e9, 2e9  # bytes; METEOR takes up to 2 GB
_METEOR_SECONDS = 120.0


def examine(folder: Path) -> Iterator[Finding]:
    """Check this machine, and the disk that `folder` is on."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _torch,
        _torchvision,
        _java,
        _meteor,
        _weights,
        lambda: _disk(folder),
        _memory,
    )
    for check in checks:
        name = getattr(check, "__name__", "_disk").lstrip("_")
        try:
            yield from check()
        except UserError as error:
            yield problem(f"{name} does not work here", str(error))
        except Exception as error:  # whatever a broken library raises: it is what is looked for
            yield problem(f"{name} does not work: {type(error).__name__}: {error}", _REINSTALL)


def _python() -> Iterator[Finding]:
    """Check Python, and that the libraries installed are those that setup.cfg asks for."""
    text = f"Python {platform.python_version()} in {sys.prefix}"
    if sys.version_info < _LEAST_PYTHON:
        yield problem(text, "install Python 3.11 or newer")
    try:
        wanted = [r for r in requires("caption-pipeline") or () if "extra ==" not in r]
    except PackageNotFoundError:
        yield warning(f"{text}; the project is not installed in it", _REINSTALL)
        return
    from packaging.requirements import Requirement

    wrong = []
    for requirement in map(Requirement, wanted):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = ""
        if not requirement.specifier.contains(found or "0", prereleases=True) or not found:
            wrong.append(f"{requirement} (found {found or 'none'})")
    if wrong:
        yield problem(f"{text}: expected {first_few(wrong)}", _REINSTALL)
    else:
        yield ok(f"{text}, with all {len(wanted)} libraries")


def _torch() -> Iterator[Finding]:
    """Multiply two small matrices on the device that the stages would take."""
    import torch

    from features.devices import choose_device

    device = choose_device("auto")
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 512, 512, generator=generator)
    exact = one.double() @ other.double()
    start = time.perf_counter()
    product = (one.to(device) @ other.to(device)).cpu()
    seconds = time.perf_counter() - start
    text = f"torch {torch.__version__} on {device}, {torch.get_num_threads()} threads"
    error = float((product.double() - exact).abs().max() / exact.max())
    if not error < 1e-3:
        yield problem(f"{text}: a matrix product is wrong by {error:.1%}", _REINSTALL)
    else:
        yield ok(f"{text}; a matrix product of 512 x 512 is right, in {1000 * seconds:.1f} ms")


def _torchvision() -> Iterator[Finding]:
    """Run an operation of torchvision's own, which fails if it is built for another torch."""
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    text = f"torchvision {torchvision.__version__}"
    yield ok(text) if kept == [0, 2] else problem(f"{text} computes wrongly", _REINSTALL)


def _java() -> Iterator[Finding]:
    from evaluation import java

    found = java.find_java()
    yield ok(f"Java: {java.version(found)}, {found}")


def _meteor() -> Iterator[Finding]:
    """Score a caption that equals its reference: the tokenizer and METEOR both run."""
    from evaluation.toolkit import score

    caption = "a brown dog runs over the grass"
    start = time.perf_counter()
    scores = score({1: [caption]}, {1: caption}, ("METEOR",), _METEOR_SECONDS)
    seconds, found = time.perf_counter() - start, scores.corpus["METEOR"]
    if found == 1:
        yield ok(f"METEOR scores a caption that equals its reference 1, in {seconds:.1f} s")
    else:
        yield problem(
            f"METEOR scores a caption that equals its reference {found}, not 1", _REINSTALL
        )


def _weights() -> Iterator[Finding]:
    """Compare the CNNs' weights with the first digits of their checksum, which end their names."""
    import torch

    from features.efficientnet_lite import VARIANTS, weights_file
    from features.pretrained import sha256_prefix

    downloaded = Path(torch.hub.get_dir(), "checkpoints").glob("*-????????.pth")
    for path in (*map(weights_file, sorted(VARIANTS)), *sorted(downloaded)):
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            yield problem(f"weights {path}: {error.strerror}", _REINSTALL)
            continue
        if digest.startswith(sha256_prefix(path.name)):
            yield ok(f"weights {path.name}, SHA-256 {digest[:8]}...")
        else:
            yield problem(
                f"weights {path} are damaged: their SHA-256 starts with {digest[:8]}",
                f"delete {path}; it is downloaded again, or comes with the package",
            )


def _disk(folder: Path) -> Iterator[Finding]:
    for place in (folder, Path(tempfile.gettempdir())):
        free = shutil.disk_usage(place).free
        text = f"disk: {free / 1e9:.1f} GB are free for {place.absolute()}"
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(b"x")
        except OSError as error:
            yield problem(
                f"{text}, but nothing can be written there: {error.strerror}",
                "make room, see to its permissions, or choose another --work (TMPDIR, if it is the "
                "folder for temporary files)",
            )
            continue
        if free < _LEAST_DISK:
            yield warning(text, "make room: features take 30 to 60 kB a picture, a run 100 MB")
        else:
            yield ok(text)


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")  # of the container we may be in
    if limit.exists() and (bound := limit.read_text().strip()).isdigit():
        used = int(limit.with_name("memory.current").read_text())
        total, available = min(total, int(bound)), min(available, int(bound) - used)
    text = f"memory: {available / 1e9:.1f} of {total / 1e9:.1f} GB are available"
    if available < _LEAST_MEMORY:
        yield warning(text, "close other programs: METEOR takes up to 2 GB, training 1 to 2 GB")
    else:
        yield ok(text)
