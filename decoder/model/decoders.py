"""The decoders: Show and Tell, Att2in and Up-Down, each with LSTM or GRU cells.

Everything that does not depend on the state is computed outside the time loop: the image's share
once per image (`encode`), the words' share of the gates for all steps in one product.

Shape suffixes:
    I images, B captions (rows of the recurrent state), P words of all captions packed step by step,
    R regions, C channels of a region, H hidden size, A attention size, G gates of a cell,
    V words that can be written (the vocabulary from EOS on).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoder.data.batches import Features, PackedWords
from decoder.model.attention import Rows, keys_of, regions_of
from decoder.model.cells import CELLS, GRUCell, LSTMCell, State
from decoder.model.operations import PLAIN, Operations
from decoder.model.recurrence import RecurrentLinear, Shared, WordTable
from features.errors import require
from pipeline.vocabulary import EOS


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
        require(0 <= self.dropout < 1, f"--dropout must be in [0, 1), found {self.dropout}")


class Memory(NamedTuple):
    """What the decoder keeps of each image while it writes; every tensor has the images first."""

    images: int
    """I."""
    gates_IG: Tensor
    """The pooled feature's share of the first cell's gates; no gates if the model has none."""
    regions_IRH: Shared
    """The embedded grid; no regions if the model does not attend."""
    keys_IRA: Shared
    """The grid as the attention compares it with the state; no regions likewise."""

    def select(self, index: Tensor) -> "Memory":
        """Return the memory of the images at `index` (int64 or a mask), in that order."""
        gates_IG = self.gates_IG[index]
        regions, keys = (Shared(part.tensor[index]) for part in (self.regions_IRH, self.keys_IRA))
        return Memory(len(gates_IG), gates_IG, regions, keys)

    @staticmethod
    def joined(parts: Sequence["Memory"]) -> "Memory":
        """Return the memory of the images of all `parts`, one after the other."""
        gates_IG = torch.cat([part.gates_IG for part in parts])
        regions = Shared(torch.cat([part.regions_IRH.tensor for part in parts]))
        keys = Shared(torch.cat([part.keys_IRA.tensor for part in parts]))
        return Memory(len(gates_IG), gates_IG, regions, keys)

    def rows(self, count: int) -> Rows:
        """Return whose each of `count` captions is, if those of an image stand together."""
        return Rows.together(self.images, count, self.gates_IG.device)


class Decoder(nn.Module, ABC):
    """What the three models share; each adds its cells and its `step`.

    Args:
        options: the sizes.
        words: size of the vocabulary, special words included.
        channels: of the stored features.
    """

    reads_pooled = True
    attends = True
    maxout = False
    operations: Operations = PLAIN
    first_cell: LSTMCell | GRUCell

    def __init__(self, options: ModelOptions, words: int, channels: int) -> None:
        super().__init__()
        self.hidden = hidden = options.hidden
        attention = options.attention
        self.word_embedding = nn.Embedding(words, hidden)
        self.first_cell = CELLS[options.cell](hidden, self.maxout)
        self.word_gates = nn.Linear(hidden, self.first_cell.gates_size, bias=False)
        if self.reads_pooled:
            self.pooled_embedding = nn.Linear(channels, hidden)
            self.image_gates = nn.Linear(hidden, self.first_cell.gates_size, bias=False)
        if self.attends:
            self.region_embedding = nn.Linear(channels, hidden)
            self.attention_key = nn.Linear(hidden, attention)
            self.attention_query = RecurrentLinear(hidden, attention)
            self.attention_score = nn.Parameter(torch.empty(attention))
            nn.init.uniform_(self.attention_score, -(attention**-0.5), attention**-0.5)
        self.dropout = nn.Dropout(options.dropout)
        # Only words from EOS on have an output, so none of the three before can be generated.
        self.output = nn.Linear(hidden, words - EOS)
        nn.init.normal_(self.word_embedding.weight, std=0.1)
        self._word_table = WordTable(self.word_embedding, self.word_gates)

    def train(self, mode: bool = True) -> Self:
        """Enter training or evaluation mode, as whoever changes the weights does."""
        self._word_table.forget()
        return super().train(mode)

    def use(self, operations: Operations) -> None:
        """Take the steps by these operations from now on."""
        for module in self.modules():
            if isinstance(module, (Decoder, LSTMCell, GRUCell)):
                module.operations = operations

    @abstractmethod
    def before(self, memory: Memory, image_B: Tensor) -> State:
        """Return the state of captions of the images `image_B` before their first word."""

    @abstractmethod
    def step(
        self, gates_BG: Tensor, memory: Memory, rows: Rows, state: State
    ) -> tuple[State, Tensor]:
        """Read one word of each caption.

        Args:
            gates_BG: what `gates_of` returns for the words.
            memory: of I images.
            rows: which captions are those of which image.
            state: what `start` or the last step returned.

        Returns:
            The new state, whose first tensor is the output [B, H], and the attention [B, R] (of no
            regions if the model does not attend).
        """

    def encode(self, features: Features) -> Memory:
        """Compute what does not depend on the words, once for each image."""
        gates_IG = features.pooled_IC[:, :0]
        regions_IRH = keys_IRA = features.grid_IRC[:, :0]
        if self.reads_pooled:
            pooled_IH = self.dropout(self.pooled_embedding(features.pooled_IC).relu())
            gates_IG = self.image_gates(pooled_IH)
        if self.attends:
            regions_IRH = self.dropout(self.region_embedding(features.grid_IRC).relu())
            keys_IRA = self.attention_key(regions_IRH)
        return Memory(len(gates_IG), gates_IG, regions_of(regions_IRH), keys_of(keys_IRA))

    def start(self, memory: Memory, rows: int) -> State:
        """Return the state of `rows` captions, those of an image together, before any word."""
        return self.before(memory, memory.rows(rows).image_B)

    def attend(self, state_BH: Tensor, memory: Memory, rows: Rows) -> tuple[Tensor, Tensor]:
        """Average the regions, weighted by how well each fits the state.

        Returns:
            The attended feature [B, H] and the weights [B, R], which sum to 1.
        """
        query_BA = self.attention_query(state_BH)
        keys, regions, score_A = memory.keys_IRA, memory.regions_IRH, self.attention_score
        return self.operations.attend(query_BA, keys, regions, score_A, rows)

    def gates_of(self, words: Tensor, memory: Memory, image: Tensor) -> Tensor:
        """Return the share in the first cell's gates, [n, G], of all that is known before the loop.

        Args:
            words: int64 [n].
            memory: of the images.
            image: int64 [n], the image of each word's caption.
        """
        # A GPU would have to tell which words are new, and computes them all in less time.
        if not self.training and words.device.type == "cpu" and self._word_table.suits:
            return self._word_table(words)
        return self.word_gates(self.dropout(self.word_embedding(words)))

    def forward(self, memory: Memory, words: PackedWords) -> Tensor:
        """Teacher forcing: read every caption, return the logits of each next word, [P, V]."""
        outputs = [state[0] for state, _ in self.read(memory, words)]
        logits_PV = self.output(self.dropout(torch.cat(outputs)))
        return logits_PV.float() if logits_PV.dtype == torch.bfloat16 else logits_PV

    def read(self, memory: Memory, words: PackedWords) -> Iterator[tuple[State, Tensor]]:
        """Yield `step`'s results while reading the captions, shorter ones dropping out."""
        gates_PG = self.gates_of(words.inputs_P, memory, words.image_P)
        with self.recorded():
            state = self.before(memory, words.image_B)
            for gates_BG in gates_PG.split(words.alive):
                alive = len(gates_BG)
                state = tuple(tensor[:alive] for tensor in state)
                rows = Rows.of(words.image_B[:alive], memory.images)
                state, weights_BR = self.step(gates_BG, memory, rows, state)
                yield state, weights_BR

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Take steps whose gradients are summed up before they reach the weights."""
        parts: list[RecurrentLinear | WordTable] = [self._word_table]
        parts += [module for module in self.modules() if isinstance(module, RecurrentLinear)]
        for part in parts:
            part.begin()
        try:
            yield
        finally:
            for part in parts:
                part.end()

    def next_word(self, words_B: Tensor, memory: Memory, state: State) -> tuple[Tensor, State]:
        """Read one more word of each caption; return the logits of the next one [B, V]."""
        rows = memory.rows(len(words_B))
        gates_BG = self.gates_of(words_B, memory, rows.image_B)
        state, _ = self.step(gates_BG, memory, rows, state)
        return self.output(self.dropout(state[0])), state


class ShowTell(Decoder):
    """The image is the first word that one cell reads (Vinyals et al. 2015, equations 10-12).

    It enters the cell by weights of its own rather than those of the words.
    """

    attends = False

    def before(self, memory: Memory, image_B: Tensor) -> State:
        blank = self.first_cell.start(memory.images)
        return tuple(F.embedding(image_B, t) for t in self.first_cell(memory.gates_IG, blank))

    def step(
        self, gates_BG: Tensor, memory: Memory, rows: Rows, state: State
    ) -> tuple[State, Tensor]:
        return self.first_cell(gates_BG, state), gates_BG[:, :0]


class Att2in(Decoder):
    """The attended feature enters the cell's input only (Rennie et al. 2017, section 3.2)."""

    reads_pooled = False
    maxout = True

    def __init__(self, options: ModelOptions, words: int, channels: int) -> None:
        super().__init__(options, words, channels)
        self.attended_candidate = RecurrentLinear(options.hidden, self.first_cell.candidate_size)

    def before(self, memory: Memory, image_B: Tensor) -> State:
        return self.first_cell.start(len(image_B))

    def step(
        self, gates_BG: Tensor, memory: Memory, rows: Rows, state: State
    ) -> tuple[State, Tensor]:
        attended_BH, weights_BR = self.attend(state[0], memory, rows)
        candidate = self.attended_candidate(attended_BH)
        untouched = gates_BG.shape[1] - candidate.shape[1]
        return self.first_cell(gates_BG + F.pad(candidate, (untouched, 0)), state), weights_BR


