"""Options of the decoder's architecture; the docstrings of the fields are their help texts."""

from dataclasses import dataclass
from typing import Literal

from features.errors import require


@dataclass(frozen=True)
class ModelOptions:
    """Architecture of the decoder."""

    model: Literal["show_tell", "att2in", "updown"] = "updown"
    """Show and Tell reads the pooled feature; Att2in and Up-Down attend to the grid."""
    cell: Literal["lstm", "gru"] = "lstm"
    """The recurrent cell."""
    hidden: int = 256
    """Size of the recurrent state, the word vectors and the embedded image features."""
    attention: int = 64
    """Size of the space in which attention compares a region with the state."""
    dropout: float = 0.2
    """Dropout of word vectors, embedded image features and outputs."""

    def __post_init__(self) -> None:
        require(min(self.hidden, self.attention) > 0, "--hidden and --attention must be positive")
        require(0 <= self.dropout < 1, f"--dropout must be from 0 to below 1, found {self.dropout}")
