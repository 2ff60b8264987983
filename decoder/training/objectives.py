"""The two objectives: cross-entropy under teacher forcing, and REINFORCE on a reward.

Shape suffixes as in `decoder.model.decoders`; S samples (K for each image).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from decoder.data.batches import Batch, PackedWords
from decoder.data.layout import is_static, lay_out
from decoder.generation.generate import NotFinite, draw_words, greedy
from decoder.model.attention import Rows
from decoder.model.decoders import Decoder, Memory
from decoder.training.options import ReinforceOptions
from pipeline.vocabulary import BOS, EOS, PAD, UNK

# An unknown word has no output: where it is the target, there is nothing to learn.
NO_TARGET = UNK - EOS


class Loss(NamedTuple):
    """The loss of one batch, and figures to report."""

    loss: Tensor
    """float32 [], to be minimised; a mean over words."""
    captions: Tensor
    """int64 [], number of captions read or sampled."""
    words: Tensor
    """int64 [], number of words in the mean."""
    reward: Tensor | None = None
    """float32 [], mean reward of the samples, on the scale of the scores (10 for CIDEr-D)."""
    advantage: Tensor | None = None
    """float32 [], largest distance of a sample's reward from its baseline, on the same scale."""

    def uncounted(self) -> "Loss":
        """Return the loss of a batch that does not count."""
        nothing = torch.zeros_like(self.words)
        advantage = None if self.advantage is None else torch.zeros_like(self.advantage)
        return self._replace(captions=nothing, words=nothing, advantage=advantage)


def cross_entropy(
    model: Decoder, batch: Batch, label_smoothing: float = 0.0, own_words: float | Tensor = 0.0
) -> Loss:
    """Return the loss of teacher forcing: predict each word of a caption from those before it.

    Args:
        model: in training mode.
        batch: images with their captions.
        label_smoothing: share of the target's probability spread over all words.
        own_words: probability that an input word is the model's own (scheduled sampling); 0 leaves
            this out, a tensor never does.

    Raises:
        NotFinite: in scheduled sampling, the model's scores are not finite numbers; on a CPU only.
    """
    memory = model.encode(batch.features)
    words = lay_out(batch)
    if isinstance(own_words, Tensor) or own_words > 0:
        words = mix_in_own_words(model, memory, words, own_words)
    count = (words.targets_P != UNK).sum()
    in_slots = words.each > 0  # where not every caption is real
    loss = F.cross_entropy(
        model(memory, words),
        words.targets_P - EOS,
        ignore_index=NO_TARGET,
        label_smoothing=label_smoothing,
        reduction="sum" if in_slots else "mean",
    )
    if not in_slots:
        return Loss(loss, count.new_tensor(len(batch.tokens_BT)), count)
    return Loss(loss / count.clamp(min=1), (batch.tokens_BT != PAD).any(1).sum(), count)


def mix_in_own_words(
    model: Decoder, memory: Memory, words: PackedWords, probability: float | Tensor
) -> PackedWords:
    """Replace each input word but the first by a sample of the model, with `probability`.

    Scheduled sampling (Bengio et al. 2015) in two passes (Mihaylova & Martins 2019): the samples
    come from a first pass under teacher forcing, so both passes stay parallel over the words.

    Raises:
        NotFinite: the model's scores are not finite numbers; on a CPU only.
    """
    with torch.no_grad():
        logits_PV = model(memory, words)
        if is_static(logits_PV.device):
            drawn_P = draw_words(logits_PV.softmax(-1)) + EOS
        elif logits_PV.isfinite().all():
            drawn_P = torch.multinomial(logits_PV.softmax(-1), 1).squeeze(1) + EOS
        else:
            raise NotFinite("the decoder's scores of words are not finite numbers")
    inputs_P = words.inputs_P.clone()
    if words.each:
        later_P = inputs_P[words.alive[0] :]  # a view
        own = torch.rand(len(later_P), device=later_P.device) < probability
        later_P.copy_(torch.where(own, drawn_P[: len(later_P)], later_P))
        return replace(words, inputs_P=inputs_P)
    place_P = torch.arange(len(drawn_P), device=drawn_P.device)
    alive = torch.tensor(words.alive, device=drawn_P.device)
    later_P = place_P[words.alive[0] :]
    # A caption's previous word lies as many places back as captions were alive at that step.
    before_P = later_P - alive[:-1].repeat_interleave(alive[1:])
    own = torch.rand(len(later_P), device=drawn_P.device) < probability
    inputs_P[later_P[own]] = drawn_P[before_P[own]]
    return replace(words, inputs_P=inputs_P)


