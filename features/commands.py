"""How each command is called, for messages that say what to run."""

import sys
from pathlib import PurePath

# The console script of each command.
SCRIPTS = {
    "pipeline.prepare": "caption-prepare",
    "pipeline.extract": "caption-extract",
    "pipeline.doctor": "caption-doctor",
    "decoder.train": "caption-train",
    "decoder.caption": "caption",
    "decoder.search": "caption-search",
    "decoder.demo": "caption-demo",
    "decoder.export": "caption-export",
    "evaluation.score": "caption-score",
    "evaluation.retrieve": "caption-retrieve",
    "evaluation.report": "caption-report",
}


def called(module: str) -> str:
    """Return how the user would call a command: by its script if a script is running."""
    name = PurePath(*sys.argv[:1]).name
    return SCRIPTS[module] if name in SCRIPTS.values() else f"python -m {module}"


PREPARE = called("pipeline.prepare")
EXTRACT = called("pipeline.extract")
DOCTOR = called("pipeline.doctor")
TRAIN = called("decoder.train")
CAPTION = called("decoder.caption")
SEARCH = called("decoder.search")
DEMO = called("decoder.demo")
EXPORT = called("decoder.export")
SCORE = called("evaluation.score")
RETRIEVE = called("evaluation.retrieve")
REPORT = called("evaluation.report")
