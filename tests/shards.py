"""Stores of shards, as pipeline.extract --shards writes them, made from a work directory."""

import json
from pathlib import Path

from features.store import FeatureStore
from features.store_writing import write_store
from pipeline import captions
from pipeline.work import WorkFolder


def divide(work: Path, out: Path, size: int, splits: bool = True) -> Path:
    """Divide the features and captions of `work` into shards of `size` rows in `out`."""
    folder = WorkFolder(work)
    store = FeatureStore(folder.features)
    by_id = {image.id: image for image in captions.load(folder.captions).images}
    out.mkdir()
    ids, reasons = store.image_ids.tolist(), store.failures()
    for start in range(0, len(ids), size):
        chosen = ids[start : start + size]
        path = out / f"{start // size:05}.h5"
        records = (store.record(row) for row in range(start, start + len(chosen)))
        write_store(path, store.row_format, chosen, records, {})
        lines = []
        for image_id in chosen:
            image = by_id[image_id]
            line = {"id": image_id, "key": f"{image_id:09}", "file_name": image.file_name}
            line["captions"] = [caption.text for caption in image.captions]
            if splits:
                line["split"] = image.split
            if image_id in reasons:
                line["error"] = reasons[image_id]
            lines.append(json.dumps(line))
        path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    return out
