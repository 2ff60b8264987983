"""extract.json: the figures of an extraction."""

import json
from pathlib import Path
from typing import Any

from features.store import STORED, FeatureStore


def summary(store: FeatureStore) -> dict[str, Any]:
    """Return the size and the description of the store for extract.json."""
    stored = int((store.status == STORED).sum())
    size = store.path.stat().st_size
    row_format = store.row_format
    vectors = stored * len(row_format.views) * (row_format.regions + 1)
    float16 = vectors * row_format.channels * 2  # bytes without compression
    return {
        "images": stored,
        "failed": len(store) - stored,
        "bytes": size,
        "bytes_per_image": round(size / len(store)),
        "share_of_float16": round(size / float16, 3) if stored else None,
        "backbone": store.description["backbone"],
        "views": list(row_format.views),
        "dtype": store.description["dtype"],
        "compression": row_format.compression,
    }


def previous(report_path: Path) -> dict[str, Any]:
    """Return the report of the last extraction; nothing if there is none."""
    try:
        return dict(json.loads(report_path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
