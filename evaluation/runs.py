"""What a training run and its captions left on disk, read and checked for the report."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import commands, results
from evaluation.arrays import read_arrays
from features.commands import TRAIN
from features.errors import UserError
from features.files import read_json
from pipeline import captions
from pipeline.captions import SPLITS, CaptionTable

_ARRAYS = ("image_id", "words", "weights")


@dataclass(frozen=True)
class Looks:
    """Where a decoder looked at each word of one caption."""

    words: list[str]
    """The words, in order, T of them."""
    weights: NDArray[np.float32]
    """[T, grid height, grid width], not negative."""


@dataclass(frozen=True)
class Scored:
    """What the report shows of a scores file, as `evaluation.score` writes it."""

    corpus: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    cider: dict[int, float]
    """CIDEr by image id."""
    diagnostics: dict[str, float]
    toolkit: dict[str, str]


@dataclass(frozen=True)
class Run:
    """A run, as far as it has come; what is optional is empty or None where its file is absent."""

    name: str
    split: str
    table: CaptionTable
    config: dict[str, Any]
    epochs: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    captions: dict[int, str]
    captions_before: dict[int, str]
    """From before REINFORCE."""
    captions_reranked: dict[int, str]
    """Those of run_all.sh's last stage, where the preset has one."""
    scores: Scored | None
    scores_before: Scored | None
    scores_reranked: Scored | None
    looks: dict[int, Looks]
    commands: list[str]
    """The commands that made it."""


def inputs(folder: Path, split: str) -> list[Path]:
    """Return the files that `load` reads, those that may be absent included."""
    names = ["config.json", "metrics.jsonl"]
    ways = ("", "_xe", "_reranked")
    names += [f"{kind}_{split}{way}.json" for kind in ("captions", "scores") for way in ways]
    names += [f"attention_{split}.npz"]
    return [folder.parent.parent / "captions.json", *(folder / name for name in names)]


def captioned_split(folder: Path) -> str:
    """Return the split that the run in `folder` has captions of: test, else val, else train.

    Raises:
        UserError: the run is not there, or has no captions yet.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a run; expected config.json in it, which {TRAIN} makes")
    for split in reversed(SPLITS):
        if (folder / f"captions_{split}.json").is_file():
            return split
    raise UserError(
        f"{folder} has no captions yet; write them with "
        f"python -m decoder.caption --run {folder} --split val"
    )


def load(folder: Path, split: str) -> Run:
    """Read the run in `folder` and its captions of `split`.

    Raises:
        UserError: a file that must be there is not, or one does not hold what it should.
    """
    table_path, config, metrics, *files, attention = inputs(folder, split)
    written, before, reranked, scores, scores_before, scores_reranked = files
    table = captions.load(table_path)
    made_with = _load_config(config)
    run = Run(
        folder.resolve().name,
        split,
        table,
        made_with,
        _load_epochs(metrics),
        results.read(written),
        results.read(before) if before.exists() else {},
        results.read(reranked) if reranked.exists() else {},
        _load_scores(scores),
        _load_scores(scores_before),
        _load_scores(scores_reranked),
        _load_attention(attention),
        commands.commands(folder, split, made_with["options"]),
    )
    results.match(run.captions, table, split, written, partial=True)
    return run


def _load_config(path: Path) -> dict[str, Any]:
    content = read_json(path, TRAIN)
    for key in ("options", "features"):
        if not isinstance(content, dict) or not isinstance(content.get(key), dict):
            raise UserError(f"{path}: expected an object with the object {key!r}; see {TRAIN}")
    return content


def _load_scores(path: Path) -> Scored | None:
    if not path.exists():
        return None
    content = read_json(path, "python -m evaluation.score")
    try:
        ciders = content["per_image"].get("CIDEr", {})
        return Scored(
            {name: finite(x) for name, x in content["corpus"].items() if x is not None},
            {
                name: (finite(low), finite(high))
                for name, (low, high) in content["intervals"].items()
                if low is not None
            },
            {int(image): finite(value) for image, value in ciders.items() if value is not None},
            {
                name: finite(content["diagnostics"][name])
                for name in ("bad_endings", "distinct_words", "distinct_captions", "mean_length")
            }
            | {
                name: finite(content["diagnostics"][name])
                for name in ("repeated_phrases", "new_captions")
                if content["diagnostics"].get(name) is not None
            },
            {name: str(value) for name, value in content["toolkit"].items()},
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a scores file ({error!r}); python -m evaluation.score makes it anew"
        ) from error


def finite(value: Any) -> float:
    """Return a number read from JSON; ValueError or TypeError if it is none, or is infinite."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, found {value!r}")
    return number


def _load_epochs(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    epochs = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").splitlines(), 1
    ):
        try:
            epoch = json.loads(line)
            known = epoch["phase"] in ("xe", "rl") and isinstance(epoch["val"], dict)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}: expected an epoch's figures: {error!r}"
            ) from error
        if not known:
            raise UserError(
                f"{path}, line {number}: expected the phase xe or rl and validation scores, found "
                f"{line[:200]}"
            )
        epochs.append(epoch)
    return epochs


def _load_attention(path: Path) -> dict[int, Looks]:
    if not path.exists():
        return {}
    made_by = "python -m decoder.caption makes it anew"
    try:
        images, words, weights = read_arrays(path, _ARRAYS)
    except ValueError as error:
        raise UserError(f"{path} is not a file of attention ({error}); {made_by}") from error
    if (
        weights.ndim != 4
        or words.shape != weights.shape[:2]
        or images.shape != words.shape[:1]
        or (images.dtype.kind, words.dtype.kind, weights.dtype.kind) != ("i", "U", "f")
        or not np.isfinite(weights).all()
    ):
        raise UserError(
            f"{path}: expected image_id [n], words [n, T], finite weights "
            f"[n, T, height, width]; found {images.dtype} {images.shape}, {words.dtype} "
            f"{words.shape} and {weights.dtype} {weights.shape}; {made_by}"
        )
    looks = {}
    for image, row, maps in zip(images, words, weights, strict=True):
        kept = [t for t, word in enumerate(row) if word and not str(word).startswith("<")]
        looks[int(image)] = Looks([str(row[t]) for t in kept], maps[kept])
    return looks
