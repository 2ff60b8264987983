"""What captioner.json says of a captioner: scores, confidence, data, features."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from decoder.captioning import confidence
from decoder.captioning.captioner import Captioner, default_generation
from decoder.sharing import card
from decoder.sharing.options import ExportOptions
from evaluation.results import read
from evaluation.scores import load as load_scores
from features.commands import EXPORT, SCORE
from features.errors import UserError
from features.files import read_json
from pipeline.captions import CaptionTable
from pipeline.up_to_date import changed_inputs, recorded_options
from pipeline.work import RunFolder

FORMAT = 1


# Of the scores: all but those of each image.
_KEPT = ("images", "corpus", "intervals", "confidence", "diagnostics")


_JUDGED = ("scores", "confidence", "claims")


def damaged(run: RunFolder, error: Exception) -> UserError:
    """Return the error of a captioner whose captioner.json is not what export writes."""
    return UserError(
        f"{run.captioner} is not a captioner's ({error!r:.200}); copy the whole folder again "
        "from where it is from"
    )


def metadata(
    options: ExportOptions,
    run: RunFolder,
    captioner: Captioner,
    made: Path,
    table: CaptionTable | None,
) -> dict[str, Any]:
    """Return what captioner.json says."""
    before = _previous_record(run)
    features = captioner.config["features"]
    return {
        "format": FORMAT,
        "name": run.path.resolve().name,
        "weights": options.weights,
        "weights_sha256": hashlib.sha256(made.read_bytes()).hexdigest(),
        "parameters": sum(parameter.numel() for parameter in captioner.models[0].parameters()),
        "bits": 8 if options.int8 else 16,
        "reranks": options.rerank,
        "words": len(captioner.vocabulary),
        "data": _data(table) if before is None else before["data"],
        "features": features,
        "fingerprint": captioner.config["fingerprint"],
        **_evaluation_record(options, run, table, before),
    }


def _previous_record(run: RunFolder) -> dict[str, Any] | None:
    """Return what a captioner says of itself, None of a run.

    Raises:
        UserError: it is damaged, or of other weights.
    """
    file = run.captioner
    if not file.exists():
        return None
    content = read_json(file, EXPORT)
    try:
        # Version 0.2 did not say how much was trained on.
        known = {"data": content.get("data"), **{name: content[name] for name in _JUDGED}}
        if content["weights_sha256"] != hashlib.sha256(run.best.read_bytes()).hexdigest():
            raise ValueError(f"it belongs to other weights than {run.best.name}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(run, error) from error
    return known


def _data(table: CaptionTable | None) -> dict[str, Any] | None:
    """Return what was trained on, None if that is not known."""
    if table is None:
        return None
    train = table.split("train")
    count = sum(len(image.captions) for image in train)
    return {"dataset": table.dataset, "images": len(train), "captions": count}


def _evaluation_record(
    options: ExportOptions,
    run: RunFolder,
    table: CaptionTable | None,
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return scores, confidence and what captions claim; those of before if none are new."""
    if options.rerank != default_generation(run).rerank:
        print(
            "export: the card has no scores and captions no confidence, for with --rerank and "
            f"without, captions are others; with --out {run.path.parent}/NAME in the work "
            "directory, caption and score that as a run, then export it again"
        )
        return dict(zip(_JUDGED, ({}, None, {}), strict=True))
    scores = _scores(run, options.weights, expected=before is None)
    if not scores and before is not None:
        return {name: before[name] for name in _JUDGED}
    learnt, claims = None, {}
    if "val" in scores:
        file = _captions_file(run, "val", options.weights)
        learnt = _confidence(file, scores["val"]["per_image"]["CIDEr"])
        if table is not None:
            val = table.split("val")
            told = {image.id: [caption.text for caption in image.captions] for image in val}
            claims = card.claims(read(file), told)
    kept = {split: {name: record[name] for name in _KEPT} for split, record in scores.items()}
    return dict(zip(_JUDGED, (kept, learnt, claims), strict=True))


def _captions_file(run: RunFolder, split: str, weights: str) -> Path:
    return run.captions(split, "_xe" if weights == "best_xe" else "")


def _scores(run: RunFolder, weights: str, expected: bool) -> dict[str, Any]:
    """Return the scores of the run's captions of val and test that are up to date.

    Those are left out that were not written as the captioner will write. If they are `expected`,
    it is said that there are none.
    """
    usual = json.loads(json.dumps(asdict(default_generation(run))))
    found = {}
    for split in ("val", "test"):
        captions_file = _captions_file(run, split, weights)
        name = captions_file.stem.removeprefix("captions_")
        file = run.path / f"scores_{name}.json"
        if not file.exists():
            if split == "val" and expected:
                print(
                    f"export: {file} is not there, so the card has no scores of {split} and "
                    f"captions no confidence; python -m decoder.caption --run {run.path} --split "
                    f"{split} and {SCORE} make them"
                )
            continue
        stages = (f"caption-{name}", f"scores_{name}")
        if old := [path for stage in stages for path in changed_inputs(run.path, stage)]:
            print(
                f"export: {file} is left out, for it was made before {old[0]} changed; caption "
                "and score again"
            )
            continue
        recorded = recorded_options(run.path, stages[0])
        if recorded is not None and recorded.get("generate") != usual:
            print(
                f"export: {file} is left out, for its captions were written by other options than "
                "the captioner has; caption without any, and score again"
            )
            continue
        found[split] = _read_scores(file)
    return found


def _read_scores(file: Path) -> dict[str, Any]:
    scores = load_scores(file)
    ciders = {str(image): value for image, value in scores.cider.items()}
    return {**scores.summary(), "per_image": {"CIDEr": ciders}}


def _confidence(file: Path, ciders: Mapping[str, float | None]) -> dict[str, Any] | None:
    """Return what the validation captions teach about confidence, and how well it holds there."""
    entries = [
        (entry["mean_log_probability"], cider)
        for entry in read_json(file, "python -m decoder.caption")
        if isinstance(entry.get("mean_log_probability"), float)
        and (cider := ciders.get(str(entry["image_id"]))) is not None
    ]
    learnt = confidence.fit([x for x, _ in entries], [y for _, y in entries])
    if learnt is None:
        print(
            f"export: captions will have no confidence: {file} has {len(entries)} scored captions "
            f"with a log-probability, and {confidence.LEAST} are needed, good ones and others"
        )
        return None
    return {**asdict(learnt), "table": confidence.table(learnt, entries)}
