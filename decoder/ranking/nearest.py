"""The items nearest to a query: all are compared, or in large collections those an index names.

Up to `EXACT` items, the cosine of every item is computed. Above, a graph of the items (HNSW, Malkov
and Yashunin 2018) names candidates, and only their cosines are computed, so scores are exact either
way. The graph is usearch's, with the vectors in 8 bits; it lies in a file that is memory-mapped.
usearch was chosen over faiss because it brings no OpenMP of its own; users of faiss report crashes
beside torch on macOS. Recall and times are in decoder/README.md.

Shape suffixes: Q queries, K results of each, N items, D size of the embedding.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from features.errors import UserError
from features.extras import how_to_install, is_installed
from features.files import delete_temporaries, make_folder, replacing
from features.locks import locked
from features.progress import Progress

if TYPE_CHECKING:
    from usearch.index import Index as Graph

log = logging.getLogger(__name__)

EXACT = 200_000
# Links of an item, and the candidates that are kept while it is added, and for a query. They are
# the balance of time and recall.
_LINKS, _ADDING, _SEARCHING = 16, 64, 1024
_BLOCK = 20_000  # items read at once
_QUERIES = 400  # compared at once
# With more deleted items than this share, a graph is made again: they stay in it as detours.
_MOST_DELETED = 0.1


class Nearest(NamedTuple):
    """The items nearest to each query, the nearest first."""

    index_QK: Tensor
    """int64, which items."""
    cosine_QK: Tensor
    """float32, their cosines with the query."""


def nearest(query_QD: Tensor, item_ND: Tensor, count: int) -> Nearest:
    """Return the `count` items nearest to each query, or all if there are fewer.

    Args:
        query_QD: unit vectors, float32.
        item_ND: unit vectors, float32 or float16. Those in float16 may be memory-mapped: blocks of
            them are read one after another.
        count: number of results.
    """
    whole = item_ND.dtype == torch.float32 or len(item_ND) <= _BLOCK
    items = [item_ND] if whole else item_ND.split(_BLOCK)
    best: Nearest | None = None
    start = 0
    for block_ND in items:
        block_ND, queries = block_ND.float(), query_QD.split(_QUERIES)
        tops = [(part @ block_ND.T).topk(min(count, len(block_ND))) for part in queries]
        cosine_QK, index_QK = (torch.cat(parts) for parts in zip(*tops, strict=True))
        best = _best(best, Nearest(index_QK + start, cosine_QK), count)
        start += len(block_ND)
    if best is None:
        raise ValueError("there are no items")
    return best


def _best(first: Nearest | None, second: Nearest, count: int) -> Nearest:
    if first is None:
        return second
    cosine_QK = torch.cat([first.cosine_QK, second.cosine_QK], 1)
    index_QK = torch.cat([first.index_QK, second.index_QK], 1)
    cosine_QK, order_QK = cosine_QK.topk(min(count, cosine_QK.shape[1]))
    return Nearest(index_QK.gather(1, order_QK), cosine_QK)


def pays(items: int) -> bool:
    """Whether to make an index of this number of items; warn if a package is missing for it."""
    if items <= EXACT:
        return False
    if not is_installed("usearch"):
        log.warning(
            "searching %s pictures one by one; an index makes it faster: %s",
            f"{items:,}",
            how_to_install("search"),
        )
        return False
    return True


class Index:
    """An index of items, in a file that is brought up to date when it is opened.

    Args:
        file: where it is kept; made if it is missing, and again if it is damaged.
        keys: uint64 [N], all different. They stay the same as long as the item does, so that only
            items with new keys are added.
        item_ND: the items, unit vectors in float16, in the order of the keys; they may be
            memory-mapped.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, file: Path, keys: np.ndarray, item_ND: Tensor) -> None:
        self._order = np.argsort(keys)
        self._keys = keys[self._order]
        self._item_ND = item_ND
        make_folder(file.parent)
        try:
            with locked(file.with_suffix(".lock"), f"waiting for the index {file}", wait=True):
                delete_temporaries(file)
                self._graph = _current(file, self._keys) or self._refresh(file)
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror or error}") from error

    def nearest(self, query_QD: Tensor, count: int) -> Nearest:
        """Return `count` of the items nearest to each query, or all if there are fewer.

        Args:
            query_QD: unit vectors, float32.
            count: number of results.
        """
        wanted = min(len(self._keys), max(_SEARCHING, 4 * count))
        results = []
        for query_D in query_QD:
            found = self._graph.search(_in_8_bits(query_D[None])[0], wanted, threads=1).keys
            places = np.sort(self._order[np.searchsorted(self._keys, found)])
            results.append((places, self._item_ND[torch.from_numpy(places)].float() @ query_D))
        count = min(count, *(len(places) for places, _ in results))
        tops = [(places, cosine_K.topk(count)) for places, cosine_K in results]
        return Nearest(
            torch.stack([torch.from_numpy(places)[top.indices] for places, top in tops]),
            torch.stack([top.values for _, top in tops]),
        )

    def _refresh(self, file: Path) -> "Graph":
        """Add what is new and remove what is gone; write the file, and open it."""
        graph = _opened(file, mapped=False)
        present = np.empty(0, np.uint64) if graph is None else _keys_of(graph)
        gone = np.setdiff1d(present, self._keys)
        if graph is None or len(gone) > _MOST_DELETED * len(present):
            graph, present = _empty(self._item_ND.shape[1]), np.empty(0, np.uint64)
        elif len(gone):
            graph.remove(gone)
        new = np.sort(self._order[~np.isin(self._keys, present)])
        key_N = np.empty_like(self._keys)
        key_N[self._order] = self._keys
        with Progress("index", len(new), "picture") as bar:
            for start in range(0, len(new), _BLOCK):
                block = new[start : start + _BLOCK]
                vectors = _in_8_bits(self._item_ND[torch.from_numpy(block)].float())
                graph.add(key_N[block], vectors, threads=torch.get_num_threads())
                bar.update(len(block))
        with replacing(file) as temporary:
            graph.save(os.fspath(temporary))
        del graph
        opened = _opened(file, mapped=True)
        if opened is None:
            raise UserError(f"cannot read {file}, which was just written; the disk may be failing")
        return opened


