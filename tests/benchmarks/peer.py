"""How fast this project trains and writes beside ruotianluo/ImageCaptioning.pytorch, in one run.

    git clone --recursive https://github.com/ruotianluo/ImageCaptioning.pytorch PEER
    .venv/bin/python -m tests.benchmarks.peer --clone PEER [--threads 1]

Both have an Up-Down with the same weights, the same images and captions, float32 and as many
threads, and take turns. An untrained decoder, which it is without --run, ends no caption before the
longest. Memory is what a step needs besides the weights and the optimizer's state.
"""

import argparse
import contextlib
import io
import os
import pickle
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro

from decoder.cider import all_words_encoded
from decoder.data.batches import Batch
from decoder.model.decoders import UpDown
from decoder.runs import checkpoints
from decoder.training.trainer import Trainer
from features.files import read_json
from pipeline.vocabulary import BOS, EOS, PAD, UNK
from pipeline.work import RunFolder
from tests.benchmarks.training import BEAM, Way, made, take_turns, ways_of
from tests.decoder.model.reference import lstm_cell

SAMPLES = 5
# Their word 0 begins, ends and pads captions.
END = 0


def main(
    clone: Path,
    run: Path | None = None,
    images: tuple[int, ...] = (10, 50),
    rounds: int = 5,
    threads: int = 1,
) -> None:
    """Print how many times as fast this project is, and what memory it takes.

    Args:
        clone: of the peer, with its submodule cider; it needs the packages six, yacs and lmdb.
        run: of an Up-Down with LSTM cells, in its work directory, whose weights both are given, and
            whose features, captions and sizes are taken; by default random ones.
        images: how many in a batch, each with five captions.
        rounds: how often each has its turn.
        threads: of both.
    """
    torch.set_num_threads(threads)
    folder = None if run is None else RunFolder(run)
    sizes = {"hidden": 512, "attention": 512}
    if folder is not None:
        options = read_json(folder.config, "")["options"]["decoder"]
        sizes = {name: options[name] for name in sizes}
    with tempfile.TemporaryDirectory() as scratch:
        work = made(Path(scratch), 4 * max(images)) if folder is None else folder.work
        every = [
            way
            for count in images
            for phase in ("xe", "rl", "beam")
            for way in ways_of(work, Path(scratch), "updown", "lstm", count, phase, **sizes)
        ]
        for way in every if folder is not None else ():
            checkpoints.load_weights(way.trainer.model, folder.best)
        peer = _Peer(clone, Path(scratch), every[0].trainer)
        both = [(ours, peer.way(ours)) for ours in every if ours.phase != "xe, plain"]
        peer.check()
        peak = take_turns([way for pair in both for way in pair], rounds)
        print(f"{threads} threads; a product of large matrices: {peak / 1e9:.0f} GFLOP/s\n")
        print("| what | images | ours, per second | peer | times | memory, MB | peer | share |")
        print("|---|---|---|---|---|---|---|---|")
        for ours, other in both:
            rate, theirs = (way.work()["count"] / median(way.seconds) for way in (ours, other))
            print(
                f"| {ours.phase} | {ours.images} | {rate:.1f} | {theirs:.1f} | "
                f"{_times(ours, other)} | {ours.memory:.0f} | {other.memory:.0f} | "
                f"{ours.memory / other.memory:.2f} |"
            )
        peer.print_reward(max(images), rounds)


