"""Options of decoder.export; the docstrings of the fields are their help texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from features.errors import require


@dataclass(frozen=True)
class ExportOptions:
    """Make a captioner of a trained run: a folder that stands alone, with a model card."""

    run: Path
    """The run's folder, WORK/runs/NAME, captioned and scored for the card to have scores."""
    out: Path
    """The folder to write; a captioner that is there already is replaced."""
    weights: Literal["best", "best_xe"] = "best"
    """The weights with the best validation CIDEr of all, or of the cross-entropy phase."""
    no_frequencies: bool = False
    """Leave out what --consensus needs to know of the training captions, 12 bytes an n-gram."""
    int8: bool = False
    """Write the decoder's matrices in 8 bits, at half the size."""
    rerank: bool = False
    """Put in what --rerank needs, 5 MB: a regression of what people wrote on the training pictures,
    of which none is in it. The run must be in its work directory, or such a captioner."""
    search: bool = False
    """Put in what decoder.search learnt, 3 MB, so that the captioner can search work directories
    that have no captions to learn from."""
    onnx: bool = False
    """Write the CNN and the decoder as ONNX too, in float32, with a README that shows the loop."""

    def __post_init__(self) -> None:
        require(
            not (self.rerank and self.no_frequencies),
            "--rerank needs what --no-frequencies leaves out; give one",
        )
