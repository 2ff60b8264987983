"""The content of captioner.json: the scores, confidence, data and features of a captioner."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from decoder.captioning.captioner import Captioner, default_generation
from decoder.sharing import calibration
from decoder.sharing.claims import count_claims
from evaluation.results import read
from evaluation.scores import Scores
from evaluation.scores import load as load_scores
from features.commands import CAPTION, EXPORT
from features.errors import UserError
from features.files import read_json
from pipeline.captions import CaptionTable
from pipeline.training_data import training_data
from pipeline.up_to_date import changed_inputs, recorded_options
from pipeline.work import RunFolder

FORMAT = 1
# What is kept of a scores file: everything except the scores of each image. Only scores of
# several data sets have "sources".
_SCORE_FIELDS = ("images", "corpus", "intervals", "confidence", "diagnostics", "sources")
# What is measured on scored captions. An export without new scores keeps it.
_EVALUATION_FIELDS = ("scores", "confidence", "claims")


def damaged(run: RunFolder, error: Exception) -> UserError:
    """Return the error for a captioner.json whose content is not what decoder.export writes."""
    return UserError(
        f"{run.captioner} is not what decoder.export writes ({error!r:.200}); copy the whole "
        "original folder again"
    )


def metadata(
    run: RunFolder,
    captioner: Captioner,
    table: CaptionTable | None,
    weights_file: Path,
    weights: str,
    int8: bool,
    rerank: bool,
) -> dict[str, Any]:
    """Return the content of captioner.json, with the scores that the run already has.

    Args:
        run: the run or captioner that is exported.
        captioner: loaded from it.
        table: the captions of its work directory, None if they are missing.
        weights_file: the weights as they were exported.
        weights: which of the run's weights these are, "best" or "best_xe".
        int8: whether they have 8 bits.
        rerank: whether the reranker is exported, too.

    Raises:
        UserError: the captioner.json of an exported captioner is damaged, or belongs to other
            weights; or a scores file is damaged.
    """
    previous = _previous_record(run)
    return {
        "format": FORMAT,
        "name": run.path.resolve().name,
        "weights": weights,
        "weights_sha256": hashlib.sha256(weights_file.read_bytes()).hexdigest(),
        "parameters": sum(parameter.numel() for parameter in captioner.models[0].parameters()),
        "bits": 8 if int8 else 16,
        "reranks": rerank,
        "words": len(captioner.vocabulary),
        "data": _data(captioner.config, table) if previous is None else previous["data"],
        "features": captioner.config["features"],
        "fingerprint": captioner.config["fingerprint"],
        **_known_evaluation(run, table, weights, rerank, previous),
    }


def _previous_record(run: RunFolder) -> dict[str, Any] | None:
    """Return the data and evaluation in the captioner.json of a captioner, None for a run.

    Raises:
        UserError: the file is damaged, or belongs to other weights.
    """
    if not run.captioner.exists():
        return None
    content = read_json(run.captioner, EXPORT)
    try:
        # Version 0.2 did not record the data.
        record = {
            "data": content.get("data"),
            **{name: content[name] for name in _EVALUATION_FIELDS},
        }
        if not isinstance(record["scores"], dict):
            raise ValueError("its scores are no object")
        if content["weights_sha256"] != hashlib.sha256(run.best.read_bytes()).hexdigest():
            raise ValueError(f"it belongs to other weights than {run.best.name}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(run, error) from error
    return record


def _data(config: Mapping[str, Any], table: CaptionTable | None) -> dict[str, Any] | None:
    """Return the data that a run was trained on; runs before version 0.3 did not record it."""
    if "data" in config:
        return dict(config["data"])
    return None if table is None else training_data(table)


def _known_evaluation(
    run: RunFolder,
    table: CaptionTable | None,
    weights: str,
    rerank: bool,
    previous: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the run's scores, confidence and claims, or those of `previous`; or empty ones.

    Reranking changes the captions, so scores without it do not hold with it.
    """
    if rerank != default_generation(run).rerank:
        return evaluation({}, None, table)
    scores = _scores(run, weights)
    if not scores and previous is not None:
        return {name: previous[name] for name in _EVALUATION_FIELDS}
    return evaluation(scores, run.captions("val", _suffix(weights)), table)


