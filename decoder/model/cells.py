"""LSTM and GRU cells that read their inputs as ready-made shares of the gates.

Shape suffixes as in `decoder.model.decoders`.
"""

import torch
from torch import Tensor, nn

from decoder.model.operations import PLAIN, Operations
from decoder.model.recurrence import RecurrentLinear, zeros

State = tuple[Tensor, ...]


class LSTMCell(nn.Module):
    """LSTM whose inputs come as ready-made shares of the gates (Hochreiter & Schmidhuber 1997).

    With `maxout` the cell's input is the larger of two linear units instead of a tanh, as in Att2in
    (Rennie et al. 2017, section 3.2).
    """

    operations: Operations = PLAIN

    def __init__(self, hidden: int, maxout: bool = False) -> None:
        super().__init__()
        self.hidden = hidden
        self.maxout = maxout
        self.candidate_size = 2 * hidden if maxout else hidden
        self.gates_size = 3 * hidden + self.candidate_size
        self.recurrent = RecurrentLinear(hidden, self.gates_size)
        self.bias = nn.Parameter(torch.zeros(self.gates_size))
        nn.init.ones_(self.bias[hidden : 2 * hidden])  # remember, until taught to forget

    def start(self, rows: int) -> State:
        """Return the state of `rows` captions before any word."""
        zeros_BH = zeros(self.bias, rows, self.hidden)
        return (zeros_BH, zeros_BH)

    def forward(self, inputs_BG: Tensor, state: State) -> State:
        """Return the state after one more word, whose share of the gates is `inputs_BG`."""
        hidden_BH, cell_BH = state
        gates_BG = self.recurrent(hidden_BH, inputs_BG)
        return self.operations.lstm(gates_BG, self.bias, cell_BH, self.maxout)


class GRUCell(nn.Module):
    """GRU whose inputs come as ready-made shares of the gates (Cho et al. 2014).

    As in torch, the reset gate is applied after the recurrent product, not before it, so that one
    product serves all three gates. `maxout` is defined for the LSTM only and does nothing here.
    """

    operations: Operations = PLAIN

    def __init__(self, hidden: int, maxout: bool = False) -> None:
        super().__init__()
        self.hidden = self.candidate_size = hidden
        self.gates_size = 3 * hidden
        self.recurrent = RecurrentLinear(hidden, self.gates_size)
        self.bias = nn.Parameter(torch.zeros(self.gates_size))

    def start(self, rows: int) -> State:
        """Return the state of `rows` captions before any word."""
        return (zeros(self.bias, rows, self.hidden),)

    def forward(self, inputs_BG: Tensor, state: State) -> State:
        """Return the state after one more word, whose share of the gates is `inputs_BG`."""
        (hidden_BH,) = state
        recurrent_BG = self.recurrent(hidden_BH)
        return (self.operations.gru(inputs_BG, recurrent_BG, self.bias, hidden_BH),)


CELLS: dict[str, type[LSTMCell] | type[GRUCell]] = {"lstm": LSTMCell, "gru": GRUCell}
