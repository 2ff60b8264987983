"""The decoders: Show and Tell, Att2in and Up-Down, each with LSTM or GRU cells.

Everything that does not depend on the state is computed outside the time loop: what the image
contributes once per image (`encode`), what the words contribute to the gates in one product for all
steps (`gates_of`).

Shape suffixes:
    I images, B captions (rows of the recurrent state), P words of all captions packed step by step,
    R regions, C channels of a region, H hidden size, A attention size, G gates of a cell,
    V words that can be written (the vocabulary from EOS on).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoder.data.batches import Features, PackedWords
from decoder.data.layout import is_static
from decoder.model.attention import Rows, shared_regions
from decoder.model.cells import CELLS, GRUCell, LSTMCell, State
from decoder.model.layers import Embedding, Linear
from decoder.model.operations import HAND_MADE, Operations
from decoder.model.options import ModelOptions
from decoder.model.recurrence import RecurrentLinear, Shared, WordTable
from pipeline.vocabulary import EOS


class Memory(NamedTuple):
    """The encoded images, as each step reads them; the first axis of every tensor is the image."""

    images: int
    """The number of images, I."""
    gates_IG: Tensor
    """What the pooled feature contributes to the first cell's gates; [I, 0] if the model does not
    read it."""
    regions_IRH: Shared
    """The embedded grid; [I, 0, C] if the model does not attend."""
    keys_IRA: Shared
    """The keys of the regions, as the model's operations attend to them; [I, 0, C] if the model
    does not attend."""
    mask_IR: Tensor | None = None
    """bool, which regions an image has, where their number varies and the model attends."""

    def select(self, index: Tensor) -> "Memory":
        """Return the memory of the images at `index` (int64 or a mask), in that order."""
        gates_IG = self.gates_IG[index]
        regions, keys = (Shared(part.tensor[index]) for part in (self.regions_IRH, self.keys_IRA))
        mask_IR = None if self.mask_IR is None else self.mask_IR[index]
        return Memory(len(gates_IG), gates_IG, regions, keys, mask_IR)

    @staticmethod
    def joined(parts: Sequence["Memory"]) -> "Memory":
        """Return the memory of the images of all `parts`, one after the other."""
        gates_IG = torch.cat([part.gates_IG for part in parts])
        regions = Shared(torch.cat([part.regions_IRH.tensor for part in parts]))
        keys = Shared(torch.cat([part.keys_IRA.tensor for part in parts]))
        masks = [part.mask_IR for part in parts if part.mask_IR is not None]
        return Memory(len(gates_IG), gates_IG, regions, keys, torch.cat(masks) if masks else None)

    def rows(self, count: int) -> Rows:
        """Map each of `count` captions to its image.

        The captions of an image are contiguous, and each image has the same number of them.
        """
        return Rows.evenly(self.images, count, self.gates_IG.device)


class Decoder(nn.Module, ABC):
    """What the three models share; each adds its cells and its `step`.

    The constructor only allocates the weights; `init_weights` draws them.

    Args:
        options: the sizes.
        words: size of the vocabulary, special words included.
        channels: number of channels of the stored features.
    """

    reads_pooled = True
    """Whether the model reads the pooled feature."""
    reads_pooled_at_every_step = False
    """Whether it does so with every word, or only before the first."""
    attends = True
    """Whether the model attends to the grid."""
    maxout = False
    operations: Operations = HAND_MADE
    first_cell: LSTMCell | GRUCell

    def __init__(self, options: ModelOptions, words: int, channels: int) -> None:
        super().__init__()
        self.hidden = hidden = options.hidden
        attention = options.attention
        self.word_embedding = Embedding(words, hidden)
        self.first_cell = CELLS[options.cell](hidden, self.maxout)
        self.word_gates = Linear(hidden, self.first_cell.gates_size, bias=False)
        if self.reads_pooled:
            self.pooled_embedding = Linear(channels, hidden)
            self.image_gates = Linear(hidden, self.first_cell.gates_size, bias=False)
        if self.attends:
            self.region_embedding = Linear(channels, hidden)
            self.attention_key = Linear(hidden, attention)
            self.attention_query = RecurrentLinear(hidden, attention)
            self.attention_score = nn.Parameter(torch.empty(attention))
        self.dropout = nn.Dropout(options.dropout)
        # Only words from EOS on have an output, so none of the three before can be generated.
        self.output = Linear(hidden, words - EOS)
        self._word_table = WordTable(self.word_embedding, self.word_gates)

    def init_weights(self) -> None:
        """Draw all weights.

        The order is fixed, and the word embedding is drawn twice, so that a seed gives the same
        weights as in earlier versions.
        """
        self.word_embedding.init_weights()
        self.first_cell.init_weights()
        self.word_gates.init_weights()
        if self.reads_pooled:
            self.pooled_embedding.init_weights()
            self.image_gates.init_weights()
        if self.attends:
            self.region_embedding.init_weights()
            self.attention_key.init_weights()
            self.attention_query.init_weights()
            bound = len(self.attention_score) ** -0.5
            nn.init.uniform_(self.attention_score, -bound, bound)
        self.output.init_weights()
        nn.init.normal_(self.word_embedding.weight, std=0.1)

    def train(self, mode: bool = True) -> Self:
        """Enter training or evaluation mode; call this whenever weights have changed."""
        self._word_table.clear()
        return super().train(mode)

    def use_operations(self, operations: Operations) -> None:
        """Compute all later steps by `operations`."""
        for module in self.modules():
            if isinstance(module, (Decoder, LSTMCell, GRUCell)):
                module.operations = operations

    @abstractmethod
    def initial_state(self, memory: Memory, image_B: Tensor) -> State:
        """Return the state before the first word of a caption for each of the images `image_B`."""

    @abstractmethod
    def step(
        self, gates_BG: Tensor, memory: Memory, rows: Rows, state: State
    ) -> tuple[State, Tensor]:
        """Read one word of each caption.

        Args:
            gates_BG: what `gates_of` returns for the words.
            memory: what `encode` returns for the images.
            rows: which captions belong to which image.
            state: what `start` or the last step returned.

        Returns:
            The new state, whose first tensor is the output [B, H], and the attention weights
            [B, R], [B, 0] if the model does not attend.
        """

    def encode(self, features: Features) -> Memory:
        """Compute what does not depend on the words, once for each image."""
        gates_IG = features.pooled_IC[:, :0]
        regions_IRH = keys_IRA = features.grid_IRC[:, :0]
        if self.reads_pooled:
            pooled_IH = self.dropout(self.pooled_embedding(features.pooled_IC).relu())
            gates_IG = self.image_gates(pooled_IH)
        mask_IR = features.mask_IR if self.attends else None
        if self.attends:
            grid_IRC = features.grid_IRC
            if mask_IR is not None:  # 0 times what is not finite is not 0
                grid_IRC = grid_IRC.masked_fill(~mask_IR[:, :, None], 0)
            regions_IRH = self.dropout(self.region_embedding(grid_IRC).relu())
            keys_IRA = self.attention_key(regions_IRH)
        keys = self.operations.keys(keys_IRA)
        return Memory(len(gates_IG), gates_IG, shared_regions(regions_IRH), keys, mask_IR)

    def start(self, memory: Memory, rows: int) -> State:
        """Return the state before the first word, for `rows` captions, equally many for each image.

        The captions of an image are contiguous.
        """
        return self.initial_state(memory, memory.rows(rows).image_B)

    def attend(self, state_BH: Tensor, memory: Memory, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the attended feature [B, H] and the weights of the regions [B, R]."""
        query_BA = self.attention_query(state_BH)
        keys, regions, score_A = memory.keys_IRA, memory.regions_IRH, self.attention_score
        return self.operations.attend(query_BA, keys, regions, score_A, rows, memory.mask_IR)

    def gates_of(self, words: Tensor, memory: Memory, image: Tensor, each: int = 0) -> Tensor:
        """Return the part of the first cell's gates that does not depend on the state, [n, G].

        Args:
            words: int64 [n].
            memory: what `encode` returns for the images.
            image: int64 [n], the image of each word's caption.
            each: the number of captions of each image, if it is the same and they are in order, at
                every step; else 0.
        """
        # Finding the words not yet in the table would synchronise a GPU, which computes the product
        # for all of them in less time.
        looks_up = words.device.type == "cpu" and not is_static(words.device)
        if not self.training and looks_up and self._word_table.usable:
            gates = self._word_table(words)
        else:
            gates = self.word_gates(self.dropout(self.word_embedding(words)))
        if not self.reads_pooled_at_every_step:
            return gates
        if each and is_static(words.device):
            steps = gates.view(-1, memory.images, each, gates.shape[1])
            return (steps + memory.gates_IG[:, None]).view_as(gates)
        return gates + F.embedding(image, memory.gates_IG)

    def forward(self, memory: Memory, words: PackedWords) -> Tensor:
        """Teacher forcing: read every caption, return the logits of each next word, [P, V]."""
        outputs = [state[0] for state, _ in self.read(memory, words)]
        logits_PV = self.output(self.dropout(torch.cat(outputs)))
        return logits_PV.float() if logits_PV.dtype == torch.bfloat16 else logits_PV

    def read(self, memory: Memory, words: PackedWords) -> Iterator[tuple[State, Tensor]]:
        """Read the captions step by step; yield the results of those that have not ended yet."""
        gates_PG = self.gates_of(words.inputs_P, memory, words.image_P, words.each)
        evenly = memory.rows(len(words.image_B)) if words.each else None
        with self.summed_gradients():
            state = self.initial_state(memory, words.image_B)
            for gates_BG in gates_PG.split(words.alive):
                alive = len(gates_BG)
                state = tuple(tensor[:alive] for tensor in state)
                rows = evenly or Rows.ungrouped(words.image_B[:alive], memory.images)
                state, weights_BR = self.step(gates_BG, memory, rows, state)
                yield state, weights_BR

    @contextmanager
    def summed_gradients(self) -> Iterator[None]:
        """Sum the gradients of the steps taken inside before they reach the weights."""
        parts: list[RecurrentLinear | WordTable] = [self._word_table]
        parts += [module for module in self.modules() if isinstance(module, RecurrentLinear)]
        for part in parts:
            part.begin_loop()
        try:
            yield
        finally:
            for part in parts:
                part.end_loop()

    def next_word(self, words_B: Tensor, memory: Memory, state: State) -> tuple[Tensor, State]:
        """Read one more word of each caption; return the logits of the next one [B, V]."""
        rows = memory.rows(len(words_B))
        gates_BG = self.gates_of(words_B, memory, rows.image_B, rows.each)
        state, _ = self.step(gates_BG, memory, rows, state)
        return self.output(self.dropout(state[0])), state


