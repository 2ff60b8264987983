"""Small shards for tests."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.pictures import moon


def jpeg(shade: int = 0) -> bytes:
    """A small photograph-like picture; another one for each shade."""
    file = io.BytesIO()
    moon((48, 40)).point(lambda level: level + shade % 32).save(file, "JPEG")
    return file.getvalue()


def tar(path: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    """Write a tar archive of (name, content)."""
    with tarfile.open(path, "w") as archive:
        for member, content in members:
            header = tarfile.TarInfo(member) if isinstance(member, str) else member
            if header.isreg():
                header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def shard(path: Path, keys: Sequence[str], broken: Sequence[str] = ()) -> Path:
    """Write a tar shard of small pictures with captions, as img2dataset does."""
    members: list[tuple[str | tarfile.TarInfo, bytes]] = []
    for number, key in enumerate(keys):
        picture = jpeg(number)
        caption = f"picture {key} of a collection"
        members += [
            (f"{key}.jpg", picture[:200] if key in broken else picture),
            (f"{key}.txt", caption.encode()),
            (f"{key}.json", json.dumps({"caption": caption, "key": key}).encode()),
        ]
    return tar(path, members)
