"""What a search keeps on disk: the joint embedding, and the vectors of a work directory's images.

    WORK/search/embedding.safetensors   learnt once from the training captions of WORK
    WORK/search/images.safetensors      a vector for each stored image of WORK

Both say what they were made of, and are made anew when that has changed.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from decoder.ranking.embedding import Embedding, blocks
from decoder.runs import checkpoints
from features.commands import SEARCH
from features.store import STORED, FeatureStore
from pipeline.work import WorkFolder


class ImageVectors(NamedTuple):
    """Where the images of a work directory lie in the embedding."""

    image_ids: np.ndarray
    """int64 [N], those stored without failure, in the order of the store."""
    vectors_ND: Tensor
    """float32, unit vectors."""


def image_vectors(work: WorkFolder, store: FeatureStore, embedding: Embedding) -> ImageVectors:
    """Load the vectors of all stored images of a work directory, or compute and keep them.

    Raises:
        UserError: their file, or the store, is damaged.
    """
    file = work.search / "images.safetensors"
    status = store.path.stat()
    made_of: dict[str, Any] = {
        "embedding": hashlib.sha256(embedding.file.read_bytes()).hexdigest(),
        "store": [status.st_size, status.st_mtime_ns],
    }
    if file.exists():
        tensors, header = checkpoints.load(file, torch.device("cpu"), SEARCH)
        if header == made_of and tensors.keys() == {"image_ids", "vectors_ND"}:
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
    checkpoints.save(file, tensors, made_of)
    return ImageVectors(image_ids, vectors_ND.float())
