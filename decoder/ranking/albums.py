"""Find pictures in a folder by words: no captions, no work directory, no store.

The first search of an album computes the features of its pictures with the CNN of the captioner,
and keeps a vector of the joint embedding for each (1 kB; see `decoder.ranking.album_cache`). Later
searches compute only what is new or has changed: a file whose path, size and time are known is not
read, and a renamed or moved one is recognised by its content.

Shape suffixes: N pictures, D size of the embedding.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from decoder.data.pictures import backbone_of
from decoder.ranking.album_cache import AlbumCache, Row, State
from decoder.ranking.embedding import SIZE, JointEmbedding
from decoder.ranking.embedding_file import Embedding, load_or_train
from decoder.ranking.grades import WEAK, Grades
from decoder.ranking.nearest import Index, Nearest, nearest, pays
from decoder.ranking.queries import parse
from decoder.runs import checkpoints
from decoder.runs.loading import load_description
from features.backbones import Backbone
from features.commands import EXPORT
from features.content import check_content
from features.errors import UserError, first_few
from features.extraction import extract_features
from features.folders import find_pictures, passed_over_note, real_path
from features.images import PictureError, read_picture
from features.row_format import to_float16
from features.store import fingerprint as fingerprint_of
from pipeline.vocabulary import Vocabulary
from pipeline.work import RunFolder

_BATCH = 32  # pictures that go through the network together


class AlbumResult(NamedTuple):
    """A picture that matches a query."""

    path: Path
    score: float
    """Cosine of query and picture."""
    grade: str | None
    """How well it matches: "good", "fair" or "weak", as measured on validation captions; None if
    the captioner's embedding was exported without that."""


class AlbumResults(NamedTuple):
    """The answer to a query."""

    results: list[AlbumResult]
    """The best first. Empty if no known word of the query says what to look for."""
    unknown: list[str]
    """The words of the query that the captioner does not know. They have no influence on the order,
    and with one of them no result is better than "weak"."""


class Unreadable(NamedTuple):
    """A picture that cannot be searched."""

    path: Path
    reason: str


class Album:
    """The pictures of a folder as vectors, ready to be searched; `open_album` makes it.

    Args:
        paths: of the pictures.
        nearest: returns the pictures nearest to sentences, by their index in `paths`; see
            `decoder.ranking.nearest.nearest`.
        unreadable: the pictures that cannot be read or show nothing, and why.
        passed_over: number of other files and folders by kind, as `features.folders` counts them.
        embedding: made the vectors.
        vocabulary: of the embedding.
        grades: the measured precision by score.
    """

    def __init__(
        self,
        paths: list[Path],
        nearest: Callable[[Tensor, int], Nearest],
        unreadable: list[Unreadable],
        passed_over: Counter[str],
        embedding: JointEmbedding,
        vocabulary: Vocabulary,
        grades: Grades | None,
    ) -> None:
        self.paths = paths
        self.unreadable = unreadable
        self.passed_over = passed_over
        self.grades = grades
        self._nearest = nearest
        self._embedding = embedding
        self._vocabulary = vocabulary

    def __len__(self) -> int:
        return len(self.paths)

    def why_nothing(self, query: str) -> str:
        """Return in a sentence for people why a query has no results."""
        if not self.paths:
            return f"none of the {len(self.unreadable)} pictures of the album can be read"
        words = parse(query, self._vocabulary)
        if words.unknown:
            return (
                f"no word that says what to look for is known ({first_few(words.unknown)}): each "
                "is missing or rare in the training captions; try more common words"
            )
        return "expected words that say what to look for, such as a dog in the snow"

    @torch.inference_mode()
    def search(self, query: str, count: int = 10) -> AlbumResults:
        """Return the `count` pictures that match a query best.

        Args:
            query: what to look for, such as "a dog in the snow".
            count: number of results; fewer if the album has fewer pictures.
        """
        words = parse(query, self._vocabulary)
        if not words.content or not self.paths:
            return AlbumResults([], words.unknown)
        tokens_1T = torch.tensor([self._vocabulary.encode(words.words)])
        found = self._nearest(self._embedding.sentences(tokens_1T), count)
        results = []
        scores, indices = found.cosine_QK[0].tolist(), found.index_QK[0].tolist()
        for score, index in zip(scores, indices, strict=True):
            grade = None if self.grades is None else self.grades.of(score, len(self.paths))
            if grade is not None and words.unknown:
                grade = WEAK
            results.append(AlbumResult(self.paths[index], score, grade))
        return AlbumResults(results, words.unknown)


