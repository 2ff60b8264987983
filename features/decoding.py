"""Decoding in threads; or in processes, into memory that they share with the one that computes.

Python runs one thread at a time between the calls of Pillow, so on many cores threads decode too
slowly for a GPU. There each of them hands its pictures to a process of its own
(`features.decoding_process`). Both use the same functions, so the pixels are the same.

The shared memory is a file without a name, which disappears with the last process that has it.
"""

import errno
import json
import logging
import math
import mmap
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from features.backbones import Backbone
from features.child_process import command_of
from features.errors import UserError
from features.images import PictureError

_log = logging.getLogger(__name__)

_TRIES = 2
_SECONDS_TO_END = 5.0


class Buffer(NamedTuple):
    """Memory for the pictures of one batch."""

    first: int
    """The place of its first picture in memory that processes share."""
    pixels: Tensor
    """uint8 [pictures, views, H, W, 3]"""


class DecodingThreads:
    """Decodes pictures in the threads that ask for it; a context manager.

    Args:
        backbone: whose input the pictures become.
        views: names of the views to cut of each picture.
        pictures: number of pictures of a buffer.
        read: decodes a picture, or raises PictureError.
    """

    ahead = 2

    def __init__(
        self,
        backbone: Backbone,
        views: Sequence[str],
        pictures: int,
        read: Callable[[Path], Image.Image],
    ) -> None:
        self._backbone = backbone
        self._views = views
        self._pictures = pictures
        self._read = read

    def take(self, pictures: int) -> Buffer:
        """Return a new buffer; what is beyond `pictures` is zero."""
        shape = (self._pictures, len(self._views), *self._backbone.size, 3)
        pinned = self._backbone.device.type == "cuda"
        return Buffer(0, torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned))

    def give_back(self, buffer: Buffer) -> None:
        """Do nothing: a buffer is used once."""

    def decode(self, path: Path, buffer: Buffer, number: int) -> PictureError | None:
        """Decode a picture, and return why it cannot be read; see `DecodingProcesses.decode`."""
        try:
            buffer.pixels.numpy()[number] = self._backbone.views(self._read(path), self._views)
        except PictureError as error:
            return error
        return None

    def __enter__(self) -> "DecodingThreads":
        return self

    def __exit__(self, *_: object) -> None: ...


class DecodingProcesses:
    """Processes that decode pictures into buffers; a context manager.

    Args:
        backbone: whose input the pictures become.
        views: names of the views to cut of each picture.
        pictures: number of pictures of a buffer.
        workers: number of processes; as many threads may decode.

    Attributes:
        ahead: number of batches to decode ahead, so that no process waits.

    Raises:
        UserError: on entering the context, there is too little memory.
    """

    def __init__(
        self, backbone: Backbone, views: Sequence[str], pictures: int, workers: int
    ) -> None:
        self.ahead = max(2, math.ceil(2 * workers / pictures))
        # Beside these, one is being computed, and the features of one are being copied back.
        self._shape = ((self.ahead + 2) * pictures, len(views), *backbone.size, 3)
        self._pictures = pictures
        self._cuda = backbone.device.type == "cuda"
        self._pinned = False
        self._arguments = {
            "shape": self._shape,
            "views": list(views),
            "method": backbone.description["transform"]["interpolation"].upper(),
        }
        self._own = threading.local()
        self._processes: list[_Process] = []
        self._lock = threading.Lock()

    def take(self, pictures: int) -> Buffer:
        """Return a free buffer; what is beyond `pictures` is zero."""
        buffer = self._free.pop()
        buffer.pixels[pictures:] = 0
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        """Make a buffer free again once its pixels have been used."""
        self._free.append(buffer)

    def decode(self, path: Path, buffer: Buffer, number: int) -> PictureError | None:
        """Decode a picture in the process of this thread, and return why it cannot be read.

        A process that dies is replaced, and the picture is tried once more.

        Args:
            path: of the picture.
            buffer: where to write its views.
            number: of the picture in the buffer.
        """
        place, ended = buffer.first + number, 0
        for _ in range(_TRIES):
            process = self._process()
            try:
                return process.decode(path, place)
            except (EOFError, OSError):
                ended = process.end()
                self._own.process = None
                if ended >= 0:  # an error of the program, not of the picture
                    raise RuntimeError(f"a decoding process ended with status {ended}") from None
                name = signal.Signals(-ended).name
                _log.warning("a decoding process was ended by %s while it read %s", name, path)
        self._shared[place] = 0
        if ended == -signal.SIGKILL:  # how Linux ends processes for want of memory
            return PictureError(os.strerror(errno.ENOMEM), passing=True)
        return PictureError(f"it crashes the decoder ({name})")

    def _process(self) -> "_Process":
        process: _Process | None = getattr(self._own, "process", None)
        if process is None:
            with self._lock:
                process = self._own.process = _Process(self._arguments, self._file)
                self._processes.append(process)
        return process

    def __enter__(self) -> "DecodingProcesses":
        self._file = _nameless_file(math.prod(self._shape))
        self._shared = np.frombuffer(mmap.mmap(self._file, 0), np.uint8).reshape(self._shape)
        pixels = torch.from_numpy(self._shared)
        parts = enumerate(pixels.split(self._pictures))
        self._free = [Buffer(i * self._pictures, part) for i, part in parts]
        if self._cuda:  # so that it fetches a batch while the host goes on
            status = torch.cuda.cudart().cudaHostRegister(pixels.data_ptr(), pixels.nbytes, 0)
            self._pinned = status == 0  # an object, which is true whatever it says
            if not self._pinned:  # the next operation raises the error that this one left
                with suppress(RuntimeError):
                    torch.zeros(1, device="cuda").add_(1)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.close()
        for process in self._processes:
            process.end()
        if self._pinned:
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaHostUnregister(self._shared.ctypes.data)
        os.close(self._file)  # the memory itself goes with the last array that shows it


class _Process:
    """One process, and the connection to it."""

    def __init__(self, arguments: dict[str, Any], memory: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            own = {"memory": memory, "connection": theirs.fileno()}
            self._process = subprocess.Popen(
                command_of("features.decoding_process", **arguments, **own),
                pass_fds=(theirs.fileno(), memory),
                stdin=subprocess.DEVNULL,
            )
        self._socket = ours
        self._lines = ours.makefile("rwb")

    def decode(self, path: Path, place: int) -> PictureError | None:
        """Let the process decode a picture.

        Raises:
            EOFError, OSError: the process has died.
        """
        self._lines.write(json.dumps({"path": str(path), "place": place}).encode() + b"\n")
        self._lines.flush()
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        answer = json.loads(line)
        return PictureError(**answer) if answer else None

    def close(self) -> None:
        """Close the connection, at which the process ends."""
        with suppress(OSError):
            self._lines.close()
        self._socket.close()

    def end(self) -> int:
        """Wait until the process has ended, or kill it, and return its exit status."""
        self.close()
        try:
            return self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _nameless_file(size: int) -> int:
    """Return the descriptor of a file of this size in memory (on a Mac, on the disk)."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("caption-pipeline")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    try:
        os.truncate(file, size)
        if hasattr(os, "posix_fallocate"):
            # A page that is missing later would end the process that writes to it.
            os.posix_fallocate(file, 0, size)
    except OSError as error:
        os.close(file)
        raise UserError(
            f"{size:,} bytes of memory for decoded pictures: {error.strerror}; use a smaller "
            "--batch-size or fewer --workers"
        ) from error
    return file
