"""Checks before training: data leaks, unknown words, too few steps, slow precision."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from features.commands import CAPTION, PREPARE
from features.errors import first_few
from features.sampling import evenly_spaced
from features.store import STORED, FeatureStore
from features.store_set import Store
from pipeline.caption_database import CaptionDatabase
from pipeline.captions import CaptionTable
from pipeline.vocabulary import EOS, UNK

log = logging.getLogger(__name__)

# Acceptable share of unknown words in the training captions. Flickr8k has 2 % by default.
UNKNOWN_BOUND = 0.10

# With 240 pictures of one caption each, 480 steps gave sentences and 48 steps gave nonsense.
FEW_STEPS = 300

_ROWS = 1024  # rows of the store read at a time
_MOST = 100_000  # images of each split whose features are compared, if they are in shards
# A picture's features can differ in last bits between extractions, because they depend on the size
# of the CNN's batch (one stored value in 200 differs, by one bit). So pictures are candidates for a
# match if any of a few short pieces of their pooled features agree; then all channels are compared.
_PIECES, _PIECE = 8, 16  # pieces of a feature, channels in a piece
_SAME = 0.01  # largest distance of two features of one picture, relative to their size


def report_few_steps(steps: int, images: int) -> None:
    """Warn if cross-entropy has too few steps to learn to write sentences.

    Args:
        steps: of the phase, over all epochs.
        images: number of training images.
    """
    if 0 < steps < FEW_STEPS:
        log.warning(
            "%d training images give %d steps of cross-entropy in all, too few to learn to write "
            "sentences. Train longer, for example with --batch-size 10 --xe.epochs %d, and on more "
            "pictures if you can. To caption pictures with the included captioner, run "
            "%s without --run",
            images,
            steps,
            -(-2 * FEW_STEPS // -(-images // 10)),
            CAPTION,
        )


def report(store: Store, table: CaptionTable, captions: Sequence[Sequence[list[int]]]) -> None:
    """Warn of a vocabulary that lacks many words, and of held-out images that are trained on.

    Args:
        store: the features.
        table: the images and their splits.
        captions: token ids of each training image's captions.
    """
    share = unknown_share(caption for of_image in captions for caption in of_image)
    if share > UNKNOWN_BOUND:
        log.warning(
            "%.1f %% of the words in the training captions are unknown (expected at most %.0f %%), "
            "so the decoder learns incomplete sentences. Either vocabulary.json belongs to another "
            "data set, or the data set is small and few of its words are frequent: run %s again, "
            "with a smaller --min-count to keep more words",
            100 * share,
            100 * UNKNOWN_BOUND,
            PREPARE,
        )
    for split, leaked in leaks(store, table).items():
        if leaked:
            pairs = (f"{image} (train {twin})" for image, twin in leaked.items())
            log.warning(
                "%d %s images are also training images under another id, which inflates their "
                "scores: %s; remove them from one of the splits",
                len(leaked),
                split,
                first_few(pairs, 20),
            )


def report_precision(precision: str, device: torch.device) -> None:
    """Warn of bfloat16 on a processor that must emulate it, and of TF32 where there is none."""
    if precision == "tf32" and not has_tf32(device):
        log.warning(
            "--precision tf32: %s computes products in float32, which is slower and more exact; "
            "only NVIDIA GPUs since the A100 and the RTX 30 have TF32",
            device,
        )
    if precision != "bfloat16" or device.type != "cpu":
        return
    slower = bfloat16_slowdown()
    if slower > 1:
        log.warning(
            "--precision bfloat16: on this processor products in bfloat16 take %.1f times as long "
            "as in float32; leave the option out, which is also more exact",
            slower,
        )


def has_tf32(device: torch.device) -> bool:
    """Return whether the device has products in TF32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def bfloat16_slowdown() -> float:
    """Return how many times as long a product takes in bfloat16 as in float32, on the CPU."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(64, 512, dtype=dtype), torch.ones(512, 1024, dtype=dtype)
        taken = []
        for _ in range(4):  # the first one warms up
            started = time.perf_counter()
            left @ right
            taken.append(time.perf_counter() - started)
        seconds[dtype] = min(taken)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def unknown_share(captions: Iterable[Sequence[int]]) -> float:
    """Return the share of UNK among the token ids of captions, EOS not counted."""
    words = np.fromiter((i for caption in captions for i in caption if i != EOS), np.int64)
    return float((words == UNK).mean()) if len(words) else 0.0


def leaks(store: Store, table: CaptionTable) -> dict[str, dict[int, int]]:
    """Find val and test images whose picture is also a training image.

    Pictures are compared by their stored pooled features, so none is opened. A copy that was
    scaled or compressed again is not detected.

    Returns:
        For each of these splits, image id to the id of the training image.
    """
    found: dict[str, dict[int, int]] = {"val": {}, "test": {}}
    held_out: dict[int, list[tuple[str, int, np.ndarray]]] = defaultdict(list)
    for split in found:
        for ids, pooled_nC in _pooled(store, table, split):
            keys, informative = _pieces(pooled_nC)
            for row, piece in np.argwhere(informative).tolist():
                held_out[int(keys[row, piece])].append((split, ids[row], pooled_nC[row]))
    known = np.fromiter(held_out, np.uint64, len(held_out))
    for ids, pooled_nC in _pooled(store, table, "train") if held_out else ():
        keys, informative = _pieces(pooled_nC)
        for row, piece in np.argwhere(informative & np.isin(keys, known)).tolist():
            for split, image, other in held_out[int(keys[row, piece])]:
                if image not in found[split] and _same(pooled_nC[row], other):
                    found[split][image] = ids[row]
    return {split: dict(sorted(pairs.items())) for split, pairs in found.items()}


def _pooled(
    store: Store, table: CaptionTable, split: str
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield a split's stored images, a few at a time: ids, and features float32 [n, C].

    Of shards these are at most `_MOST` images, evenly spaced.
    """
    if isinstance(store, FeatureStore):
        stored = set(store.image_ids[store.status == STORED].tolist())
        ids = [image.id for image in table.images if image.split == split and image.id in stored]
        for start in range(0, len(ids), _ROWS):
            chosen = ids[start : start + _ROWS]
            yield chosen, store.pooled(store.rows(chosen))
        return
    assert isinstance(table, CaptionDatabase)
    images = table.splits[split]
    indices = np.array(evenly_spaced(range(len(images)), _MOST))
    for start in range(0, len(indices), _ROWS):
        rows = images.rows_of(indices[start : start + _ROWS])
        yield store.image_ids[rows].tolist(), store.pooled(rows)


def _pieces(pooled_nC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of each piece of features, uint64 [n, pieces], and which are informative.

    A piece that is mostly zeros is not informative, because many pictures share it.
    """
    channels = pooled_nC.shape[1]
    starts = np.linspace(0, max(0, channels - _PIECE), _PIECES, dtype=int)
    places = starts[:, None] + np.arange(min(_PIECE, channels))
    pieces = pooled_nC[:, places]
    bits = np.ascontiguousarray(pieces).view(np.uint32)
    multipliers = np.random.default_rng(0).integers(2**63, size=places.shape, dtype=np.uint64)
    keys = (bits * (2 * multipliers + 1)).sum(-1, dtype=np.uint64)  # wraps around
    return keys, 2 * np.count_nonzero(pieces, axis=-1) > places.shape[1]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return bool(np.linalg.norm(one - other) <= _SAME * np.linalg.norm(one))