def reinforce(
    model: Decoder,
    batch: Batch,
    reward: Callable[[Tensor, Tensor, int], Tensor],
    options: ReinforceOptions,
    max_length: int,
) -> Loss:
    """REINFORCE (Williams 1992): make samples that beat their baseline more probable.

    The baseline is the greedy caption's reward (self-critical, Rennie et al. 2017) or the mean of
    the image's other samples (Luo 2020, "A better variant of self-critical sequence training").
    The loss is divided by the number of words of all samples, which keeps the size of the gradient
    independent of their length.

    Args:
        model: in evaluation mode, so that the gradient is that of the sampled distribution.
        batch: images; their captions are not read.
        reward: scores samples by the batch's image ids; see `decoder.cider.Reward`.
        options: of this phase.
        max_length: largest number of words in a sample, the end token included.

    Raises:
        NotFinite: the model's scores are not finite numbers.
    """
    memory = model.encode(batch.features)
    drawn = draw(model, memory, options.samples, max_length, options.temperature)
    with torch.no_grad():
        reward_IK = reward(batch.image_ids, drawn.tokens_ST, EOS).view(-1, options.samples)
        if options.baseline == "greedy":
            greedy_IT = greedy(model, memory, max_length).tokens_IKT[:, 0]
            baseline_IK = reward(batch.image_ids, greedy_IT, EOS)[:, None]
        else:
            others = options.samples - 1
            baseline_IK = (reward_IK.sum(1, keepdim=True) - reward_IK) / others
        advantage_IK = reward_IK - baseline_IK

    loss_P = advantage_IK.flatten()[drawn.sample_P] * drawn.surprise_P
    if batch.real_I is None:
        words = torch.tensor(len(loss_P), device=loss_P.device)
        captions = words.new_tensor(reward_IK.numel())
        return Loss(loss_P.mean(), captions, words, reward_IK.mean(), advantage_IK.abs().max())
    real_I1 = batch.real_I[:, None]
    captions = batch.real_I.sum() * options.samples
    words_IK = (drawn.tokens_ST != PAD).sum(1).view_as(reward_IK)
    words = (words_IK * real_I1).sum()
    real_P = batch.real_I.repeat_interleave(options.samples)[drawn.sample_P]
    return Loss(
        loss_P.masked_fill(~real_P, 0).sum() / words.clamp(min=1),
        captions,
        words,
        (reward_IK * real_I1).sum() / captions.clamp(min=1),
        (advantage_IK * real_I1).abs().max(),
    )


class Drawn(NamedTuple):
    """Samples and their log-probabilities; P words of all samples."""

    tokens_ST: Tensor
    """int64, padded with PAD; each ends in EOS unless it is cut off at the largest length."""
    sample_P: Tensor
    """int64, the sample of each word."""
    surprise_P: Tensor
    """float32, negative log-probability of each word, with its autograd graph; 0 for padding."""