def evaluation(
    scores: Mapping[str, Scores], captions: Path | None, table: CaptionTable | None
) -> dict[str, Any]:
    """Return the entries of captioner.json that are measured: scores, confidence and claims.

    Args:
        scores: by split.
        captions: the scored captions of val, needed if there are scores of val.
        table: the captions of the work directory, None if they are missing.
    """
    calibrated, claims = None, {}
    if "val" in scores and captions is not None:
        ciders = {str(image): cider for image, cider in scores["val"].cider.items()}
        calibrated = _confidence(captions, ciders, table)
        if table is not None:
            references = {i.id: [c.text for c in i.captions] for i in table.split("val")}
            claims = count_claims(read(captions), references)
    kept = {
        split: {name: value for name, value in of.summary().items() if name in _SCORE_FIELDS}
        for split, of in scores.items()
    }
    return dict(zip(_EVALUATION_FIELDS, (kept, calibrated, claims), strict=True))


def _suffix(weights: str) -> str:
    """Return the suffix of files with captions by these weights."""
    return "_xe" if weights == "best_xe" else ""


def _scores(run: RunFolder, weights: str) -> dict[str, Scores]:
    """Return the current scores of the run's val and test captions.

    Scores are left out, with a message, if their captions changed since, or were not written with
    the options that the captioner will use by default.
    """
    default = json.loads(json.dumps(asdict(default_generation(run))))
    scores = {}
    for split in ("val", "test"):
        file = run.scores(split, _suffix(weights))
        if not file.exists():
            continue
        caption_stage = f"caption-{file.stem.removeprefix('scores_')}"
        stages = (caption_stage, file.stem)
        if changed := [path for stage in stages for path in changed_inputs(run.path, stage)]:
            print(f"export: left out {file}, because {changed[0]} changed since")
            continue
        recorded = recorded_options(run.path, caption_stage)
        if recorded is not None and not _are_its_own(recorded, weights, default):
            print(
                f"export: left out {file}, because its captions were written by other runs or "
                "weights, of other pictures, or with options that the captioner does not use by "
                "default"
            )
            continue
        scores[split] = load_scores(file)
    return scores


def _are_its_own(recorded: Mapping[str, Any], weights: str, default: Any) -> bool:
    """Whether captions with these recorded options are those of the captioner."""
    return (
        recorded.get("generate") == default
        and recorded.get("weights", weights) == weights
        and (recorded.get("run") or ["."]) == ["."]  # itself
        and recorded.get("work") is None
    )


def _confidence(
    file: Path, ciders: Mapping[str, float], table: CaptionTable | None
) -> dict[str, Any] | None:
    """Calibrate the confidence on validation captions, and return it with how well it fits them.

    Returns None, with a message, if there are too few captions.
    """
    source_of = {} if table is None else {image.id: image.source for image in table.split("val")}
    signals, scored, sources = [], [], []
    for entry in read_json(file, CAPTION):
        cider = ciders.get(str(entry["image_id"]))
        mean = entry.get("mean_log_probability")
        if cider is not None and isinstance(mean, float):
            signals.append({"log_probability": mean, **entry.get("signals", {})})
            scored.append(cider)
            sources.append(source_of.get(entry["image_id"]) or "")
    fitted = calibration.fit(signals, scored, sources)
    if fitted is None:
        print(
            "export: captions will have no confidence: expected at least "
            f"{calibration.LEAST} scored captions with a log-probability, good ones and others, "
            f"found {len(signals)} in {file}"
        )
        return None
    return {**asdict(fitted), "checks": calibration.check(signals, scored, sources)}
