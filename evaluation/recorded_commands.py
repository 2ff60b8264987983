"""The commands that repeat a run, from the options that each stage recorded."""

import shlex
from pathlib import Path
from typing import Any

from features.commands import CAPTION, EXTRACT, PREPARE, SCORE, TRAIN
from pipeline.up_to_date import recorded_options
from pipeline.work import RunFolder

# Groups of options whose name is not part of the command line.
_WITHOUT_PREFIX = ("decoder", "generate")
# What stands for the paths in options, unless they are known to be in the work directory.
_PLACES = {"work": "WORK", "root": "DIR", "init": "DIR", "captions": "FILE", "out": "FILE"}


def recorded_commands(run: RunFolder, split: str, training: dict[str, Any]) -> list[str]:
    """Return the commands that repeat a run and its captions of `split`, in order.

    They spell out every option, so that they do not depend on a later version's defaults. A stage
    without a record is left out. WORK, DIR and FILE stand for paths of the user's machine.

    Args:
        run: the folder of the run.
        split: the split that was captioned and scored.
        training: the options of the training, from config.json.
    """
    name = run.path.resolve().name
    folder = f"WORK/runs/{name}"
    files = {
        "captions": f"WORK/{run.work.captions.name}",
        "results": f"{folder}/{run.captions(split).name}",
    }
    caption = _options(run.path, f"caption-{split}")
    runs = caption.get("run")
    others = [Path(str(one)).name for one in runs if one != "."] if isinstance(runs, list) else []
    ensemble = [folder, *(f"WORK/runs/{other}" for other in others)]
    work = run.work.path
    recorded: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (PREPARE, *_preparation(work)),
        (EXTRACT, *_extraction(work)),
        (TRAIN, training, {"work": "WORK", "run": name}),
        (CAPTION, caption, {"run": ensemble}),
        (SCORE, _options(run.path, run.scores(split).stem), files),
    ]
    return [_command(stage, options, paths) for stage, options, paths in recorded if options]


def _options(folder: Path, stage: str) -> dict[str, Any]:
    return recorded_options(folder, stage) or {}


def _preparation(work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the recorded options of the preparation, and what stands for its paths."""
    options = _options(work, "prepare")
    return options, {"work": "WORK", "also": [_placed(text) for text in options.get("also") or ()]}


def _placed(also: str) -> str:
    """Return the options of a further data set without its paths."""
    places = {f"--{name}": place for name, place in _PLACES.items()}
    tokens, placed = shlex.split(also), []
    for before, token in zip(["", *tokens], tokens, strict=False):
        name, equals, _ = token.partition("=")
        if before in places:
            placed.append(places[before])
        elif equals and name in places:
            placed.append(f"{name}={places[name]}")
        else:
            placed.append(token)
    return shlex.join(placed)


def _extraction(work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the recorded options of the extraction, and what stands for its paths."""
    options = _options(work, "extract")
    paths: dict[str, Any] = {"work": "WORK"}
    if weights := options.get("weights"):
        paths["weights"] = ["FILE"] * len(weights)
    if options.get("from_"):
        paths["from_"] = "FILES"
    return options, paths


def _command(stage: str, options: dict[str, Any], paths: dict[str, Any]) -> str:
    # A data set that needs no root has none recorded, and the included captioner has no path.
    given = {k: v for k, v in _PLACES.items() if options.get(k) not in (None, "packaged")}
    placed = {**given, **paths}
    return " ".join([stage, *_arguments({**placed, **options, **placed})])


def _arguments(options: dict[str, Any], prefix: str = "") -> list[str]:
    arguments = []
    for name, value in options.items():
        option = f"--{prefix}{name.rstrip('_').replace('_', '-')}"  # from_ is --from
        if isinstance(value, dict):
            arguments += _arguments(value, "" if name in _WITHOUT_PREFIX else f"{prefix}{name}.")
        elif value is True:
            arguments.append(option)
        elif value is not None and value is not False and value not in ([], ""):
            for one in value if isinstance(value, list) else [value]:
                arguments += [option, shlex.quote(str(one))]
    return arguments
