"""The joint embedding on disk: loaded for a run, or trained once and kept in its work directory."""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from decoder.data.batches import Features, pad
from decoder.data.readers import MOST_SAMPLED, SplitReader
from decoder.ranking.embedding import JointEmbedding, train_embedding
from decoder.ranking.grades import METHOD, Grades, grades_of, measure
from decoder.runs import checkpoints
from decoder.runs.folder import digest
from decoder.runs.packaged import named
from features.commands import EXPORT, SEARCH
from features.errors import AccessError, UserError
from features.progress import Progress
from features.sampling import evenly_spaced
from features.store_set import Store
from pipeline.caption_database import SplitImages, open_features
from pipeline.caption_database import load as load_table
from pipeline.captions import CaptionTable, Image
from pipeline.vocabulary import Vocabulary
from pipeline.work import RunFolder, WorkFolder

log = logging.getLogger(__name__)

# The decoder scores each candidate caption with each of these images, too.
BACKGROUND_IMAGES = 20
COMPACT_BACKGROUND_IMAGES = 5  # in an exported captioner; each takes 0.2 MB
_BLOCK = 1000  # rows of the store that are read at once
# Marks the background features among the tensors of the file.
_BACKGROUND = "others."
_FIELDS = ("grid_IRC", "pooled_IC")
_GRADES = "grades"  # their key in the header
_METHOD = "grades_method"  # the version of `grades.measure` that measured them


class Embedding(NamedTuple):
    """A joint embedding as its file holds it."""

    model: JointEmbedding
    background: Features
    """Features of some training images, from which the decoder estimates how probable a caption is
    regardless of the picture."""
    file: Path
    grades: Grades | None
    """What scores of a search mean; None if there were too few validation captions to measure it.
    """
    is_graded: bool
    """Whether the grades were measured as `grades.measure` does it now."""


def provenance(vocabulary: Vocabulary, fingerprint: str) -> dict[str, str]:
    """Return what identifies the run that a file belongs to: its words and its features.

    Args:
        vocabulary: the run's.
        fingerprint: of the features that the run was trained on.
    """
    return {"vocabulary": digest(vocabulary.words), "fingerprint": fingerprint}


def load_or_train(
    run: RunFolder, work: WorkFolder, vocabulary: Vocabulary, fingerprint: str
) -> Embedding:
    """Load the embedding that fits a run, or train it once, which takes minutes, and keep it.

    If the run is an exported captioner with an embedding of its own, that one is loaded. Otherwise
    it is the embedding of the run's work directory or, if that has no captions, of `work`.

    Args:
        run: the run or captioner.
        work: the work directory to be searched.
        vocabulary: the run's.
        fingerprint: of the features that the run was trained on.

    Raises:
        AccessError: a file cannot be read.
        UserError: there are no training captions to train it on, or a file of a captioner is
            damaged. A damaged embedding of a work directory is trained again.
    """
    expected = provenance(vocabulary, fingerprint)
    if run.embedding.exists():
        try:
            if embedding := load(run.embedding, expected, vocabulary):
                return embedding
            reason = f"{run.embedding} belongs to another run: its vocabulary or features differ"
        except AccessError:
            raise
        except UserError as error:
            reason = str(error)
        raise UserError(f"{reason}; copy the whole original folder again")
    source = run.work if run.work.captions.exists() else work
    no_captions = UserError(
        f"decoder.search learns from training captions, but neither {run.path} nor {work.path} has "
        "any; name a run that is still in its work directory, or a captioner exported with "
        f"{EXPORT} --search; to search a plain folder of pictures with it: {SEARCH} --folder"
    )
    if not source.captions.exists():
        raise no_captions
    with source.captions.open("rb") as content:
        expected["captions"] = hashlib.file_digest(content, "sha256").hexdigest()
    file = source.search / run.embedding.name
    embedding = _kept(file, expected, vocabulary)
    if embedding is not None and embedding.is_graded:
        return embedding
    table = load_table(source.captions)
    if embedding is not None:
        with suppress(UserError):  # its features may be gone, or the disk be full
            grades = _measure(embedding.model, open_features(source), table, vocabulary)
            embedding = embedding._replace(grades=grades)
            tensors, header = checkpoints.load(file, torch.device("cpu"), SEARCH)
            checkpoints.save(file, tensors, header | _record(grades))
        return embedding
    if not any(image.split == "train" and image.captions for image in table.images):
        raise no_captions
    store = open_features(source)
    store.expect(fingerprint, named(run.path))
    reader = SplitReader(store, table, "train")
    model = _train(store, reader, vocabulary)
    grades = _measure(model, store, table, vocabulary)
    background = reader.features(evenly_spaced(range(len(reader)), BACKGROUND_IMAGES))
    tensors = model.state_dict()
    # The store holds them as float16, too.
    tensors |= {
        _BACKGROUND + name: part.half()
        for name, part in background._asdict().items()
        if part is not None
    }
    checkpoints.save(file, tensors, expected | _record(grades))
    return Embedding(model, background, file, grades, True)


def _kept(file: Path, expected: dict[str, str], vocabulary: Vocabulary) -> Embedding | None:
    """Load an embedding as `load` does; None if it is damaged, too, which a warning says."""
    try:
        return load(file, expected, vocabulary)
    except AccessError:
        raise
    except UserError as error:
        log.warning("training a damaged embedding again: %s", error)
        return None


