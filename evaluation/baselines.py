"""What a run is compared with: captions of the nearest training pictures, and people.

Both are scored by the official toolkit, once for a split: WORK/baselines_SPLIT.json keeps them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import resample
from evaluation.references import captions_of
from evaluation.toolkit import Captions, score_tokens, tokenize_together
from features.errors import UserError
from features.files import read_json, write_json
from features.sampling import evenly_spaced
from features.store_set import Store
from pipeline.caption_database import CaptionDatabase, open_features
from pipeline.captions import CaptionTable, Image
from pipeline.up_to_date import Stamp
from pipeline.work import WorkFolder

METRICS = ("Bleu", "METEOR", "ROUGE_L")  # and CIDEr, which is scored separately
_CAPTIONS = 5  # for the agreement of people; COCO, Flickr8k and Flickr30k have five
_MOST_IMAGES = 5000  # METEOR takes a minute for these
_MOST_NEIGHBOURS = 100_000
_ROWS = 1024  # rows of the store read at a time
# References and a candidate for each of them.
_Part = tuple[Captions, dict[int, str]]


@dataclass(frozen=True)
class Baseline:
    """Corpus scores of captions that no model wrote."""

    scores: dict[str, float]
    """By the names of `evaluation.toolkit.ToolkitScores`."""
    images: int
    """Number of images that were scored."""


@dataclass(frozen=True)
class _Scored:
    """What the scores of baselines depend on, in addition to the files of the work directory."""

    split: str
    images: str
    version: int = 1


def baselines_of(
    work: WorkFolder, table: CaptionTable, split: str, images: Sequence[int]
) -> tuple[dict[str, Baseline], list[str]]:
    """Return the baselines on `images` of a split, and why some could not be computed.

    "nearest" is the first caption of the training picture whose pooled features are most similar
    (by cosine) to those of the image: Devlin et al., "Exploring Nearest Neighbor Approaches for
    Image Captioning" (2015), with k = 1. "people" is one reference caption against the other four,
    the mean over the five choices, on the images with five or more captions.

    Args:
        work: the work directory, with its features.
        table: its captions.
        split: of the images.
        images: ids of the images that are scored; of more than 5,000 as many, evenly spaced.
    """
    references = {i: texts for i, texts in captions_of(table.split(split)).items() if texts}
    images = evenly_spaced([i for i in images if i in references], _MOST_IMAGES)
    if not images:
        return {}, []
    digest = hashlib.sha256(json.dumps(list(images)).encode()).hexdigest()
    path = work.baselines(split)
    inputs = [work.captions, work.features]
    stamp = Stamp(work.path, path.stem, _Scored(split, digest), inputs)
    if stamp.holds():
        with suppress(UserError, KeyError, TypeError, ValueError, AttributeError):
            return _parse(read_json(path, "")), []
    groups: dict[str, list[_Part]] = {}
    reasons = []
    references = {image: references[image] for image in images}
    try:
        if nearest := _nearest(work, table, images):
            groups["nearest"] = [({i: references[i] for i in nearest}, nearest)]
        else:
            reasons.append("no training picture has features and a caption")
    except UserError as error:
        reasons.append(str(error))
    if people := _leave_one_out(references):
        groups["people"] = people
    if not groups:
        return {}, reasons
    print(f"report: scoring the baselines of the {split} split, which is done once")
    try:
        found = _score(groups)
    except UserError as error:
        return {}, [*reasons, str(error)]
    with suppress(UserError):  # a work directory that cannot be written: scored again next time
        write_json(path, {name: vars(baseline) for name, baseline in found.items()})
        if not reasons:
            stamp.write([path])
    return found, reasons


def nearest_rows(
    wanted_n: NDArray[np.int64], stored: Store, rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return for each image of a store the other one with the most similar pooled features.

    Similarity is the cosine. Of equal ones the first is returned; -1 if there is no other image.

    Args:
        wanted_n: int64 [n] the rows of the images.
        stored: the store.
        rows: int64 [m] the rows to search.
    """
    wanted_nC = _unit(stored.pooled(wanted_n))
    best_n = np.full(len(wanted_n), -np.inf, np.float32)
    nearest_n = np.full(len(wanted_n), -1, np.int64)
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS]
        similarity_nm = wanted_nC @ _unit(stored.pooled(block)).T
        similarity_nm[wanted_n[:, None] == block] = -np.inf
        place_n = similarity_nm.argmax(1)
        value_n = similarity_nm[np.arange(len(place_n)), place_n]
        better_n = value_n > best_n
        best_n[better_n], nearest_n[better_n] = value_n[better_n], block[place_n[better_n]]
    return nearest_n


