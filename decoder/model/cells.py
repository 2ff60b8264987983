"""LSTM and GRU cells.

A cell does not multiply its inputs by weights. The decoder does, for all steps at once where it
can, and passes the sum to the cell (`inputs_BG`), which adds the recurrent product and the bias.

Shape suffixes as in `decoder.model.decoders`.
"""

import torch
from torch import Tensor, nn

from decoder.model.operations import HAND_MADE, Operations
from decoder.model.recurrence import RecurrentLinear, zero_state

State = tuple[Tensor, ...]


class LSTMCell(nn.Module):
    """LSTM cell (Hochreiter & Schmidhuber 1997; the forget gate is Gers et al. 2000).

    With `maxout` the candidate is the larger of two linear units instead of a tanh, as in Att2in
    (Rennie et al. 2017, section 3.2).
    """

    operations: Operations = HAND_MADE

    def __init__(self, hidden: int, maxout: bool = False) -> None:
        super().__init__()
        self.hidden = hidden
        self.maxout = maxout
        self.candidate_size = 2 * hidden if maxout else hidden
        self.gates_size = 3 * hidden + self.candidate_size
        self.recurrent = RecurrentLinear(hidden, self.gates_size)
        self.bias = nn.Parameter(torch.empty(self.gates_size))

    def init_weights(self) -> None:
        """Draw the weights; the forget gate's bias is 1 (Jozefowicz et al. 2015)."""
        self.recurrent.init_weights()
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.bias[self.hidden : 2 * self.hidden])

    def initial_state(self, rows: int) -> State:
        """Return the state of `rows` captions before any word, all zero."""
        zeros_BH = zero_state(self.bias, rows, self.hidden)
        return (zeros_BH, zeros_BH)

    def forward(self, inputs_BG: Tensor, state: State) -> State:
        """Return the hidden state and the cell after one more step."""
        hidden_BH, cell_BH = state
        gates_BG = self.recurrent(hidden_BH, inputs_BG)
        return self.operations.lstm(gates_BG, self.bias, cell_BH, self.maxout)


class GRUCell(nn.Module):
    """GRU cell (Cho et al. 2014).

    As in torch, the reset gate is applied after the recurrent product, not before it, so that one
    product serves all three gates. `maxout` is defined for the LSTM only and ignored here.
    """

    operations: Operations = HAND_MADE

    def __init__(self, hidden: int, maxout: bool = False) -> None:
        super().__init__()
        self.hidden = self.candidate_size = hidden
        self.gates_size = 3 * hidden
        self.recurrent = RecurrentLinear(hidden, self.gates_size)
        self.bias = nn.Parameter(torch.empty(self.gates_size))

    def init_weights(self) -> None:
        """Draw the weights."""
        self.recurrent.init_weights()
        nn.init.zeros_(self.bias)

    def initial_state(self, rows: int) -> State:
        """Return the state of `rows` captions before any word, all zero."""
        return (zero_state(self.bias, rows, self.hidden),)

    def forward(self, inputs_BG: Tensor, state: State) -> State:
        """Return the state after one more step."""
        (hidden_BH,) = state
        recurrent_BG = self.recurrent(hidden_BH)
        return (self.operations.gru(inputs_BG, recurrent_BG, self.bias, hidden_BH),)


CELLS: dict[str, type[LSTMCell] | type[GRUCell]] = {"lstm": LSTMCell, "gru": GRUCell}
