"""The search index of a work directory: a vector of the joint embedding for each of its images.

    WORK/search/embedding.safetensors   trained once on the training captions of WORK
    WORK/search/images.safetensors      a vector for each stored image of WORK
    WORK/search/images-HASH.usearch     for many images: which of them are neighbours

All record what they were computed from, and are computed again when that changes. They are read
and written a block at a time, and memory-mapped.

Shape suffixes: N images, D size of the embedding.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from decoder.ranking.embedding import SIZE
from decoder.ranking.embedding_file import Embedding, blocks
from decoder.ranking.nearest import EXACT, Index, Nearest, nearest, pays
from decoder.runs import checkpoints
from features.commands import EXTRACT
from features.errors import UserError
from features.progress import Progress
from features.store_set import Store
from pipeline.caption_database import AllImages, SplitImages
from pipeline.captions import CaptionTable, Image
from pipeline.work import WorkFolder


class ImageVectors(NamedTuple):
    """The images of a work directory as vectors of the joint embedding."""

    image_ids: np.ndarray
    """int64 [N], the images whose features are stored, in the order of the store; of a caption
    database, in its order of images."""
    vectors_ND: Tensor
    """float16, unit vectors, memory-mapped."""
    graph: Path
    """Where an index of them is kept."""


class SearchedImages:
    """The images of a work directory, or of a split of it, that a search is about.

    Args:
        work: the work directory.
        store: its features.
        table: its images.
        embedding: that makes vectors of the features.
        split: only images of this split.

    Attributes:
        images: the images; those of a caption database are read when they are indexed.
        image_ND: their vectors; float32 if they are at most `EXACT`, otherwise float16 and
            memory-mapped.

    Raises:
        UserError: a file is damaged, features of images were not extracted yet, or those of all
            images could not be extracted.
    """

    def __init__(
        self,
        work: WorkFolder,
        store: Store,
        table: CaptionTable,
        embedding: Embedding,
        split: str | None,
    ) -> None:
        images = table.images if split is None else table.split(split)
        self.images: Sequence[Image]
        if isinstance(images, AllImages | SplitImages):
            vectors = image_vectors(work, store, table, embedding)
            self.images = images
            self._rows: Callable[[np.ndarray], np.ndarray] = images.rows_of
            first = 0
            if split is not None:
                assert isinstance(table.images, AllImages)
                first = table.images.first_of(split)
            vectors_ND = vectors.vectors_ND[first : first + len(images)]
        else:
            failed = store.failures()
            found = [image for image in images if image.id not in failed]
            rows = store.rows([image.id for image in found])  # or says what was not extracted yet
            vectors = image_vectors(work, store, table, embedding)
            place = {int(image_id): n for n, image_id in enumerate(vectors.image_ids)}
            chosen = [place[image.id] for image in found]
            in_order = np.array_equal(chosen, np.arange(len(vectors.image_ids)))
            vectors_ND = vectors.vectors_ND if in_order else vectors.vectors_ND[chosen]
            self.images, self._rows = found, rows.__getitem__
        if not self.images:
            raise UserError(
                f"expected images with features to search, found none among the {len(images)} "
                f"images of {work.path}; extract their features with {EXTRACT} --work {work.path}"
            )
        few = len(vectors_ND) <= EXACT
        self.image_ND = vectors_ND.float() if few else vectors_ND
        self._index = None
        # Part of the images is searched one by one, since an index names those of all.
        if len(vectors_ND) == len(vectors.vectors_ND) and pays(len(vectors_ND)):
            keys = np.arange(len(vectors_ND), dtype=np.uint64)
            self._index = Index(vectors.graph, keys, vectors_ND)
            for other in vectors.graph.parent.glob("images-*.*"):  # of other features
                if other.stem != vectors.graph.stem:
                    other.unlink(missing_ok=True)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows of images in the store, int64 [n]."""
        return self._rows(indices)

    def nearest(self, query_QD: Tensor, count: int) -> Nearest:
        """Return the images nearest to each query, by their index in `images`."""
        if self._index is not None:
            return self._index.nearest(query_QD, count)
        return nearest(query_QD, self.image_ND, count)


def image_vectors(
    work: WorkFolder, store: Store, table: CaptionTable, embedding: Embedding
) -> ImageVectors:
    """Load the vectors of all stored images of a work directory, or compute and keep them.

    Raises:
        AccessError: their file cannot be read.
        UserError: the store is damaged.
    """
    file = work.search / "images.safetensors"
    status = work.features.stat()
    provenance: dict[str, Any] = {
        "embedding": hashlib.sha256(embedding.file.read_bytes()).hexdigest(),
        "store": [status.st_size, status.st_mtime_ns],
    }
    named = hashlib.sha256(json.dumps(provenance).encode()).hexdigest()[:16]
    graph = file.with_name(f"images-{named}.usearch")
    if kept := _load(file, provenance):
        return ImageVectors(*kept, graph)
    rows_N = np.concatenate(list(_rows(store, table)))
    image_ids = np.concatenate([store.image_ids[block] for block in blocks(rows_N)] or [rows_N])
    vectors, shape = _vectors(store, rows_N, embedding), (len(rows_N), SIZE)
    ids = {"image_ids": torch.from_numpy(image_ids)}
    checkpoints.save_rows(file, "vectors_ND", vectors, shape, ids, provenance)
    if kept := _load(file, provenance):
        return ImageVectors(*kept, graph)
    raise UserError(f"another process has replaced {file}; search again when it has ended")


def _load(file: Path, provenance: dict[str, Any]) -> tuple[np.ndarray, Tensor] | None:
    """Return image ids and vectors from their file, None if it has none, or of something else."""
    tensors, header = checkpoints.load_cache(file) or ({}, None)
    if header != provenance or tensors.keys() != {"image_ids", "vectors_ND"}:
        return None
    return tensors["image_ids"].numpy(), tensors["vectors_ND"]


def _rows(store: Store, table: CaptionTable) -> Iterator[np.ndarray]:
    """Yield the rows of the images to search, a block at a time."""
    if isinstance(table.images, AllImages):
        for indices in blocks(np.arange(len(table.images))):
            yield table.images.rows_of(indices)
    else:
        yield from store.stored_rows()


@torch.inference_mode()
def _vectors(store: Store, rows_N: np.ndarray, embedding: Embedding) -> Iterator[Tensor]:
    """Yield the vectors of rows of the store, float16, a block at a time."""
    with Progress("embed", len(rows_N), "picture") as bar:
        for block in blocks(rows_N):
            yield embedding.model.pictures(torch.from_numpy(store.pooled(block))).half()
            bar.update(len(block))