def open_album(
    folder: Path,
    run: RunFolder,
    *,
    device: torch.device | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    backbone: Backbone | None = None,
) -> Album:
    """Return the album in a folder; what is new or changed in it is computed first.

    Args:
        folder: pictures are searched in it and below it.
        run: a captioner exported with its search, or a run in its work directory.
        device: where the CNN runs; by default the CPU.
        cache: where the vectors are kept; by default in the user's cache folder.
        progress: called after each new picture with the number of new pictures done and of all new
            ones; never, if there are none.
        backbone: the captioner's CNN, if it is loaded already.

    Raises:
        UserError: there is no such folder, or there are no pictures in it; or the captioner has no
            embedding, or is damaged.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing"
        raise UserError(f"--folder {folder}: expected a folder of pictures, found {what}")
    vocabulary, config = load_description(run)
    embedding = _embedding(run, vocabulary, config["features"])
    found = find_pictures([folder])
    if not found.pictures and not found.closed:
        note = passed_over_note(found.passed_over)
        raise UserError(
            f"expected pictures in {folder}, found none"
            + (f"; passed over: {note}" if note else "")
        )
    root, errors = real_path(folder), []
    files: dict[bytes, _File] = {}
    for path in found.pictures:
        key = os.fsencode(os.path.join(root, path.relative_to(folder)))  # noqa: PTH118
        try:
            status = path.stat()
            files[key] = _File(path, status.st_size, status.st_mtime_ns)
        except OSError as error:
            errors.append(Unreadable(path, error.strerror or str(error)))
    with AlbumCache(folder, _key(embedding.model, config["features"]), cache) as kept:
        states, new = _current(kept, files), {}
        if len(states) < len(files):
            with kept.indexing():
                states = _current(kept, files)  # another process may have computed the rest
                missing = {key: file for key, file in files.items() if key not in states}
                loaded = backbone or backbone_of(
                    config["features"], device or torch.device("cpu"), len(missing)
                )
                new = _index(kept, missing, loaded, embedding.model, progress)
        if not found.closed:
            kept.forget(kept.states().keys() - files.keys())
        kept.commit()
        errors += [Unreadable(path, error.strerror or str(error)) for path, error in found.closed]
        for known in (states, new):
            errors += [
                Unreadable(files[k].path, one.error) for k, one in known.items() if one.error
            ]
        readable = {k for k, state in states.items() if state.vector_bytes}
        readable |= {k for k, row in new.items() if row.vector}
        keys = sorted(readable)
        return Album(
            [files[key].path for key in keys],
            _searchable(kept, {key: files[key] for key in keys}, new),
            sorted(errors),
            found.passed_over,
            embedding.model,
            vocabulary,
            embedding.grades,
        )


class _File(NamedTuple):
    path: Path
    size: int
    modified: int


def _current(kept: AlbumCache, files: dict[bytes, _File]) -> dict[bytes, State]:
    """Return the states of the files that have not changed since."""
    return {
        key: state
        for key, state in kept.states().items()
        if key in files
        and (state.size, state.modified) == (files[key].size, files[key].modified)
        and state.vector_bytes in (None, 2 * SIZE)
    }


def _searchable(
    kept: AlbumCache, files: dict[bytes, _File], new: dict[bytes, Row]
) -> Callable[[Tensor, int], Nearest]:
    """Return what finds the nearest of pictures.

    Args:
        kept: the cache.
        files: the pictures that have a vector, in order.
        new: the rows of those whose vectors were computed now, which it may have failed to keep.
    """

    def vectors() -> Iterator[Tensor]:
        """Yield the vectors of the pictures in order, float16 [1, D] each."""
        stored = ((path, vector) for path, vector in kept.vectors() if path in files)
        path, vector = next(stored, (b"", b""))
        for key in files:
            while path and path < key:
                path, vector = next(stored, (b"", b""))
            row = new.get(key)
            own = vector if row is None or row.vector is None else row.vector
            if row is None and path != key:
                raise UserError("the index of the album has just been deleted; search again")
            yield torch.frombuffer(bytearray(own), dtype=torch.float16)[None]

    file, graph = kept.file(".safetensors"), kept.file(".usearch")
    if file is not None and graph is not None and pays(len(files)):
        # What identifies a version of a file, so that its vector is added to the index once.
        keys_N = np.array([_identity(key, files[key]) for key in files], np.uint64)
        belongs_to = hashlib.sha256(keys_N.tobytes()).hexdigest()
        picture_ND = _kept_vectors(file, belongs_to)
        if picture_ND is None:
            checkpoints.save_rows(file, "vectors_ND", vectors(), (len(files), SIZE), {}, belongs_to)
            picture_ND = _kept_vectors(file, belongs_to)
        if picture_ND is not None:
            return Index(graph, keys_N, picture_ND).nearest
    picture_ND = torch.empty(len(files), SIZE)
    for place, vector_1D in zip(picture_ND, vectors(), strict=True):
        place.copy_(vector_1D[0])
    return lambda query_QD, count: nearest(query_QD, picture_ND, count)


def _kept_vectors(file: Path, belongs_to: str) -> Tensor | None:
    """Return the vectors in a file, memory-mapped; None if it has none, or others."""
    tensors, header = checkpoints.load_cache(file) or ({}, None)
    return tensors["vectors_ND"] if header == belongs_to else None


def _identity(key: bytes, file: _File) -> int:
    text = b"%d %d %s" % (file.size, file.modified, key)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def _index(
    kept: AlbumCache,
    new: dict[bytes, _File],
    backbone: Backbone,
    embedding: JointEmbedding,
    progress: Callable[[int, int], None],
) -> dict[bytes, Row]:
    """Compute the rows of new pictures, and keep them."""
    rows: dict[bytes, Row] = {}
    done = 0

    def finish(key: bytes, vector: bytes | None, error: str | None, keep: bool = True) -> None:
        nonlocal done
        file = new[key]
        rows[key] = Row(file.size, file.modified, b"", vector, error)
        content = _content(file) if keep else None
        if content is not None:
            kept.put(key, rows[key]._replace(content=content))
        done += 1
        progress(done, len(new))

    unseen = []
    for key, file in new.items():
        if row := _same_content(kept, file):
            finish(key, row.vector, row.error)
        else:
            unseen.append(key)
    paths = [new[key].path for key in unseen]
    with closing(extract_features(backbone, paths, ["whole"], _BATCH, read=_read)) as results:
        for key, result in zip(unseen, results, strict=True):
            if isinstance(result, PictureError):
                finish(key, None, str(result), keep=not result.passing)
                continue
            pooled_1C = torch.from_numpy(to_float16(result.pooled)).float()
            with torch.inference_mode():
                vector_1D = embedding.pictures(pooled_1C).half()
            finish(key, vector_1D.numpy().tobytes(), None)
    return rows


def _read(path: Path) -> Image.Image:
    picture = read_picture(path)
    check_content(picture)
    return picture


def _same_content(kept: AlbumCache, file: _File) -> Row | None:
    """Return the row of a file with the same content, such as this one before it was renamed."""
    candidates = kept.same_size(file.size)
    content = _content(file) if candidates else None
    return next((row for row in candidates if row.content == content), None)


def _content(file: _File) -> bytes | None:
    """Return the SHA-256 of a file, None if it has changed or cannot be read now."""
    try:
        with file.path.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").digest()
        status = file.path.stat()
    except OSError:
        return None
    unchanged = (status.st_size, status.st_mtime_ns) == (file.size, file.modified)
    return content if unchanged else None


def _embedding(run: RunFolder, vocabulary: Vocabulary, features: dict[str, Any]) -> Embedding:
    if run.captioner.exists() and not run.embedding.exists():
        raise UserError(
            f"the captioner {run.path} cannot search: it was exported without the embedding of "
            f"pictures and sentences; export it again with {EXPORT} --search, or give another one "
            "with --run"
        )
    return load_or_train(run, run.work, vocabulary, fingerprint_of(features))


def _key(embedding: JointEmbedding, features: dict[str, Any]) -> str:
    """Return a hash of all that determines the vectors of pictures."""
    digest = hashlib.sha256(fingerprint_of(features).encode())
    for tensor in (*embedding.picture.parameters(), embedding.mean_C, embedding.scale_C):
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()[:16]
