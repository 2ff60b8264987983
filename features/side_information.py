"""Side information of a picture (text, profiles, thumbnails), left out where it is damaged."""

import zlib
from pathlib import Path
from typing import BinaryIO

from PIL import PngImagePlugin

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
# Markers of ITU-T T.81: comments, and application segments other than JFIF's and Adobe's, which
# say how the colours are coded.
_COMMENT, _SCAN, _TABLES = 0xFE, 0xDA, b"\xff\xdb"
_SIDE_SEGMENTS = {*range(0xE1, 0xEE), 0xEF, _COMMENT}


def pixels_only(source: Path | BinaryIO) -> bytes | None:
    """Return a PNG or JPEG file without the side information that may keep it from being read.

    Returns:
        The rest of the file; None if it is of another format or has no such information.
    """
    if isinstance(source, Path):
        data = source.read_bytes()
    else:
        source.seek(0)
        data = source.read()
    if data.startswith(_PNG):
        bare = _bare_png(data)
    elif data.startswith(_JPEG):
        bare = _bare_jpeg(data)
    else:
        return None
    return None if bare == data else bare


def _bare_png(data: bytes) -> bytes:
    """Keep the critical chunks as they are, and of the others an intact profile, EXIF and tRNS."""
    kept = [_PNG]
    place = len(_PNG)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        name, content = data[place + 4 : place + 8], data[place + 8 : end - 4]
        critical = not name[0] & 0x20
        intact = data[end - 4 : end] == zlib.crc32(name + content).to_bytes(4, "big")
        if critical or (intact and _useful(name, content)):
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def _useful(name: bytes, content: bytes) -> bool:
    if name != b"iCCP":
        return name in (b"tRNS", b"eXIf")
    inflater = zlib.decompressobj()
    try:  # name, null character, method of compression, data
        inflater.decompress(content.partition(b"\0")[2][1:], PngImagePlugin.MAX_TEXT_CHUNK)
    except zlib.error:
        return False
    return inflater.eof  # complete, and not longer than Pillow accepts


def _bare_jpeg(data: bytes) -> bytes:
    """Leave out side segments; where the length of one is wrong, go on at the next table."""
    kept = [_JPEG]
    place = len(_JPEG)
    while place + 4 <= len(data):
        marker = data[place + 1]
        if data[place] != 0xFF:
            place = data.find(_TABLES, place)
            if place < 0:
                break
        elif marker == 0xFF:  # fill byte
            place += 1
        elif marker == _SCAN:
            kept.append(data[place:])
            break
        else:
            end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
            if marker not in _SIDE_SEGMENTS:
                kept.append(data[place:end])
            elif data[end : end + 1] != b"\xff":
                end = data.find(_TABLES, place + 4)
                if end < 0:
                    break
            place = end
    return b"".join(kept)
