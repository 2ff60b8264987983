"""What would make a run's numbers worth less than they look: reported before it trains."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from features.errors import first_few
from features.store import STORED, FeatureStore
from pipeline.captions import CaptionTable
from pipeline.vocabulary import EOS, UNK

log = logging.getLogger(__name__)

# Of the words in the training captions. Flickr8k has 2 % with the default --min-count.
UNKNOWN_BOUND = 0.10

# 240 pictures with a caption each wrote word salad after 48 steps, and sentences after 480.
FEW_STEPS = 300

_ROWS = 1024  # rows of the store read at a time
# The same picture does not always have the same features to the last bit: these depend on how many
# pictures went through the CNN with it (one stored value in 200 differs, by one bit). So a picture
# is known by any of several short pieces of its pooled feature, and then compared as a whole.
_PIECES, _PIECE = 8, 16  # channels in a piece
_SAME = 0.01  # largest distance of two features of one picture, relative to their size


def report_few_steps(steps: int, images: int) -> None:
    """Warn of a phase of cross-entropy in which sentences can hardly be learnt.

    Args:
        steps: of the phase, in all.
        images: that are trained on.
    """
    if 0 < steps < FEW_STEPS:
        log.warning(
            "%d training images make %d steps of cross-entropy in all, in which a decoder hardly "
            "learns to write sentences. Train longer, as by --batch-size 10 --xe.epochs %d, and on "
            "more pictures if you can; python -m decoder.caption without --run writes with a "
            "captioner that is trained already",
            images,
            steps,
            -(-2 * FEW_STEPS // -(-images // 10)),
        )


def report(
    store: FeatureStore, table: CaptionTable, captions: Sequence[Sequence[list[int]]]
) -> None:
    """Warn of a vocabulary that lacks many words, and of held-out images that are trained on.

    `captions` are the token ids of each training image's captions.
    """
    share = unknown_share(caption for several in captions for caption in several)
    if share > UNKNOWN_BOUND:
        log.warning(
            "%.1f %% of the words in the training captions are unknown (expected at most %.0f %%): "
            "the decoder learns sentences with holes. In a small data set few words are frequent: "
            "python -m pipeline.prepare with a smaller --min-count keeps more. Or vocabulary.json "
            "is of another data set: it makes that anew",
            100 * share,
            100 * UNKNOWN_BOUND,
        )
    for split, leaked in leaks(store, table).items():
        if leaked:
            pairs = (f"{image} (train {twin})" for image, twin in leaked.items())
            log.warning(
                "%d %s images are pictures that are trained on under another id, so their scores "
                "flatter: %s; remove them from one of the splits",
                len(leaked),
                split,
                first_few(pairs, 20),
            )


def report_precision(precision: str, device: torch.device) -> None:
    """Warn of bfloat16 on a processor that has no instructions for it and must emulate it."""
    if precision != "bfloat16" or device.type != "cpu":
        return
    slower = bfloat16_slowdown()
    if slower > 1:
        log.warning(
            "--precision bfloat16: this processor multiplies in it at 1 / %.1f of its speed in "
            "float32; leave the option out, which also gives the more exact numbers",
            slower,
        )


def bfloat16_slowdown() -> float:
    """Return the time of products in bfloat16 as a multiple of that in float32, on the CPU."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(64, 512, dtype=dtype), torch.ones(512, 1024, dtype=dtype)
        taken = []
        for _ in range(4):  # the first one prepares
            started = time.perf_counter()
            left @ right
            taken.append(time.perf_counter() - started)
        seconds[dtype] = min(taken)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def unknown_share(captions: Iterable[Sequence[int]]) -> float:
    """Return the share of UNK among the token ids of captions, EOS not counted."""
    words = np.fromiter((i for caption in captions for i in caption if i != EOS), np.int64)
    return float((words == UNK).mean()) if len(words) else 0.0


def leaks(store: FeatureStore, table: CaptionTable) -> dict[str, dict[int, int]]:
    """Return, for val and test, images whose picture is a training image too, and that one's id.

    Pictures are told apart by their stored pooled features, so that none is opened. A picture that
    was scaled or compressed anew is not found.
    """
    found: dict[str, dict[int, int]] = {"val": {}, "test": {}}
    held_out: dict[int, list[tuple[str, int, np.ndarray]]] = defaultdict(list)
    for split in found:
        for ids, pooled_nC in _pooled(store, table, split):
            keys, told = _pieces(pooled_nC)
            for row, piece in np.argwhere(told).tolist():
                held_out[int(keys[row, piece])].append((split, ids[row], pooled_nC[row]))
    known = np.fromiter(held_out, np.uint64, len(held_out))
    for ids, pooled_nC in _pooled(store, table, "train") if held_out else ():
        keys, told = _pieces(pooled_nC)
        for row, piece in np.argwhere(told & np.isin(keys, known)).tolist():
            for split, image, other in held_out[int(keys[row, piece])]:
                if image not in found[split] and _same(pooled_nC[row], other):
                    found[split][image] = ids[row]
    return {split: dict(sorted(pairs.items())) for split, pairs in found.items()}


def _pooled(
    store: FeatureStore, table: CaptionTable, split: str
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield the ids of some stored images of a split and their features, float32 [n, channels]."""
    stored = set(store.image_ids[store.status == STORED].tolist())
    ids = [image.id for image in table.images if image.split == split and image.id in stored]
    for start in range(0, len(ids), _ROWS):
        some = ids[start : start + _ROWS]
        yield some, store.pooled(store.rows(some))


def _pieces(pooled_nC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a number, uint64 [n, pieces], for each piece of features, and whether it tells them.

    A piece that is mostly zeros, as many pictures have it, does not.
    """
    channels = pooled_nC.shape[1]
    starts = np.linspace(0, max(0, channels - _PIECE), _PIECES, dtype=int)
    places = starts[:, None] + np.arange(min(_PIECE, channels))
    pieces = pooled_nC[:, places]
    bits = np.ascontiguousarray(pieces).view(np.uint32)
    multipliers = np.random.default_rng(0).integers(2**63, size=places.shape, dtype=np.uint64)
    keys = (bits * (2 * multipliers + 1)).sum(-1, dtype=np.uint64)  # it wraps
    return keys, 2 * np.count_nonzero(pieces, axis=-1) > places.shape[1]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return bool(np.linalg.norm(one - other) <= _SAME * np.linalg.norm(one))
