"""What a search keeps on disk: the joint embedding, and the vectors of a work directory's images.

    WORK/search/embedding.safetensors   learnt once from the training captions of WORK
    WORK/search/images.safetensors      a vector for each stored image of WORK

Both say what they were made of, and are made anew when that has changed.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from decoder.data.batches import Features
from decoder.data.readers import SplitReader
from decoder.ranking.embedding import JointEmbedding, learn
from decoder.runs import checkpoints
from decoder.runs.folder import RunFolder, digest
from features.errors import UserError
from features.store import STORED, FeatureStore
from pipeline import captions as tables
from pipeline.vocabulary import Vocabulary

EMBEDDING = "embedding.safetensors"
MADE_BY = "python -m decoder.search"
# So many other images; each is read with every caption that the decoder looks at.
OTHERS = 20
_BLOCK = 1000
_PREFIX = "others."


class Embedding(NamedTuple):
    """A joint embedding, and what the decoder is shown for no image in particular."""

    model: JointEmbedding
    others: Features
    """Of some training images, to tell how likely a caption is whatever the picture."""
    file: Path


def embedding_of(run: RunFolder, work: Path, vocabulary: Vocabulary, fingerprint: str) -> Embedding:
    """Load the embedding that fits a run, or learn and keep it: some minutes, once.

    It is the one in the run's folder, if that is an exported captioner which has one; else that of
    the run's own work directory; else that of `work`.

    Args:
        run: the run or captioner.
        work: the work directory to be searched.
        vocabulary: the run's.
        fingerprint: of the features that the run was trained on.

    Raises:
        UserError: there are no training captions to learn from, or a file is damaged.
    """
    own = run.path / EMBEDDING
    if own.exists():
        known = {"vocabulary": digest(vocabulary.words), "fingerprint": fingerprint}
        if found := _load(own, known, vocabulary):
            return found
        raise UserError(
            f"{own} is not the run's; copy the whole folder again from where it is from"
        )
    source = run.work if (run.work / "captions.json").exists() else work
    table_file = source / "captions.json"
    nothing = (
        f"a search is learnt from training captions, and neither {run.path} nor {work} has any; "
        "name a run that still lies in the work directory it was trained in, or a captioner of "
        "decoder.export --search"
    )
    if not table_file.exists():
        raise UserError(nothing)
    made_of = {
        "vocabulary": digest(vocabulary.words),
        "fingerprint": fingerprint,
        "captions": hashlib.sha256(table_file.read_bytes()).hexdigest(),
    }
    file = source / "search" / EMBEDDING
    if found := _load(file, made_of, vocabulary):
        return found
    table = tables.load(table_file)
    if not any(image.split == "train" and image.captions for image in table.images):
        raise UserError(nothing)
    store = FeatureStore(source / "features.h5")
    store.expect(fingerprint, f"the run {run.path}")
    reader = SplitReader(store, table, "train")
    model = _learn(store, reader, vocabulary)
    others = reader.features(
        np.unique(np.linspace(0, len(reader) - 1, OTHERS).astype(int)).tolist()
    )
    tensors = model.state_dict()
    # 16 bits, as they are stored.
    tensors |= {_PREFIX + name: part.half() for name, part in others._asdict().items()}
    checkpoints.save(file, tensors, made_of)
    return Embedding(model, others, file)


def _load(file: Path, made_of: dict[str, str], vocabulary: Vocabulary) -> Embedding | None:
    """Return what `file` holds, or None if it is not there or made of something else."""
    if not file.exists():
        return None
    tensors, header = checkpoints.load(file, torch.device("cpu"), MADE_BY)
    if not isinstance(header, dict) or any(header.get(k) != v for k, v in made_of.items()):
        return None
    try:
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
        grid, pooled = (tensors.pop(_PREFIX + name) for name in Features._fields)
        model = JointEmbedding(len(vocabulary), len(tensors["mean_C"]))
        model.load_state_dict(tensors)
        if grid.ndim != 3 or not len(grid) or pooled.shape != grid[:, 0].shape:
            raise ValueError(f"features of {tuple(grid.shape)} and {tuple(pooled.shape)}")
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error!r:.200}); delete it") from error
    return Embedding(model.eval(), Features(grid, pooled), file)


def _learn(store: FeatureStore, reader: SplitReader, vocabulary: Vocabulary) -> JointEmbedding:
    told = [image for image in reader.images if image.captions]
    rows = store.rows([image.id for image in told])
    views = len(store.row_format.views)
    shape = (len(rows), views, store.row_format.channels)
    # 16 bits, as they are stored: all training images at once, 2.5 kB a view.
    pooled_NVC = torch.empty(shape, dtype=torch.float16)
    for start in range(0, len(rows), _BLOCK):
        for view in range(views):
            block = rows[start : start + _BLOCK]
            read = store.pooled(block, np.full(len(block), view))
            pooled_NVC[start : start + _BLOCK, view] = torch.from_numpy(read).half()
    captions = [[vocabulary.encode(c.tokens) for c in image.captions] for image in told]
    with tqdm(desc="learn to search", unit="step", disable=None) as bar:

        def progress(step: int, steps: int) -> None:
            bar.total = steps
            bar.update()

        return learn(pooled_NVC, captions, len(vocabulary), progress)


class ImageVectors(NamedTuple):
    """Where the images of a work directory lie in the embedding."""

    image_ids: np.ndarray
    """int64 [N], those stored without failure, in the order of the store."""
    vectors_ND: Tensor
    """float32, unit vectors."""


def image_vectors(work: Path, store: FeatureStore, embedding: Embedding) -> ImageVectors:
    """Load the vectors of all stored images of a work directory, or compute and keep them.

    Raises:
        UserError: their file, or the store, is damaged.
    """
    file = work / "search" / "images.safetensors"
    status = store.path.stat()
    made_of: dict[str, Any] = {
        "embedding": hashlib.sha256(embedding.file.read_bytes()).hexdigest(),
        "store": [status.st_size, status.st_mtime_ns],
    }
    if file.exists():
        tensors, header = checkpoints.load(file, torch.device("cpu"), MADE_BY)
        if header == made_of and tensors.keys() == {"image_ids", "vectors_ND"}:
            return ImageVectors(tensors["image_ids"].numpy(), tensors["vectors_ND"].float())
    rows = np.flatnonzero(store.status == STORED)
    with torch.inference_mode():
        vectors_ND = torch.cat(
            [
                embedding.model.pictures(torch.from_numpy(store.pooled(block))).half()
                for block in _blocks(rows)
            ]
        )
    image_ids = store.image_ids[rows]
    tensors = {"image_ids": torch.from_numpy(image_ids), "vectors_ND": vectors_ND}
    checkpoints.save(file, tensors, made_of)
    return ImageVectors(image_ids, vectors_ND.float())


def _blocks(rows: np.ndarray) -> Sequence[np.ndarray]:
    return [rows[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK)]
