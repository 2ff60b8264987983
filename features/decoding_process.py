"""A process that decodes pictures into memory shared with the process that started it.

It reads one task a line from a socket, and answers each when it is done (see `features.decoding`).
It imports neither torch nor HDF5, so it starts in a fraction of a second.
"""

import fcntl
import json
import mmap
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from features import images
from features.views import cut


class LockAmongProcesses:
    """A lock that processes take on a file they share; a process that dies releases it."""

    def __init__(self, file: int) -> None:
        self._file = file

    def __enter__(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)


def serve(
    connection: int, memory: int, shape: Sequence[int], views: Sequence[str], method: str
) -> None:
    """Decode pictures until the other process closes the connection or ends.

    Args:
        connection: descriptor of a socket.
        memory: descriptor of the shared file, which holds uint8 [places, views, H, W, 3].
        shape: of that array.
        views: names of the views to cut of each picture.
        method: of resizing, a name of `PIL.Image.Resampling`.
    """
    pixels = np.frombuffer(mmap.mmap(memory, 0), np.uint8).reshape(shape)
    images.one_large_at_a_time = LockAmongProcesses(memory)
    size, resampling = (shape[2], shape[3]), Image.Resampling[method]
    with socket.socket(fileno=connection) as both, both.makefile("rwb") as lines:
        for line in lines:
            task = json.loads(line)
            answer = {}
            try:
                picture = images.read_picture(Path(task["path"]))
                pixels[task["place"]] = cut(picture, views, size, resampling)
            except images.PictureError as error:
                pixels[task["place"]] = 0
                answer = {"reason": str(error), "passing": error.passing}
            lines.write(json.dumps(answer).encode() + b"\n")
            lines.flush()
