"""Check that this machine can run the stages; each check does the real work on a small scale.

Each check imports the libraries that it needs, so that a broken one does not stop the other checks.
"""

import hashlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from features.container import memory_limit
from features.errors import AccessError, UserError, first_few
from features.extras import EXTRA_OF, how_to_install, is_installed
from features.files import reading
from pipeline.doctor.results import CheckResult, ok, problem, warning

_REINSTALL = "reinstall the project: remove .venv and run ./run_all.sh install"
_LEAST_PYTHON = (3, 11)
_LEAST_DISK, _LEAST_MEMORY = 2e9, 2e9  # bytes; METEOR needs up to 2 GB
_METEOR_SECONDS = 120.0
# The checks of what an extra installs, and the package that shows whether it is there.
_OPTIONAL = {"torchvision": "torchvision", "Java": "pycocoevalcap", "METEOR": "pycocoevalcap"}


def check_machine(folder: Path) -> Iterator[CheckResult]:
    """Check this machine and the disk of `folder`."""
    checks: dict[str, Callable[[], Iterator[CheckResult]]] = {
        "Python": _python,
        "torch": _torch,
        "torchvision": _torchvision,
        "backends": _backends,
        "Java": _java,
        "METEOR": _meteor,
        "weights": _weights,
        "disk": partial(_disk, folder),
        "memory": _memory,
    }
    for name, check in checks.items():
        package = _OPTIONAL.get(name)
        if package is not None and not is_installed(package):
            how = how_to_install(EXTRA_OF[package])
            yield ok(f"{name}: not checked, because it is not installed; {how} installs it")
            continue
        try:
            yield from check()
        except UserError as error:
            yield problem(f"{name} does not work here", str(error))
        except Exception as error:  # a broken library may raise anything; that is what we look for
            yield problem(f"{name} does not work: {type(error).__name__}: {error}", _REINSTALL)


def _python() -> Iterator[CheckResult]:
    """Check the versions of Python and of the libraries that setup.cfg requires."""
    text = f"Python {platform.python_version()} in {sys.prefix}"
    if sys.version_info < _LEAST_PYTHON:
        yield problem(text, "install Python 3.11 or newer")
    try:
        required = [r for r in requires("caption-pipeline") or () if "extra ==" not in r]
    except PackageNotFoundError:
        yield warning(f"{text}; the project is not installed in it", _REINSTALL)
        return
    from packaging.requirements import Requirement

    wrong = []
    for requirement in map(Requirement, required):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = ""
        if not installed or not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement} (found {installed or 'none'})")
    if wrong:
        yield problem(f"{text}: expected {first_few(wrong)}", _REINSTALL)
    else:
        yield ok(f"{text}, with all {len(required)} libraries")


def _torch() -> Iterator[CheckResult]:
    """Multiply two small matrices on the device that the stages would use."""
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
        yield problem(f"{text}: a matrix product has an error of {error:.1%}", _REINSTALL)
    else:
        yield ok(f"{text}; a 512 x 512 matrix product is right and took {1000 * seconds:.1f} ms")


def _torchvision() -> Iterator[CheckResult]:
    """Run a compiled torchvision operation, which fails if it was built for another torch."""
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    text = f"torchvision {torchvision.__version__}"
    yield ok(text) if kept == [0, 2] else problem(f"{text} computes wrongly", _REINSTALL)


def _backends() -> Iterator[CheckResult]:
    """Run a small network by the backend that is used for many pictures."""
    import torch

    from features.backends import Network, choose

    torch.manual_seed(0)
    cnn = torch.nn.Conv2d(3, 4, kernel_size=3, stride=4, padding=1)
    transform = {"scale": 1.0, "mean": [127.0] * 3, "std": [128.0] * 3}
    network = Network(cnn, transform, (8, 8), (2, 2)).eval()
    name, _ = choose("auto", network, (32, 32), torch.device("cpu"), batch_size=1)
    if name == "eager":
        yield warning(
            "neither OpenVINO nor ONNX Runtime runs a CNN here, so extraction on a CPU takes about "
            "twice as long",
            f"install one of them: {how_to_install('fast')}",
        )
    else:
        yield ok(f"{name} runs CNNs on the CPU")


def _java() -> Iterator[CheckResult]:
    from evaluation import java

    path = java.find_java()
    yield ok(f"Java: {java.version(path)}, {path}")


def _meteor() -> Iterator[CheckResult]:
    """Score a caption that equals its reference, which runs the tokenizer and METEOR."""
    from evaluation.toolkit import score

    caption = "a brown dog runs over the grass"
    start = time.perf_counter()
    scores = score({1: [caption]}, {1: caption}, ("METEOR",), _METEOR_SECONDS)
    seconds, meteor = time.perf_counter() - start, scores.corpus["METEOR"]
    text = f"METEOR of a caption that equals its reference is {meteor:g}"
    if meteor == 1:
        yield ok(f"{text}; it took {seconds:.1f} s")
    else:
        yield problem(f"{text}, not 1", _REINSTALL)


def _weights() -> Iterator[CheckResult]:
    """Compare the CNN weights with the start of their checksum, which is in their file names."""
    import torch

    from features.efficientnet_lite import VARIANTS, weights_file
    from features.pretrained import sha256_prefix

    downloaded = Path(torch.hub.get_dir(), "checkpoints").glob(f"*-{8 * '[0-9a-f]'}.pth")
    for path in (*map(weights_file, sorted(VARIANTS)), *sorted(downloaded)):
        try:
            with reading(path):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except FileNotFoundError as error:
            yield problem(f"weights {path}: {error.strerror}", _REINSTALL)
            continue
        except AccessError as error:
            yield problem(f"weights: {error}", "make them readable and run the doctor again")
            continue
        named = sha256_prefix(path.name)
        if digest.startswith(named):
            yield ok(f"weights {path.name}, SHA-256 {digest[:8]}...")
        else:
            yield problem(
                f"weights {path}: expected a SHA-256 that starts with {named} as in their name, "
                f"found {digest[:8]}",
                f"delete {path} if it was downloaded (it is downloaded again), reinstall it if it "
                "came with a package, or rename it if it is your own",
            )


def _disk(folder: Path) -> Iterator[CheckResult]:
    places = [folder]
    try:
        places.append(Path(tempfile.gettempdir()))
    except FileNotFoundError as error:
        yield problem(str(error), "set TMPDIR to a folder that can be written")
    for place in places:
        free = shutil.disk_usage(place).free
        text = f"disk: {free / 1e9:.1f} GB are free in {place.absolute()}"
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(b"x")
        except OSError as error:
            yield problem(
                f"{text}, but nothing can be written there: {error.strerror}",
                "free disk space, fix the permissions, or choose another --work (for temporary "
                "files, another TMPDIR)",
            )
            continue
        if free < _LEAST_DISK:
            yield warning(
                text, "free disk space: features need 30 to 60 kB per picture, a run 100 MB"
            )
        else:
            yield ok(text)


def _memory() -> Iterator[CheckResult]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    if limit := memory_limit():
        total, available = min(total, limit.limit), min(available, limit.free)
    text = f"memory: {available / 1e9:.1f} of {total / 1e9:.1f} GB are available"
    if available < _LEAST_MEMORY:
        yield warning(text, "close other programs: METEOR needs up to 2 GB, training 1 to 2 GB")
    else:
        yield ok(text)