class UpDown(Decoder):
    """One cell attends, a second one writes (Anderson et al. 2018, section 3.2)."""

    second_cell: LSTMCell | GRUCell

    def __init__(self, options: ModelOptions, words: int, channels: int) -> None:
        super().__init__(options, words, channels)
        self.second_cell = CELLS[options.cell](options.hidden)
        self.written_gates = RecurrentLinear(options.hidden, self.first_cell.gates_size)
        self.attended_gates = RecurrentLinear(2 * options.hidden, self.second_cell.gates_size)

    def before(self, memory: Memory, image_B: Tensor) -> State:
        return self.second_cell.start(len(image_B)) + self.first_cell.start(len(image_B))

    def gates_of(self, words: Tensor, memory: Memory, image: Tensor) -> Tensor:
        return super().gates_of(words, memory, image) + F.embedding(image, memory.gates_IG)

    def step(
        self, gates_BG: Tensor, memory: Memory, rows: Rows, state: State
    ) -> tuple[State, Tensor]:
        second, first = state[: len(state) // 2], state[len(state) // 2 :]
        first = self.first_cell(self.written_gates(second[0], gates_BG), first)
        attended_BH, weights_BR = self.attend(first[0], memory, rows)
        gates_BG = self.attended_gates(torch.cat((attended_BH, first[0]), dim=1))
        return self.second_cell(gates_BG, second) + first, weights_BR


MODELS: dict[str, Callable[[ModelOptions, int, int], Decoder]] = {
    "show_tell": ShowTell,
    "att2in": Att2in,
    "updown": UpDown,
}


def build(options: ModelOptions, words: int, channels: int) -> Decoder:
    """Return a decoder with fresh weights (see `Decoder` for the arguments)."""
    return MODELS[options.model](options, words, channels)
