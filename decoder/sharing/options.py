"""Options of decoder.export; the docstrings of the fields are their help texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from features.errors import require


@dataclass(frozen=True)
class ExportOptions:
    """Export a trained run as a captioner: a folder that works on its own, with its scores."""

    EXAMPLES: ClassVar[dict[str, str]] = {
        "Export a run as a captioner with a model card": "--run work/runs/first --out captioner",
        "With 8-bit weights and the reranker": (
            "--run work/runs/first --out captioner --int8 --rerank"
        ),
        "For other runtimes": "--run work/runs/first --out captioner --onnx",
    }
    ONCE: ClassVar[tuple[str, ...]] = ("--run", "--out")
    EVERYDAY: ClassVar[tuple[str, ...]] = ("run", "out", "int8", "rerank", "search", "onnx")

    run: Path
    """The run's folder, WORK/runs/NAME."""
    out: Path
    """The folder to write; an exported captioner in it is replaced, other files in it are kept."""
    weights: Literal["best", "best_xe"] = "best"
    """The best weights of all, or those before REINFORCE."""
    no_frequencies: bool = False
    """Leave out the n-gram counts of the training captions that --consensus needs."""
    int8: bool = False
    """Store the decoder's matrices in 8 bits instead of 16, which halves their size."""
    rerank: bool = False
    """Include what --rerank needs (5 MB): a regression that predicts caption n-grams from a
    picture, without the training pictures."""
    search: bool = False
    """Include the joint embedding of pictures and captions (4 MB), which searches folders of
    pictures and work directories without captions."""
    onnx: bool = False
    """Also write the CNN and the decoder as ONNX in float32, with examples for Python and
    JavaScript."""
    no_scores: bool = False
    """Do not caption and score the validation split if the run has no scores that hold for the
    captioner, which then has no confidence."""
    device: str = "auto"
    """Where the validation split is captioned: cpu or cuda; auto uses a GPU if there is one."""

    def __post_init__(self) -> None:
        require(
            not (self.rerank and self.no_frequencies),
            "--rerank needs what --no-frequencies leaves out; give only one of them",
        )
