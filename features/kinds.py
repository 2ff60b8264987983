"""What a file is: by its suffix, to search folders, and by its first bytes, for messages."""

import re
from pathlib import PurePath
from typing import NamedTuple

HEIC_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
AVIF_SUFFIXES = frozenset({".avif", ".avifs"})
PICTURE_SUFFIXES = HEIC_SUFFIXES | AVIF_SUFFIXES
PICTURE_SUFFIXES |= {".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo"}
PICTURE_SUFFIXES |= {".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
PICTURE_SUFFIXES |= {".png", ".apng", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".dib"}
PICTURE_SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm", ".pfm"}

_OTHER_SUFFIXES = {
    "RAW": "3fr arw cr2 cr3 crw dcr dng eip erf fff gpr iiq k25 kdc mef mos mrw nef nrw orf pef "
    "raf raw rw2 rwl sr2 srf srw x3f",
    "video": "3g2 3gp asf avi divx dv flv insv lrv m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv "
    "vob webm wmv",
    "SVG": "svg svgz",
    "Photoshop": "psb psd",
    "drawing": "ai cdr emf eps fig indd pct pict sketch wmf",
    "layered picture": "afphoto clip kra ora pdn procreate xcf",
    "PDF": "djvu pdf",
    "JPEG XL": "jxl",
    "picture in another format": "cur dcm dds exr fits hdr icns ico jxr pcx qoi tga wdp",
    "picture that iCloud has not downloaded": "icloud",
    "archive": "7z rar tar tgz zip",
}
_KIND_OF_SUFFIX = {
    f".{suffix}": kind for kind, suffixes in _OTHER_SUFFIXES.items() for suffix in suffixes.split()
}


class Kind(NamedTuple):
    """What a file is."""

    name: str
    """With its article, such as "an HTML page"."""
    advice: str = ""
    """What to do to get a picture."""
    is_picture: bool = False
    """Whether it is a picture, though perhaps a damaged one or in an unknown format."""


def _format(name: str, advice: str = "convert it to JPEG") -> Kind:
    return Kind(name, advice, is_picture=True)


def _damaged(name: str) -> Kind:
    return Kind(f"a damaged or truncated {name} file", "copy it again", is_picture=True)


_DOWNLOAD = "download the picture again"
_VIDEO = Kind("a video", "save a frame of it as a picture")
_SOUND = Kind("a sound recording")
_DRAWING = "convert it to PNG"
_RAW = _format("a camera's RAW file")
_TIFF = _format("a damaged TIFF file, or a kind of TIFF that cannot be read")
_ARCHIVE = "unpack it"
_LFS = Kind("a Git LFS pointer", "get the picture with git lfs pull")
_ANNEX = Kind("a git-annex pointer", "get the picture with git annex get")
_HTML = Kind("an HTML page", f"perhaps a web site's error page; {_DOWNLOAD}")
_SVG = Kind("an SVG drawing", _DRAWING)
_APPLE_DOUBLE = Kind("metadata that macOS wrote beside a picture")
_ZEROS = Kind("a file of zeros only", "it was never copied completely; copy it again")

# Brands of the ISO base media format (ISO/IEC 14496-12). All others are videos.
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1")
_BRANDS = {
    **dict.fromkeys(_HEIC_BRANDS, _damaged("HEIC")),
    **dict.fromkeys((b"avif", b"avis"), _damaged("AVIF")),
    b"crx ": _RAW,
    b"M4A ": _SOUND,
}
# The formats that are read in folders even without a suffix.
_READ = (
    (0, b"\xff\xd8\xff", _damaged("JPEG")),
    (0, b"\x89PNG", _damaged("PNG")),
    (0, b"GIF8", _damaged("GIF")),
    (8, b"WEBP", _damaged("WebP")),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", _damaged("JPEG 2000")),
    (0, b"\xff\x4f\xff\x51", _damaged("JPEG 2000")),
)
# Offset, the bytes there, and the kind; the first that fits is taken.
_SIGNATURES: tuple[tuple[int, bytes, Kind], ...] = (
    *_READ,
    (0, b"version https://git-lfs.github.com/spec/", _LFS),
    (0, b"/annex/objects/", _ANNEX),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", _format("a JPEG XL file")),
    (0, b"\xff\x0a", _format("a JPEG XL file")),
    (0, b"8BPS", _format("a Photoshop file", _DRAWING)),
    (0, b"gimp xcf", _format("a GIMP file", _DRAWING)),
    (0, b"II*\0\x10\0\0\0CR", _RAW),
    (0, b"FUJIFILMCCD-RAW", _RAW),
    (0, b"IIRO", _RAW),
    (0, b"IIRS", _RAW),
    (0, b"MMOR", _RAW),
    (0, b"IIU\0", _RAW),
    (0, b"FOVb", _RAW),
    (0, b"\0MRM", _RAW),
    (0, b"II*\0", _TIFF),
    (0, b"MM\0*", _TIFF),
    (0, b"II+\0", _TIFF),
    (0, b"MM\0+", _TIFF),
    (0, b"BM", _damaged("BMP")),
    (0, b"\0\0\1\0", _format("a Windows icon")),
    (0, b"icns", _format("a macOS icon")),
    (0, b"DDS ", _format("a DDS texture")),
    (0, b"qoif", _format("a QOI file")),
    (0, b"\x76\x2f\x31\x01", _format("an OpenEXR file")),
    (0, b"#?RADIANCE", _format("a Radiance HDR file")),
    (0, b"#?RGBE", _format("a Radiance HDR file")),
    (128, b"DICM", _format("a DICOM file")),
    (0, b"%PDF", Kind("a PDF file", "save its page as a picture")),
    (0, b"AT&TFORM", Kind("a DjVu file", "save its page as a picture")),
    (0, b"%!PS", Kind("a PostScript drawing", _DRAWING)),
    (0, b"\xc5\xd0\xd3\xc6", Kind("a PostScript drawing", _DRAWING)),
    (0, b"\xd7\xcd\xc6\x9a", Kind("a Windows metafile drawing", _DRAWING)),
    (0, b"PK\3\4", Kind("a zip archive or an office document", _ARCHIVE)),
    (0, b"PK\5\6", Kind("an empty zip archive")),
    (0, b"\x1f\x8b", Kind("a gzip file", _ARCHIVE)),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", _ARCHIVE)),
    (0, b"Rar!", Kind("a RAR archive", _ARCHIVE)),
    (0, b"BZh", Kind("a bzip2 file", _ARCHIVE)),
    (0, b"\xfd7zXZ", Kind("an xz file", _ARCHIVE)),
    (0, b"\x28\xb5\x2f\xfd", Kind("a Zstandard file", _ARCHIVE)),
    (257, b"ustar", Kind("a tar archive", _ARCHIVE)),
    (8, b"AVI ", _VIDEO),
    (4, b"moov", _VIDEO),
    (4, b"mdat", _VIDEO),
    (4, b"wide", _VIDEO),
    (0, b"\x1a\x45\xdf\xa3", _VIDEO),  # Matroska, WebM
    (0, b"FLV\1", _VIDEO),
    (0, b"\0\0\1\xba", _VIDEO),  # MPEG
    (0, b"\0\0\1\xb3", _VIDEO),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _VIDEO),  # Windows Media
    (0, b"OggS", Kind("a video or a sound recording")),
    (8, b"WAVE", _SOUND),
    (0, b"ID3", _SOUND),
    (0, b"fLaC", _SOUND),
    (0, b"\0\5\x16\7", _APPLE_DOUBLE),
    (0, b"\0\5\x16\0", _APPLE_DOUBLE),
    (0, b"\xd0\xcf\x11\xe0", Kind("an old office document or a thumbnail database of Windows")),
    (0, b"SQLite format 3", Kind("an SQLite database")),
    (0, b"PAR1", Kind("a Parquet table")),
    (0, b"\x89HDF", Kind("an HDF5 file")),
    (0, b"\x93NUMPY", Kind("a NumPy array")),
    (0, b"\x7fELF", Kind("a program")),
    (0, b"MZ", Kind("a program")),
)
LONGEST = 1024
"""Number of bytes at the start of a file that `kind_of` needs."""

