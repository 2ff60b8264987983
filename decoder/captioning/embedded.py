"""Whether a picture describes itself: in XMP, IPTC or EXIF data, or in the text of a PNG file.

Photo programs show the description of an XMP file beside a picture instead of the one inside.
"""

import re
from pathlib import Path

from PIL import ImageFile, IptcImagePlugin
from PIL.ExifTags import Base

from decoder.captioning import xmp
from decoder.captioning.xml_elements import NotXmpError
from features.images import opened

_CAPTION = (2, 120)  # Caption-Abstract of IPTC-IIM
# What cameras write into each picture (Olympus, Sony, Konica Minolta, DJI; Huawei writes words such
# as cof and rhdr), and what scientific programs write into TIFF files.
_FIXED = re.compile(
    r".*\bdigital (still )?camera|sony dsc|dcim\W.*|exif.jpeg.*|default|untitled"
    r"|(?-i:[a-z]{3,6})|(imagej=|[{<]).*",
    re.IGNORECASE | re.DOTALL,
)


def describes_itself(picture: Path) -> bool:
    """Return whether a picture carries a description by a person; the pixels are not decoded.

    Fixed texts of cameras and descriptions that this project generated do not count. Nor does
    anything in GIF, in JPEG 2000 and in a file that cannot be read.
    """
    try:
        with opened(picture) as image:
            return _is_described(image)
    except Exception:  # Pillow raises anything at all on damaged files, and captioning reports them
        return False


def _is_described(image: ImageFile.ImageFile) -> bool:
    if packet := image.info.get("xmp"):
        packet = packet.encode() if isinstance(packet, str) else packet
        try:
            file = xmp.Xmp(packet.strip(b"\0 \n"))
        except NotXmpError:
            pass
        else:
            if file.described:
                # A program that puts a sidecar's text into a copy puts it into the others too.
                return not file.generated
    texts = [image.getexif().get(Base.ImageDescription), image.info.get("Description")]
    texts = [text.strip("\0 \r\n") for text in texts if isinstance(text, str)]
    if any(text and not _FIXED.fullmatch(text) for text in texts):
        return True
    captions = (IptcImagePlugin.getiptcinfo(image) or {}).get(_CAPTION, b"")
    return bool(b"".join(captions if isinstance(captions, list) else [captions]).strip(b"\0 \r\n"))
