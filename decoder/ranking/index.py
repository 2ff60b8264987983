"""The search index of a work directory: a vector of the joint embedding for each of its images.

    WORK/search/embedding.safetensors   trained once on the training captions of WORK
    WORK/search/images.safetensors      a vector for each stored image of WORK

Both files record what they were computed from, and are computed again when that changes.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from decoder.ranking.embedding_file import Embedding, blocks
from decoder.runs import checkpoints
from features.commands import SEARCH
from features.store import STORED, FeatureStore
from pipeline.work import WorkFolder


class ImageVectors(NamedTuple):
    """The images of a work directory as vectors of the joint embedding."""

    image_ids: np.ndarray
    """int64 [N], the images whose features are stored, in the order of the store."""
    vectors_ND: Tensor
    """float32, unit vectors."""


def image_vectors(work: WorkFolder, store: FeatureStore, embedding: Embedding) -> ImageVectors:
    """Load the vectors of all stored images of a work directory, or compute and keep them.

    Raises:
        UserError: their file, or the store, is damaged.
    """
    file = work.search / "images.safetensors"
    status = store.path.stat()
    provenance: dict[str, Any] = {
        "embedding": hashlib.sha256(embedding.file.read_bytes()).hexdigest(),
        "store": [status.st_size, status.st_mtime_ns],
    }
    if file.exists():
        tensors, header = checkpoints.load(file, torch.device("cpu"), SEARCH)
        if header == provenance and tensors.keys() == {"image_ids", "vectors_ND"}:
            return ImageVectors(tensors["image_ids"].numpy(), tensors["vectors_ND"].float())
    rows = np.flatnonzero(store.status == STORED)
    with torch.inference_mode():
        vectors_ND = torch.cat(
            [
                embedding.model.pictures(torch.from_numpy(store.pooled(block))).half()
                for block in blocks(rows)
            ]
        )
    image_ids = store.image_ids[rows]
    tensors = {"image_ids": torch.from_numpy(image_ids), "vectors_ND": vectors_ND}
    checkpoints.save(file, tensors, provenance)
    return ImageVectors(image_ids, vectors_ND.float())