_HTML_TAG = re.compile(rb"<!doctype html|<(html|head|body|title|meta|script)[\s/>]")
_UTF16 = ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))


def suffix_kind(path: PurePath) -> str | None:
    """Return the kind of file that a suffix stands for, if such files are counted in folders.

    None stands for pictures, and for files that nobody expects to be captioned.
    """
    return _KIND_OF_SUFFIX.get(path.suffix.lower())


def is_heic(start: bytes) -> bool:
    """Whether a file that starts with these bytes is HEIC (ISO/IEC 23008-12)."""
    return start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS


def starts_as_picture(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a picture in a common format."""
    if start[4:8] == b"ftyp":
        return start[8:12] in (*_HEIC_BRANDS, b"avif", b"avis")
    return any(start.startswith(signature, offset) for offset, signature, _ in _READ)


def kind_of(start: bytes) -> Kind | None:
    """Return what a file is that cannot be read as a picture, or None if that is unknown.

    Args:
        start: its first `LONGEST` bytes.
    """
    if start[4:8] == b"ftyp":
        return _BRANDS.get(start[8:12], _VIDEO)
    for offset, signature, kind in _SIGNATURES:
        if start.startswith(signature, offset):
            return kind
    if start[:1] == start[188:189] == start[376:377] == b"G":  # MPEG transport stream
        return _VIDEO
    if start and not start.strip(b"\0"):
        return _ZEROS
    return _kind_of_text(start)


def _kind_of_text(start: bytes) -> Kind | None:
    for mark, encoding in _UTF16:
        if start.startswith(mark):
            start = start[2:].decode(encoding, "ignore").encode()
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = text.lower()
    html = _HTML_TAG.search(lower)
    svg = re.search(rb"<(svg:)?svg[\s/>]|<!doctype svg", lower)
    if lower.startswith(b"<") and svg and not (html and html.start() < svg.start()):
        return _SVG
    if lower.startswith(b"<"):
        return _HTML if html else Kind("an XML file", f"perhaps a server's error; {_DOWNLOAD}")
    if lower.startswith((b"{", b"[")):
        return Kind("a JSON file", f"perhaps a server's error; {_DOWNLOAD}")
    if not text or re.search(rb"[\0-\x08\x0e-\x1f]", text):
        return None
    try:
        text[: -3 if len(start) == LONGEST else None].decode()  # a character may be cut off
    except UnicodeDecodeError:
        return None
    return Kind("a text file")


def web_address(name: str) -> str | None:
    """Return the web address that was given as a path, or None. A path has lost one of its //."""
    found = re.match(r"(https?|ftps?|s3|gs|file|data):/*(?=\S)", name, re.IGNORECASE)
    if not found:
        return None
    slashes = {"data": "", "file": ":///"}.get(found[1].lower(), "://")
    return f"{found[1]}{slashes or ':'}{name[found.end() :]}"[:200]
