"""Read scores files, `scores_SPLIT.json`, which `evaluation.score` writes."""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import resample
from features.commands import SCORE
from features.errors import UserError
from features.files import read_json

# The diagnostics of version 0.1; later versions have more.
_DIAGNOSTICS = ("bad_endings", "distinct_words", "distinct_captions", "mean_length")
_STATISTICS = {"Bleu": 10, "METEOR": 23}  # columns; see `evaluation.toolkit.ToolkitScores`


@dataclass(frozen=True)
class Scores:
    """The scores of one model's captions of a split, on the scale of the toolkit."""

    path: Path
    """The scores file."""
    split: str
    images: tuple[int, ...]
    """The ids of the scored images, ascending."""
    left_out: int
    """Number of images of the split that were not scored."""
    corpus: dict[str, float]
    """Bleu_1 to Bleu_4, METEOR and so on; NaN for the CIDEr of a single image."""
    intervals: dict[str, tuple[float, float]]
    """Bootstrap interval of each corpus score that has one."""
    confidence: float
    """Level of the intervals, such as 0.95."""
    per_image: dict[str, dict[int, float]]
    """By metric (at least those of `corpus`, and CIDEr) and image, in the order of `images`."""
    statistics: dict[str, NDArray[np.float64]]
    """Sufficient statistics of BLEU and METEOR by image; empty for files of version 0.1."""
    references: str | None
    """Digest of the reference captions; None for files of version 0.1."""
    diagnostics: dict[str, float]
    """See `evaluation.diagnostics.diagnose`. Those that were not computed are missing."""
    toolkit: dict[str, str]
    """Versions of the toolkit and of Java."""
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Images, corpus scores and intervals of each source, if the work directory has several."""

    @property
    def cider(self) -> dict[int, float]:
        """CIDEr by image id, without images that have none."""
        return {i: value for i, value in self.per_image["CIDEr"].items() if not math.isnan(value)}

    def of_images(self, images: Iterable[int]) -> dict[str, float]:
        """Return the corpus scores of some of the images, by name; {} if none of them is scored.

        The document frequencies of CIDEr stay those of all references. A file of version 0.1 has no
        statistics of BLEU and METEOR, so these are missing.
        """
        chosen = set(images).intersection(self.images)
        if not chosen:
            return {}
        known = {
            name: values
            for name, values in self.per_image.items()
            if self.statistics or not name.startswith(("Bleu", "METEOR"))
        }
        counts = np.array([[image in chosen for image in self.images]], np.int64)
        values = resample(known, self.statistics, counts)
        return {name: float(value[0]) for name, value in values.items() if np.isfinite(value[0])}

    def summary(self) -> dict[str, Any]:
        """Return the entries that are not about single images, as in the file."""
        return {
            "images": len(self.images),
            "corpus": {n: None if math.isnan(x) else x for n, x in self.corpus.items()},
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "confidence": self.confidence,
            "diagnostics": self.diagnostics,
            **({"sources": self.sources} if self.sources else {}),
        }


def load(path: Path) -> Scores:
    """Read a scores file, of version 0.1 or later.

    Raises:
        UserError: the file is missing, is not JSON, or an entry is missing or wrong.
    """
    content = read_json(path, SCORE)
    try:
        return _parse(path, content)
    except ValueError as error:
        raise UserError(
            f"{path} is not a scores file: {error}; score again with {SCORE} --force"
        ) from error


def _parse(path: Path, content: object) -> Scores:
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {_found(content)}")
    per_image = {
        metric: _by_image(values, f"the {metric} of single images")
        for metric, values in _object(content, "per_image").items()
    }
    corpus = {
        metric: _number_or_nan(value, f"the corpus score {metric}")
        for metric, value in _object(content, "corpus").items()
    }
    if missing := {*corpus, "CIDEr"}.difference(per_image):
        raise ValueError(f"it has no scores of single images for {sorted(missing)}")
    images = tuple(per_image["CIDEr"])
    for metric, values in per_image.items():
        if tuple(values) != images:
            raise ValueError(f"{metric} and CIDEr are scores of different images")
    if content.get("images") != len(images):
        raise ValueError(
            f"expected images to be {len(images)}, the number of images with a score, found "
            f"{_found(content.get('images'))}"
        )
    references = content.get("references")
    return Scores(
        path,
        split=_text(content.get("split"), "split"),
        images=images,
        left_out=int(_number(content.get("left_out", 0), "left_out")),
        corpus=corpus,
        intervals=_intervals(_object(content, "intervals")),
        confidence=_number(content.get("confidence"), "confidence"),
        per_image=per_image,
        statistics=_statistics(content, images),
        references=None if references is None else _text(references, "references"),
        diagnostics=_diagnostics(_object(content, "diagnostics")),
        toolkit={
            name: _text(value, f"the version of {name}")
            for name, value in _object(content, "toolkit").items()
        },
        sources=_sources(content),
    )


def _sources(content: Mapping[str, object]) -> dict[str, dict[str, Any]]:
    if "sources" not in content:  # one data set
        return {}
    sources = _object(content, "sources")
    return {
        name: {
            "images": int(_number(_object(sources, name).get("images"), f"the images of {name}")),
            "corpus": {
                metric: None if value is None else _number(value, f"{metric} of {name}")
                for metric, value in _object(sources[name], "corpus").items()
            },
            "intervals": _intervals(_object(sources[name], "intervals")),
        }
        for name in sources
    }


def _intervals(bounds: Mapping[str, object]) -> dict[str, tuple[float, float]]:
    intervals = {}
    for metric, pair in bounds.items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"expected two bounds of {metric}, found {_found(pair)}")
        if pair != [None, None]:  # as of a score that does not exist
            low, high = (_number(bound, f"a bound of {metric}") for bound in pair)
            intervals[metric] = (low, high)
    return intervals


def _diagnostics(values: Mapping[str, object]) -> dict[str, float]:
    diagnostics = {
        name: _number(value, f"the diagnostic {name}")
        for name, value in values.items()
        if value is not None
    }
    if missing := [name for name in _DIAGNOSTICS if name not in diagnostics]:
        raise ValueError(f"the diagnostics {missing} are missing")
    return diagnostics


def _statistics(
    content: Mapping[str, object], images: Iterable[int]
) -> dict[str, NDArray[np.float64]]:
    if "statistics" not in content:  # version 0.1
        return {}
    of_metric = _object(content, "statistics")
    statistics = {}
    for metric, columns in _STATISTICS.items():
        by_image = _ids(_object(of_metric, metric))
        rows = []
        for image in images:
            row = by_image.get(image)
            if not isinstance(row, list) or len(row) != columns:
                raise ValueError(
                    f"expected {columns} statistics of {metric} for image {image}, found "
                    f"{_found(row)}"
                )
            rows.append([_number(x, f"a statistic of {metric} for image {image}") for x in row])
        statistics[metric] = np.array(rows, np.float64)
    return statistics


def _by_image(values: object, what: str) -> dict[int, float]:
    if not isinstance(values, dict) or not values:
        raise ValueError(f"expected {what} by image id, found {_found(values)}")
    return {i: _number_or_nan(value, f"{what} ({i})") for i, value in sorted(_ids(values).items())}


def _ids(values: Mapping[str, object]) -> dict[int, object]:
    """Return values by image id, which is text in JSON; ValueError if a key is not an id."""
    return {int(image): value for image, value in values.items()}


def _object(content: Mapping[str, object], name: str) -> dict[str, Any]:
    value = content.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"expected {name} to be an object, found {_found(value)}")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected {what} to be text, found {_found(value)}")
    return value


def _number_or_nan(value: object, what: str) -> float:
    return math.nan if value is None else _number(value, what)


def _number(value: object, what: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # an integer beyond the largest float
            if math.isfinite(value):
                return value
    raise ValueError(f"expected {what} to be a finite number, found {_found(value)}")


def _found(value: object) -> str:
    return "nothing" if value is None else f"{value!r:.60}"
