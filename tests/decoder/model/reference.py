"""Up-Down written plainly: concatenated inputs, a padded batch, torch's own LSTMCell.

It shares no code with `decoder.model.decoders`; the tests compare the two, word by word.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoder.model.decoders import UpDown
from pipeline.vocabulary import BOS, EOS, PAD, UNK


def lstm_cell(gates: int, weights: list[Tensor], bias: Tensor, recurrent: Tensor) -> nn.LSTMCell:
    """Return torch's cell with the weights of ours; our gates are in the order i, f, o, g."""
    hidden = gates // 4
    order = torch.cat([torch.arange(hidden) + hidden * gate for gate in (0, 1, 3, 2)])
    joined = torch.cat(weights, dim=1)
    cell = nn.LSTMCell(joined.shape[1], hidden, dtype=joined.dtype)
    with torch.no_grad():
        cell.weight_ih.copy_(joined[order])
        cell.weight_hh.copy_(recurrent[order])
        cell.bias_ih.copy_(bias[order])
        cell.bias_hh.zero_()
    return cell


class PlainUpDown(nn.Module):
    """The reference, with copies of the weights of an `UpDown` with LSTM cells."""

    def __init__(self, model: UpDown) -> None:
        super().__init__()
        self.model = model
        first, second = model.first_cell, model.second_cell
        inputs = [model.written_gates.weight, model.image_gates.weight, model.word_gates.weight]
        gates = first.gates_size
        self.first = lstm_cell(gates, inputs, first.bias, first.recurrent.weight)
        attended = [model.attended_gates.weight]
        self.second = lstm_cell(gates, attended, second.bias, second.recurrent.weight)

    def forward(self, grid: Tensor, pooled: Tensor, tokens: Tensor, image: Tensor) -> Tensor:
        """Return the mean cross-entropy over real, known words of a padded batch."""
        model = self.model
        regions = model.region_embedding(grid).relu()[image]
        keys = model.attention_key(regions)
        mean = model.pooled_embedding(pooled).relu()[image]
        state1 = state2 = (mean.new_zeros(mean.shape), mean.new_zeros(mean.shape))
        words = torch.full_like(tokens[:, 0], BOS)
        total, count = mean.new_zeros(()), 0
        for t in range(tokens.shape[1]):
            embedded = model.word_embedding(words)
            state1 = self.first(torch.cat((state2[0], mean, embedded), 1), state1)
            query = F.linear(state1[0], model.attention_query.weight)
            compared = torch.tanh(keys + query[:, None]) @ model.attention_score
            attended = (compared.softmax(1)[:, :, None] * regions).sum(1)
            state2 = self.second(torch.cat((attended, state1[0]), 1), state2)
            log_probability = model.output(state2[0]).log_softmax(1)
            target = tokens[:, t]
            counts = (target != PAD) & (target != UNK)
            if counts.any():
                chosen = log_probability[counts].gather(1, target[counts][:, None] - EOS)
                total = total - chosen.sum()
                count += int(counts.sum())
            words = target
        return total / count
