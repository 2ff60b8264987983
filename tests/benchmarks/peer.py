"""How fast this project trains and writes beside ruotianluo/ImageCaptioning.pytorch, in one run.

    git clone --recursive https://github.com/ruotianluo/ImageCaptioning.pytorch PEER
    .venv/bin/python -m tests.benchmarks.peer --clone PEER [--threads 1]

Both have an untrained Up-Down of the same sizes, the same images and captions, float32 and as many
threads, and take turns. An untrained decoder ends no caption before the longest, so both write
equally many words. Memory is what a step needs besides the weights and the optimizer's state.
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

from decoder.batches import Batch
from decoder.training import Trainer
from pipeline.vocabulary import EOS, PAD
from tests.benchmarks.training import BEAM, LONGEST, WORDS, Way, made, take_turns, ways_of

HIDDEN, CHANNELS, SAMPLES = 512, 1280, 5
# Their word 0 begins, ends and pads captions.
END = 0


def main(
    clone: Path, images: tuple[int, ...] = (10, 50), rounds: int = 5, threads: int = 1
) -> None:
    """Print how many times as fast this project is, and what memory it takes.

    Args:
        clone: of the peer, with its submodule cider.
        images: how many in a batch, each with five captions.
        rounds: how often each has its turn.
        threads: of both.
    """
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = made(Path(scratch), 4 * max(images))
        every = [
            way
            for count in images
            for phase in ("xe", "rl", "beam")
            for way in ways_of(folder, Path(scratch), "updown", "lstm", count, phase)
        ]
        peer = _Peer(clone, Path(scratch), every[0].trainer)
        both = [(ours, peer.way(ours)) for ours in every if ours.phase != "xe, plain"]
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

        options = argparse.Namespace(
            caption_model="updown",
            vocab_size=WORDS,
            vocab={str(number): f"w{number}" for number in range(1, WORDS + 1)},
            input_encoding_size=HIDDEN,
            rnn_size=HIDDEN,
            att_hid_size=HIDDEN,
            num_layers=2,
            drop_prob_lm=0.5,
            max_length=LONGEST,
            seq_length=LONGEST,
            fc_feat_size=CHANNELS,
            att_feat_size=CHANNELS,
            structure_loss_type="new_self_critical",
            train_sample_n=SAMPLES,
            entropy_reward_weight=0,
            self_cider_reward_weight=0,
            cider_reward_weight=1,
            bleu_reward_weight=0,
        )
        self.options = options
        torch.manual_seed(1)
        self.model: Any = setup(options)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.0)
        self.cross_entropy = losses.LanguageModelCriterion()
        self.self_critical, self.structure = (
            losses.RewardCriterion(),
            losses.StructureLosses(options),
        )
        self.rewards = rewards
        self.reader, self.ours = ours.training, ours.reward
        self._use_frequencies(scratch)

    def _use_frequencies(self, scratch: Path) -> None:
        """Count n-grams of all captions once, as its scripts/prepro_ngrams.py does."""
        frequency: Counter[tuple[str, ...]] = Counter()
        for captions in self.reader.captions:
            grams = set()
            for caption in captions:
                words = [str(word) for word in _theirs(caption)]
                for n in range(1, 5):
                    grams |= {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
            frequency.update(grams)
        (scratch / "data").mkdir()
        counted = {"document_frequency": frequency, "ref_len": len(self.reader)}
        (scratch / "data" / "counted.p").write_bytes(pickle.dumps(counted))
        before = Path.cwd()
        os.chdir(scratch)  # it looks for data/NAME.p
        self.rewards.init_scorer("counted")
        os.chdir(before)

    def way(self, ours: Way) -> Way:
        """Return the peer's way of doing what `ours` does, on as many images."""
        batch = self.reader.batch(list(range(ours.images)))
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
        labels = np.zeros((len(batch.tokens_BT), LONGEST + 2), dtype=np.int64)
        masks = np.zeros(labels.shape, dtype=np.float32)
        for row, tokens in enumerate(batch.tokens_BT.tolist()):
            words = [word for word in _theirs(tokens) if word != END]
            labels[row, 1 : len(words) + 1] = words
            masks[row, : len(words) + 2] = 1
        seq = torch.from_numpy(labels).view(len(batch.image_ids), -1, LONGEST + 2)
        mask = torch.from_numpy(masks).view_as(seq)
        grid, pooled = batch.features
        self._learn(
            self.cross_entropy(self.model(pooled, grid, seq[..., :-1]), seq[..., 1:], mask[..., 1:])
        )

    def _sample(self, batch: Batch, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        grid, pooled = batch.features
        return self.model(pooled, grid, None, mode="sample", opt=options)

    def _references(self, batch: Batch) -> list[np.ndarray]:
        several = [self.reader.captions[place] for place in range(len(batch.image_ids))]
        return [
            np.array([_theirs(c)[:LONGEST] + [END] * (LONGEST - len(c)) for c in captions])
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
        batch = self.reader.batch(list(range(images)))
        random = torch.Generator().manual_seed(0)
        # Real captions, of which every other word is another one.
        samples = batch.tokens_BT.clone()
        other = torch.randint(EOS + 1, WORDS, samples.shape, generator=random)
        swapped = (torch.rand(samples.shape, generator=random) < 0.5) & (samples > EOS)
        samples[swapped] = other[swapped]
        theirs = torch.tensor(
            [_theirs(row) + [END] * (len(row) - len(_theirs(row))) for row in samples.tolist()]
        )
        references = self._references(batch)
        seconds: list[tuple[float, float]] = []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            found = self.ours(batch.image_ids, samples, EOS)
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
    """Return token ids of ours in the peer's numbering, with the end but without padding."""
    return [END if token == EOS else token for token in tokens if token != PAD]


if __name__ == "__main__":
    tyro.cli(main)
