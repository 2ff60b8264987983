"""The commands that made a run, as the stages recorded them."""

import json
import shlex
from pathlib import Path
from typing import Any

# Groups of options whose names are no part of the command line.
_WITHOUT_PREFIX = ("decoder", "generate")


def commands(folder: Path, split: str, options: dict[str, Any]) -> list[str]:
    """Return the commands that repeat the run in `folder` and its captions of `split`, in order.

    Every option is in them, so that a later version's defaults change nothing. A stage that left no
    record is left out. WORK, DIR and FILE stand for paths, which are another machine's business.

    Args:
        folder: the run's.
        split: whose captions are scored.
        options: of the training, from config.json.
    """
    name = folder.resolve().name
    run = f"WORK/runs/{name}"
    written = {"captions": "WORK/captions.json", "results": f"{run}/captions_{split}.json"}
    work, files = folder.parent.parent / ".done", folder / ".done"
    written = {"captions": "WORK/captions.json", "results": f"{run}/captions_{split}.json"}
    caption = _options(files / f"caption-{split}.json")
    runs = caption.get("run")
    others = [Path(str(one)).name for one in runs if one != "."] if isinstance(runs, list) else []
    together = [run, *(f"WORK/runs/{other}" for other in others)]  # an ensemble
    recorded: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("pipeline.prepare", _options(work / "prepare.json"), {"work": "WORK", "root": "DIR"}),
        ("pipeline.extract", _options(work / "extract.json"), {"work": "WORK"}),
        ("decoder.train", options, {"work": "WORK", "run": name}),
        ("decoder.caption", caption, {"run": together}),
        ("evaluation.score", _options(files / f"scores_{split}.json"), written),
    ]
    return [_command(stage, given, paths) for stage, given, paths in recorded if given]


def _options(stamp: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(stamp.read_text(encoding="utf-8"))["options"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}  # no record, or none that can be trusted


def _command(stage: str, options: dict[str, Any], paths: dict[str, Any]) -> str:
    # A data set that needs no root has none recorded.
    placed = {k: v for k, v in paths.items() if k not in options or options[k] is not None}
    placed |= {k: "FILE" for k in ("captions", "out") if options.get(k) and k not in paths}
    return " ".join(["python", "-m", stage, *_arguments({**placed, **options, **placed})])


def _arguments(options: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in options.items():
        option = f"--{prefix}{name.replace('_', '-')}"
        if isinstance(value, dict):
            found += _arguments(value, "" if name in _WITHOUT_PREFIX else f"{prefix}{name}.")
        elif value is True:
            found.append(option)
        elif value is not None and value is not False and value not in ([], ""):
            for one in value if isinstance(value, list) else [value]:
                found += [option, shlex.quote(str(one))]
    return found