def _times(ours: Way, other: Way) -> str:
    """Return the ratio of seconds, of each round: its median and its range."""
    ratios = [b / a for a, b in zip(ours.seconds, other.seconds, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


class _Peer:
    """The peer's Up-Down on the images and captions of the benchmark."""

    def __init__(self, clone: Path, scratch: Path, ours: Trainer) -> None:
        sys.path[:0] = [str(clone), str(clone / "cider")]
        from captioning.models import setup
        from captioning.modules import losses
        from captioning.utils import rewards

        model = ours.model
        assert isinstance(model, UpDown)
        hidden, words = model.output.in_features, model.output.out_features
        options = argparse.Namespace(
            caption_model="updown",
            vocab_size=words - 1,
            vocab={str(number): f"w{number}" for number in range(1, words)},
            input_encoding_size=hidden,
            rnn_size=hidden,
            att_hid_size=len(model.attention_score),
            num_layers=2,
            drop_prob_lm=0.5,
            max_length=ours.vocabulary.max_length,
            seq_length=ours.vocabulary.max_length,
            fc_feat_size=model.pooled_embedding.in_features,
            att_feat_size=model.pooled_embedding.in_features,
            structure_loss_type="new_self_critical",
            train_sample_n=SAMPLES,
            entropy_reward_weight=0,
            self_cider_reward_weight=0,
            cider_reward_weight=1,
            bleu_reward_weight=0,
        )
        self.options, self.longest = options, ours.vocabulary.max_length
        self.model: Any = setup(options)
        _give_weights(model, self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.0)
        self.cross_entropy = losses.LanguageModelCriterion()
        self.self_critical = losses.RewardCriterion()
        self.structure = losses.StructureLosses(options)
        self.rewards, self.ours = rewards, ours
        self.references = all_words_encoded(ours.training.images, ours.vocabulary)
        self._use_frequencies(scratch)

    def check(self) -> None:
        """Check that both give words the same probabilities; else they do not do the same."""
        batch = self.ours.training.batch([0, 1, 2])
        self.model.eval()
        labels = self._labels(batch)[0]
        grid, pooled = batch.features
        with torch.no_grad():
            found = self.model(pooled, grid, labels[..., :-1])[:, 0].log_softmax(1)
            model = self.ours.model.eval()
            words = torch.full((len(found),), BOS)
            memory = model.encode(batch.features)
            expected, _ = model.next_word(words, memory, model.start(memory, len(words)))
        torch.testing.assert_close(found, expected.log_softmax(1), atol=1e-3, rtol=1e-3)

    def _use_frequencies(self, scratch: Path) -> None:
        """Count n-grams of all captions once, as its scripts/prepro_ngrams.py does."""
        frequency: Counter[tuple[str, ...]] = Counter()
        for captions in self.references.values():
            grams = set()
            for caption in captions:
                words = [str(word) for word in _theirs(caption)]
                for n in range(1, 5):
                    grams |= {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
            frequency.update(grams)
        (scratch / "data").mkdir()
        counted = {"document_frequency": frequency, "ref_len": len(self.references)}
        (scratch / "data" / "counted.p").write_bytes(pickle.dumps(counted))
        before = Path.cwd()
        os.chdir(scratch)  # it looks for data/NAME.p
        self.rewards.init_scorer("counted")
        os.chdir(before)

    def way(self, ours: Way) -> Way:
        """Return the peer's way of doing what `ours` does, on as many images."""
        batch = self.ours.training.batch(list(range(ours.images)))
        do: Callable[[Batch], None] = {
            "xe": self._cross_entropy,
            "rl, greedy": self._self_critical,
            "rl, mean": self._mean_of_others,
            f"beam {BEAM}": self._beam,
        }[ours.phase]
        count = len(batch.tokens_BT) if ours.phase == "xe" else ours.images
        found = {"operations": 0.0, "count": count, "outside": 0.0}
        return Way(ours.phase, "peer", ours.images, lambda: do(batch), lambda: found, ours.trainer)

    def _learn(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_value_(self.model.parameters(), 0.1)
        self.optimizer.step()

    def _cross_entropy(self, batch: Batch) -> None:
        self.model.train()
        seq, mask = self._labels(batch)
        grid, pooled = batch.features
        self._learn(
            self.cross_entropy(self.model(pooled, grid, seq[..., :-1]), seq[..., 1:], mask[..., 1:])
        )

    def _labels(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return captions between zeros [I, 5, T + 2], and which of them count."""
        labels = np.zeros((len(batch.tokens_BT), self.longest + 2), dtype=np.int64)
        masks = np.zeros(labels.shape, dtype=np.float32)
        for row, tokens in enumerate(batch.tokens_BT.tolist()):
            words = [word for word in _theirs(tokens) if word != END]
            labels[row, 1 : len(words) + 1] = words
            masks[row, : len(words) + 2] = 1
        shape = len(batch.image_ids), -1, self.longest + 2
        return torch.from_numpy(labels).view(shape), torch.from_numpy(masks).view(shape)

    def _sample(self, batch: Batch, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        grid, pooled = batch.features
        return self.model(pooled, grid, None, mode="sample", opt=options)

    def _references(self, batch: Batch) -> list[np.ndarray]:
        several = [self.references[image_id] for image_id in batch.image_ids.tolist()]
        longest = max(len(caption) for captions in several for caption in captions)
        return [
            np.array([_theirs(c) + [END] * (longest - len(c)) for c in captions])
            for captions in several
        ]

    def _self_critical(self, batch: Batch) -> None:
        self.model.eval()
        with torch.no_grad():
            greedy, _ = self._sample(batch, sample_method="greedy", beam_size=1)
        self.model.train()
        found, log_probability = self._sample(
            batch, sample_method="sample", beam_size=1, sample_n=SAMPLES
        )
        with contextlib.redirect_stdout(io.StringIO()):
            reward = self.rewards.get_self_critical_reward(
                greedy, self._references(batch), found, self.options
            )
        advantage = torch.from_numpy(reward).to(log_probability)
        self._learn(self.self_critical(log_probability, found, advantage))

    def _mean_of_others(self, batch: Batch) -> None:
        self.model.train()
        found, log_probability = self._sample(
            batch, sample_method="sample", beam_size=1, sample_n=SAMPLES, output_logsoftmax=1
        )
        with contextlib.redirect_stdout(io.StringIO()):
            loss = self.structure(log_probability, found, self._references(batch))["loss"]
        self._learn(loss)

    def _beam(self, batch: Batch) -> None:
        self.model.eval()
        with torch.no_grad():
            self._sample(batch, sample_method="beam_search", beam_size=BEAM, sample_n=1)

    def print_reward(self, images: int, rounds: int) -> None:
        """Print what the reward of the same samples takes, and how the two agree."""
        batch = self.ours.training.batch(list(range(images)))
        random = torch.Generator().manual_seed(0)
        # Real captions, of which every other word is another one, and every unknown one.
        samples = batch.tokens_BT.clone()
        other = torch.randint(EOS + 1, self.options.vocab_size, samples.shape, generator=random)
        swapped = (torch.rand(samples.shape, generator=random) < 0.5) & (samples > EOS)
        swapped |= samples == UNK
        samples[swapped] = other[swapped]
        samples[(samples != EOS).all(1), -1] = EOS  # of captions that were cut
        theirs = torch.tensor(
            [_theirs(row) + [END] * (len(row) - len(_theirs(row))) for row in samples.tolist()]
        )
        references = self._references(batch)
        seconds: list[tuple[float, float]] = []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            found = self.ours.reward(batch.image_ids, samples, EOS)
            between = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                expected = self.rewards.get_scores(references, theirs, self.options)
            seconds.append((between - started, time.perf_counter() - between))
        difference = np.abs(found.numpy() - expected).max()
        ours, other_seconds = (median(s) for s in zip(*seconds[1:], strict=True))
        times = [b / a for a, b in seconds[1:]]
        print(
            f"\nreward of {len(samples)} captions: {1e3 * ours:.1f} ms, peer "
            f"{1e3 * other_seconds:.1f} ms: {median(times):.1f} times "
            f"({min(times):.1f}-{max(times):.1f}); largest difference {difference:.1g} of 10"
        )


def _theirs(tokens: list[int]) -> list[int]:
    """Return token ids of ours in the peer's numbering, with the end but without padding.

    An unknown word becomes any other: it is read as fast, and neither decoder writes it.
    """
    return [1 if token == UNK else token - EOS for token in tokens if token != PAD]


def _give_weights(ours: UpDown, peer: Any) -> None:
    """Give the peer's Up-Down weights with which it computes what ours does."""
    first, second, core = ours.first_cell, ours.second_cell, peer.core
    inputs = [ours.written_gates.weight, ours.image_gates.weight, ours.word_gates.weight]
    gates = first.gates_size
    words = ours.word_embedding.weight.detach()[
        [BOS, *range(EOS + 1, ours.word_embedding.num_embeddings)]
    ]
    # The peer's word vectors pass a ReLU: what is added so that they do is taken from the bias.
    added = -words.min()
    with torch.no_grad():
        bias = first.bias - added * ours.word_gates.weight.sum(1)
    core.att_lstm = lstm_cell(gates, inputs, bias, first.recurrent.weight)
    core.lang_lstm = lstm_cell(
        gates, [ours.attended_gates.weight], second.bias, second.recurrent.weight
    )
    pairs = [
        (peer.embed[0].weight, words + added),
        (peer.fc_embed[0].weight, ours.pooled_embedding.weight),
        (peer.fc_embed[0].bias, ours.pooled_embedding.bias),
        (peer.att_embed[0].weight, ours.region_embedding.weight),
        (peer.att_embed[0].bias, ours.region_embedding.bias),
        (peer.ctx2att.weight, ours.attention_key.weight),
        (peer.ctx2att.bias, ours.attention_key.bias),
        (core.attention.h2att.weight, ours.attention_query.weight),
        (core.attention.h2att.bias, torch.zeros(())),
        (core.attention.alpha_net.weight, ours.attention_score),
        (core.attention.alpha_net.bias, torch.zeros(())),
        (peer.logit.weight, ours.output.weight),
        (peer.logit.bias, ours.output.bias),
    ]
    with torch.no_grad():
        for to, value in pairs:
            to.copy_(value)


if __name__ == "__main__":
    tyro.cli(main)