def draw(
    model: Decoder,
    memory: Memory,
    count: int,
    max_length: int,
    temperature: float,
    choose: Callable[[Tensor, Tensor, int], Tensor] | None = None,
) -> Drawn:
    """Draw `count` samples for each image and keep the graph of their log-probabilities.

    Gradients flow through the sampling pass itself; no second forward pass is needed. Samples that
    have ended are no longer computed, or on a GPU go on reading PAD, which has no effect.

    Args:
        model: in evaluation mode.
        memory: of the images.
        count: K.
        max_length: largest number of words in a sample, the end token included.
        temperature: of the softmax.
        choose: chooses the words instead of drawing them, in tests: from probabilities [B, V],
            their samples [B] and the number of the step to outputs [B].

    Raises:
        NotFinite: the model's scores are not finite numbers; on a CPU only.
    """
    device = memory.gates_IG.device
    static = is_static(device)
    every = memory.rows(memory.images * count)
    image_B = every.image_B
    sample_B = torch.arange(len(image_B), device=device)
    tokens_ST = torch.full((len(image_B), max_length), PAD, device=device)
    words_B = torch.full_like(image_B, BOS)
    outputs: list[Tensor] = []
    probabilities: list[Tensor] = []
    samples: list[Tensor] = []
    with model.summed_gradients():
        state = model.initial_state(memory, image_B)
        for t in range(max_length):
            rows = every if static else Rows.grouped(image_B, memory.images)
            gates_BG = model.gates_of(words_B, memory, image_B, rows.each)
            state, _ = model.step(gates_BG, memory, rows, state)
            outputs.append(state[0])
            samples.append(sample_B)
            with torch.no_grad():
                logits_BV = model.output(state[0])
                probabilities.append((logits_BV.float() / temperature).softmax(-1))
                chosen_B = (choose or _at_random)(probabilities[-1], sample_B, t)
            if static:
                ended_B = (words_B == EOS) | (words_B == PAD)
                words_B = (chosen_B + EOS).masked_fill(ended_B, PAD)
                tokens_ST[:, t] = words_B
                continue
            words_B = chosen_B + EOS
            tokens_ST[sample_B, t] = words_B
            going = (words_B != EOS).nonzero().squeeze(1)
            if len(going) == 0:
                break
            if len(going) < len(words_B):
                words_B, image_B, sample_B = words_B[going], image_B[going], sample_B[going]
                state = tuple(tensor.index_select(0, going) for tensor in state)
    if static:
        words_P = tokens_ST.T.flatten()
        chosen_P = (words_P - EOS).clamp(min=0)
    else:
        chosen_P = torch.cat([tokens_ST[of_step, t] for t, of_step in enumerate(samples)]) - EOS
    surprise_P = _Surprise.apply(
        torch.cat(outputs),
        model.output.weight,
        model.output.bias,
        torch.cat(probabilities),
        chosen_P,
        temperature,
        logits_BV.dtype,
    )
    if static:
        surprise_P = surprise_P.masked_fill(words_P == PAD, 0)
    return Drawn(tokens_ST, torch.cat(samples), surprise_P)


class _Surprise(torch.autograd.Function):
    """Negative log-probability of the chosen words, from the probabilities they were drawn with.

    The gradient of the logits is (probability - chosen) / temperature, so the projection onto the
    words need not be computed a second time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output_PH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor,
        probability_PV: Tensor,
        chosen_P: Tensor,
        temperature: float,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(output_PH, weight_VH, probability_PV, chosen_P)
        ctx.temperature, ctx.dtype = temperature, dtype
        return -probability_PV.gather(1, chosen_P[:, None]).squeeze(1).log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_P: Tensor) -> tuple[Tensor | None, ...]:
        output_PH, weight_VH, probability_PV, chosen_P = ctx.saved_tensors
        gradient_P1 = gradient_P[:, None] / ctx.temperature
        to_logits_PV = probability_PV * gradient_P1
        to_logits_PV.scatter_add_(1, chosen_P[:, None], -gradient_P1)
        to_bias_V = to_logits_PV.sum(0)
        to_logits_PV = to_logits_PV.to(ctx.dtype)  # of the products, as under autocast
        to_output_PH = (to_logits_PV @ weight_VH.to(ctx.dtype)).to(output_PH.dtype)
        to_weight_VH = (to_logits_PV.T @ output_PH.to(ctx.dtype)).to(weight_VH.dtype)
        return to_output_PH, to_weight_VH, to_bias_V, None, None, None, None


def _at_random(probability_BV: Tensor, sample_B: Tensor, t: int) -> Tensor:
    return draw_words(probability_BV)