def load(file: Path, expected: dict[str, str], vocabulary: Vocabulary) -> Embedding | None:
    """Load an embedding, or return None if there is no file or it belongs to another run.

    Raises:
        UserError: the file is damaged.
    """
    if not file.exists():
        return None
    tensors, header = checkpoints.load(file, torch.device("cpu"), SEARCH)
    if not isinstance(header, dict) or any(header.get(k) != v for k, v in expected.items()):
        return None
    try:
        is_graded = header.get(_METHOD) == METHOD
        tensors = checkpoints.dequantize(tensors)
        grid, pooled = (tensors.pop(_BACKGROUND + name) for name in _FIELDS)
        mask = tensors.pop(f"{_BACKGROUND}mask_IR", None)  # only where regions vary
        if grid.ndim == 2:  # as `save_compact` writes it
            grid = grid.unflatten(0, (len(pooled), -1))
        model = JointEmbedding(len(vocabulary), len(tensors["mean_C"]))
        model.load_state_dict(tensors)
        if grid.ndim != 3 or not len(grid) or pooled.shape != grid[:, 0].shape:
            raise ValueError(f"features of {tuple(grid.shape)} and {tuple(pooled.shape)}")
        if mask is not None and (mask.shape != grid.shape[:2] or not mask.bool().any(1).all()):
            raise ValueError(f"a mask of {tuple(mask.shape)} for {tuple(grid.shape)}")
        grades = grades_of(header.get(_GRADES))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error!r:.200}") from error
    background = Features(grid, pooled, None if mask is None else mask.bool())
    return Embedding(model.eval(), background, file, grades, is_graded)


def save_compact(embedding: Embedding, file: Path) -> None:
    """Write an embedding in 8 bits, with fewer background images: for an exported captioner.

    The words and matrices take 3 MB with three CNNs, the background images 1 MB.
    """
    tensors, header = checkpoints.load(embedding.file, torch.device("cpu"), SEARCH)
    for name in [name for name in tensors if name.startswith(_BACKGROUND)]:
        step = -(-len(tensors[name]) // COMPACT_BACKGROUND_IMAGES)
        tensors[name] = tensors[name][::step].flatten(0, -2)  # 8 bits are for matrices
    if embedding.is_graded:
        header |= _record(embedding.grades)
    checkpoints.save(file, checkpoints.quantize(tensors), header)


def _record(grades: Grades | None) -> dict[str, Any]:
    """Return what the header says of grades that were measured now."""
    return {_GRADES: None if grades is None else grades.as_record(), _METHOD: METHOD}


def _measure(
    model: JointEmbedding, store: Store, table: CaptionTable, vocabulary: Vocabulary
) -> Grades | None:
    """Measure what scores mean on the validation split, if it has captions and features."""
    images: Sequence[Image] = table.split("val") if table.has_split("val") else ()
    if not isinstance(images, SplitImages):  # those have captions and features
        failed = store.failures()
        images = [image for image in images if image.captions and image.id not in failed]
    if not images:
        return None
    reader = SplitReader(store, table, "val", grid=False)
    by_id = {image.id: index for index, image in enumerate(reader.images)}
    captions = [[caption.tokens for caption in image.captions] for image in images]
    with torch.inference_mode():
        picture_ND = model.pictures(reader.pooled([by_id[image.id] for image in images]))

        def embed(sentences: Sequence[Sequence[str]]) -> Tensor:
            return model.sentences(pad([vocabulary.encode(words) for words in sentences]))

        return measure(captions, picture_ND, embed, vocabulary.ids.__contains__)


def _train(store: Store, reader: SplitReader, vocabulary: Vocabulary) -> JointEmbedding:
    """Train an embedding on the images of a split that have captions, in all stored views.

    Of shards these are at most `MOST_SAMPLED` images.
    """
    images = [image for image in reader.sampled(MOST_SAMPLED) if image.captions]
    pooled_NVC = _pooled_views(store, store.rows([image.id for image in images]))
    captions = [[vocabulary.encode(c.tokens) for c in image.captions] for image in images]
    with Progress("train the embedding", None, "step") as bar:

        def progress(step: int, steps: int) -> None:
            bar.total = steps
            bar.update()

        return train_embedding(pooled_NVC, captions, len(vocabulary), progress)


def _pooled_views(store: Store, rows: np.ndarray) -> Tensor:
    """Read the pooled features of rows of the store in all views, float16 [N, V, C].

    They all fit in memory: a view of 1,280 channels takes 2.5 kB.
    """
    views = len(store.row_format.views)
    pooled_NVC = torch.empty(len(rows), views, store.row_format.channels, dtype=torch.float16)
    start = 0
    for block in blocks(rows):
        for view in range(views):
            pooled = store.pooled(block, np.full(len(block), view))
            pooled_NVC[start : start + len(block), view] = torch.from_numpy(pooled).half()
        start += len(block)
    return pooled_NVC


def blocks(rows: np.ndarray) -> Sequence[np.ndarray]:
    """Divide rows of the store into blocks that are read at once."""
    return [rows[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK)]