def _nearest(work: WorkFolder, table: CaptionTable, images: Sequence[int]) -> dict[int, str]:
    """Return the first caption of each image's nearest training picture, itself excluded.

    Of shards only `_MOST_NEIGHBOURS` training pictures, evenly spaced, are compared.
    """
    store = open_features(work)
    if isinstance(table, CaptionDatabase):  # all its images have features and captions
        wanted = list(images)
        train: Sequence[Image] = table.splits["train"]
        train = table.splits["train"].at(evenly_spaced(range(len(train)), _MOST_NEIGHBOURS))
    else:
        stored = {i for rows in store.stored_rows() for i in store.image_ids[rows].tolist()}
        wanted = [image for image in images if image in stored]
        train = [i for i in table.images if i.split == "train" and i.captions and i.id in stored]
    known = {image.id: image.captions[0].text for image in train}
    if not known or not wanted:
        return {}
    rows = store.rows(list(known))
    texts = dict(zip(rows.tolist(), known.values(), strict=True))
    found = nearest_rows(store.rows(wanted), store, rows)
    nearest = zip(wanted, found.tolist(), strict=True)
    return {image: texts[row] for image, row in nearest if row >= 0}


def _leave_one_out(references: Captions) -> list[_Part]:
    """Return five pairs of references and candidates, where each caption is a candidate once."""
    five = {i: list(c[:_CAPTIONS]) for i, c in references.items() if len(c) >= _CAPTIONS}
    if len(five) < 2:  # CIDEr needs two
        return []
    return [
        (
            {image: texts[:n] + texts[n + 1 :] for image, texts in five.items()},
            {image: texts[n] for image, texts in five.items()},
        )
        for n in range(_CAPTIONS)
    ]


def _score(groups: Mapping[str, Sequence[_Part]]) -> dict[str, Baseline]:
    """Score references and candidates of the same images; return the means over a group's parts.

    All parts are scored together, so that Java starts twice in all; CIDEr, whose document
    frequencies come from the references, part by part.

    Raises:
        UserError: there is no Java, or a Java program failed.
    """
    written: dict[int, list[str]] = {}
    references: dict[int, Sequence[str]] = {}
    places: dict[str, list[range]] = {}  # of the captions of each part
    for name, parts in groups.items():
        places[name] = []
        for captions, candidates in parts:
            start = len(written)
            for image, text in candidates.items():
                references[len(written)] = captions[image]
                written[len(written)] = [text]
            places[name].append(range(start, len(written)))
    written_tokens, reference_tokens = tokenize_together([written, references])
    tokens = {i: texts[0] for i, texts in written_tokens.items()}
    scores = score_tokens(reference_tokens, tokens, METRICS)
    baselines = {}
    for name, of_parts in places.items():
        members = np.zeros((len(of_parts), len(tokens)), np.int64)
        for row, place in enumerate(of_parts):
            members[row, place.start : place.stop] = 1
        values = resample(scores.per_image, scores.statistics, members)
        values["CIDEr"] = np.array([_cider(reference_tokens, tokens, place) for place in of_parts])
        means = {metric: float(np.mean(column)) for metric, column in values.items()}
        known = {metric: mean for metric, mean in means.items() if np.isfinite(mean)}
        baselines[name] = Baseline(known, len(of_parts[0]))
    return baselines


def _cider(references: Captions, candidates: Mapping[int, str], place: range) -> float:
    scores = score_tokens(
        {i: references[i] for i in place}, {i: candidates[i] for i in place}, ("CIDEr",)
    )
    return scores.corpus["CIDEr"]


def _parse(content: Any) -> dict[str, Baseline]:
    return {
        str(name): Baseline(
            {str(metric): float(value) for metric, value in entry["scores"].items()},
            int(entry["images"]),
        )
        for name, entry in content.items()
    }


def _unit(rows_nC: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows_nC, axis=1, keepdims=True)
    return (rows_nC / np.maximum(lengths, 1e-12)).astype(np.float32, copy=False)
