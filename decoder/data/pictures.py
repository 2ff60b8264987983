"""Features of new pictures, as the store would hold them."""

from pathlib import Path
from typing import Any

import torch

from decoder.data.batches import Features
from features.backbones import Backbone, load_described
from features.errors import UserError
from features.images import read_picture
from features.row_format import to_float16
from features.store import differences, fingerprint
from features.views import VIEWS

# From this number of pictures on a faster backend saves more time than it takes to start.
MANY = 150


def backbone_of(wanted: dict[str, Any], device: torch.device, pictures: int = 1) -> Backbone:
    """Load the CNN whose features a run was trained on.

    Args:
        wanted: the description of those features, from the run's config.
        device: where it runs.
        pictures: number of pictures it will process.

    Raises:
        UserError: the CNN here has other weights or another transform, or it is unknown because
            the features came from files.
    """
    backend = "auto" if pictures >= MANY else "eager"
    backbone = load_described(wanted, device, backend)
    # A decoder trained on features in 8 bits also reads them in 16.
    found = {**backbone.description, "dtype": wanted["dtype"]}
    if fingerprint(found) != fingerprint(wanted):
        raise UserError(
            f"the run was trained on features of a different {wanted['backbone']}: "
            f"{differences(wanted, found)}; install the version that made them"
        )
    return backbone


def features_of(backbone: Backbone, picture: Path) -> Features:
    """Return the features of one picture, [1, R, C] and [1, C], as they would be stored.

    Raises:
        PictureError: it cannot be read.
    """
    pixels = backbone.views(read_picture(picture), VIEWS[:1])
    return as_stored(backbone, [torch.from_numpy(pixels).permute(0, 3, 1, 2)])


def as_stored(backbone: Backbone, pictures: list[torch.Tensor]) -> Features:
    """Return features of pictures' views, rounded to 16 bits as in the store.

    Args:
        backbone: the CNN.
        pictures: pixels of the views of each picture.
    """
    # One view of all pictures at a time, so that more views take no more memory.
    each = [backbone.features(views) for views in torch.stack(pictures, 1)]
    both = (torch.stack(of_views, 1).flatten(0, 1) for of_views in zip(*each, strict=True))
    return Features(*(torch.from_numpy(to_float16(f.cpu().numpy())).float() for f in both))