def _empty(size: int) -> "Graph":
    from usearch.index import Index as Graph

    return Graph(ndim=size, metric="cos", dtype="i8", connectivity=_LINKS, expansion_add=_ADDING)


def _opened(file: Path, mapped: bool) -> "Graph | None":
    """Return the graph in a file; None if there is none that this usearch can read."""
    from usearch.index import Index as Graph

    try:
        if not file.exists():
            return None
        depths = {"expansion_add": _ADDING, "expansion_search": _SEARCHING}
        return Graph.restore(os.fspath(file), view=mapped, **depths)
    except (RuntimeError, ValueError, MemoryError) as error:
        log.warning("%s is damaged or of another version; making it again: %s", file, error)
        return None


def _current(file: Path, sorted_keys: np.ndarray) -> "Graph | None":
    """Return the graph in a file, memory-mapped, if it has these keys."""
    graph = _opened(file, mapped=True)
    if graph is None or len(graph) != len(sorted_keys):
        return None
    return graph if np.array_equal(_keys_of(graph), sorted_keys) else None


def _keys_of(graph: "Graph") -> np.ndarray:
    return np.sort(np.asarray(graph.keys, np.uint64))


def _in_8_bits(vectors_BD: Tensor) -> np.ndarray:
    """Return vectors as int8 [B, D], each scaled to the whole range, which no cosine depends on."""
    largest_B1 = vectors_BD.abs().amax(1, keepdim=True).clamp(min=1e-12)
    return (vectors_BD * (127 / largest_B1)).round().to(torch.int8).numpy()
