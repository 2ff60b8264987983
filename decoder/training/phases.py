"""The two phases of a training: cross-entropy, then REINFORCE from its best weights."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from decoder.cider import Reward, all_words_encoded
from decoder.data.batches import Batch
from decoder.model.decoders import Decoder
from decoder.training.objectives import Loss, cross_entropy, reinforce
from decoder.training.options import CrossEntropyOptions, ReinforceOptions
from decoder.training.rewards import MixedReward
from pipeline.captions import Image
from pipeline.vocabulary import Vocabulary


@dataclass
class CrossEntropyPhase:
    """Phase 1: teacher forcing, with dropout."""

    options: CrossEntropyOptions
    epochs: int
    """Epochs of the phase, if it does not stop early."""
    steps: int
    """Steps of the phase, if it does not stop early."""

    name: ClassVar[str] = "xe"
    title: ClassVar[str] = "cross-entropy"
    has_reward: ClassVar[bool] = False

    def loss(self, model: Decoder, batch: Batch, step: int | Tensor) -> Loss:
        """Return the loss of a batch; scheduled sampling grows with the step."""
        most = self.options.scheduled_sampling
        own_words = most * step / self.steps if most > 0 else 0.0
        return cross_entropy(model.train(), batch, self.options.label_smoothing, own_words)


@dataclass
class ReinforcePhase:
    """Phase 2: REINFORCE, without dropout."""

    options: ReinforceOptions
    epochs: int
    """Epochs of the phase, if it does not stop early."""
    steps: int
    """Steps of the phase, if it does not stop early."""
    images: list[Image]
    """The training images, whose captions are the references of the reward."""
    vocabulary: Vocabulary

    name: ClassVar[str] = "rl"
    title: ClassVar[str] = "REINFORCE"
    has_reward: ClassVar[bool] = True

    @cached_property
    def reward(self) -> Reward:
        """The reward over all training references, prepared at its first use."""
        references = all_words_encoded(self.images, self.vocabulary)
        return MixedReward(references, self.options.bleu_weight)

    @property
    def scores_on_device(self) -> bool:
        """Whether the reward asks nothing of the host, so that a CUDA graph can hold it."""
        return isinstance(self.reward, Reward)

    def loss(self, model: Decoder, batch: Batch, step: int | Tensor) -> Loss:
        """Return the loss of a batch, for which captions are sampled.

        Where the reward `scores_on_device`, the ids of a batch in slots are rows of its references.
        """
        in_slots = batch.real_I is not None
        reward = self.reward.score if in_slots and self.scores_on_device else self.reward
        return reinforce(model.eval(), batch, reward, self.options, self.vocabulary.max_length)


Phase = CrossEntropyPhase | ReinforcePhase

# By the name that a phase has in options, config.json, the state and metrics.jsonl; in their order.
TITLES = {phase.name: phase.title for phase in (CrossEntropyPhase, ReinforcePhase)}