class ShowTell(Decoder):
    """The image is the first word that one cell reads (Vinyals et al. 2015, equations 10-12).

    It enters the cell through weights of its own rather than those of the words.
    """

    attends = False

    def initial_state(self, memory: Memory, image_B: Tensor) -> State:
        zeros = self.first_cell.initial_state(memory.images)
        return tuple(F.embedding(image_B, t) for t in self.first_cell(memory.gates_IG, zeros))

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

    def init_weights(self) -> None:
        super().init_weights()
        self.attended_candidate.init_weights()

    def initial_state(self, memory: Memory, image_B: Tensor) -> State:
        return self.first_cell.initial_state(len(image_B))

    def step(
        self, gates_BG: Tensor, memory: Memory, rows: Rows, state: State
    ) -> tuple[State, Tensor]:
        attended_BH, weights_BR = self.attend(state[0], memory, rows)
        candidate = self.attended_candidate(attended_BH)
        untouched = gates_BG.shape[1] - candidate.shape[1]
        return self.first_cell(gates_BG + F.pad(candidate, (untouched, 0)), state), weights_BR


class UpDown(Decoder):
    """One cell attends, a second one writes (Anderson et al. 2018, section 3.2)."""

    reads_pooled_at_every_step = True
    second_cell: LSTMCell | GRUCell

    def __init__(self, options: ModelOptions, words: int, channels: int) -> None:
        super().__init__(options, words, channels)
        self.second_cell = CELLS[options.cell](options.hidden)
        self.written_gates = RecurrentLinear(options.hidden, self.first_cell.gates_size)
        self.attended_gates = RecurrentLinear(2 * options.hidden, self.second_cell.gates_size)

    def init_weights(self) -> None:
        super().init_weights()
        self.second_cell.init_weights()
        self.written_gates.init_weights()
        self.attended_gates.init_weights()

    def initial_state(self, memory: Memory, image_B: Tensor) -> State:
        rows = len(image_B)
        return self.second_cell.initial_state(rows) + self.first_cell.initial_state(rows)

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
    """Return a decoder with new random weights (see `Decoder` for the arguments)."""
    model = allocate(options, words, channels)
    model.init_weights()
    return model


def allocate(options: ModelOptions, words: int, channels: int) -> Decoder:
    """Return a decoder whose weights are not set yet (see `Decoder` for the arguments)."""
    return MODELS[options.model](options, words, channels)
