"""The terms of use that the makers of each data set state."""

_FLICKR = (
    "for non-commercial research and education only. The photographs belong to the people who "
    "published them on Flickr"
)
_TERMS = {
    "flickr8k": _FLICKR,
    "flickr30k": _FLICKR,
    "coco": "captions CC BY 4.0; the photographs under the terms of Flickr and of the people who "
    "published them there",
    "shapes": "drawn by this project, under its MIT licence",
}
_UNKNOWN = "not known to this project. Check them before you share this captioner"


def terms_of(dataset: str, stated: str | None = None) -> str:
    """Return the terms of a data set without a full stop: those `stated` by the user, or known."""
    return " ".join(stated.split()).rstrip(".") if stated else _TERMS.get(dataset, _UNKNOWN)
