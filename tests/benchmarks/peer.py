"""Speed and memory of this project and of ruotianluo/ImageCaptioning.pytorch, in one run.

    git clone --recursive https://github.com/ruotianluo/ImageCaptioning.pytorch PEER
    .venv/bin/python -m tests.benchmarks.peer --clone PEER [--threads 1] [--device cuda]

Both train the same Up-Down: the same weights, images and captions, float32, the same number of
threads. They take turns. Without --run the decoder is untrained, and none of its captions ends
before the longest. Memory is what a step needs in addition to the weights and the state of the
optimizer. The peer needs the packages six, yacs and lmdb.
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
from typing import Any, Literal

import numpy as np
import torch
import tyro

from decoder.cider import all_words_encoded
from decoder.data.batches import Batch
from decoder.model.decoders import UpDown
from decoder.runs import checkpoints
from decoder.training.rewards import MixedReward
from decoder.training.trainer import Trainer
from features.files import read_json
from pipeline.vocabulary import BOS, EOS, PAD, UNK
from pipeline.work import RunFolder
from tests.benchmarks.random_data import random_work_folder
from tests.benchmarks.timing import Timing, Work, Workload, time_interleaved
from tests.benchmarks.workloads import BEAM, workloads_of
from tests.decoder.model.reference import lstm_cell

SAMPLES = 5
END = 0  # in the peer's numbering; it begins, ends and pads captions


def main(
    clone: Path,
    run: Path | None = None,
    images: tuple[int, ...] = (10, 50),
    rounds: int = 5,
    threads: int = 1,
    device: str = "cpu",
    precision: Literal["float32", "tf32", "bfloat16"] = "float32",
) -> None:
    """Print the speed and memory of both, and their ratios.

    Args:
        clone: clone of the peer, with its submodule cider.
        run: a run of Up-Down with LSTM cells, in its work directory; both use its weights, sizes,
            features and captions. By default all of these are random.
        images: batch sizes, in images of five captions.
        rounds: number of measurements of each row.
        threads: number of threads of each.
        device: where both run.
        precision: of our training steps; the peer's are in float32.
    """
    torch.set_num_threads(threads)
    folder = None if run is None else RunFolder(run)
    sizes = {"hidden": 512, "attention": 512}
    if folder is not None:
        options = read_json(folder.config, "")["options"]["decoder"]
        sizes = {name: options[name] for name in sizes}
    with tempfile.TemporaryDirectory() as scratch:
        if folder is None:
            work = random_work_folder(Path(scratch), 4 * max(images))
        else:
            work = folder.work.path
        workloads = [
            workload
            for count in images
            for phase in ("xe", "rl", "beam")
            for workload in workloads_of(
                work,
                Path(scratch),
                "updown",
                "lstm",
                count,
                phase,
                device=device,
                precision=precision,
                **sizes,
            )
            if workload.phase != "xe, plain"
        ]
        for workload in workloads if folder is not None else ():
            checkpoints.load_weights(workload.trainer.model, folder.best)
        peer = _Peer(clone, Path(scratch), workloads[0].trainer)
        peer.check()
        both = [side for ours in workloads for side in (ours, peer.workload(ours))]
        timings, peak = time_interleaved(both, rounds, device=torch.device(device))
        print(f"{threads} threads; a product of large matrices: {peak / 1e9:.0f} GFLOP/s\n")
        print("| what | images | ours, per second | peer | times | memory, MB | peer | share |")
        print("|---|---|---|---|---|---|---|---|")
        for ours, other in zip(timings[::2], timings[1::2], strict=True):
            print(
                f"| {ours.workload.phase} | {ours.workload.images} | {ours.per_second:.1f} | "
                f"{other.per_second:.1f} | {_times(ours, other)} | {ours.memory:.0f} | "
                f"{other.memory:.0f} | {ours.memory / other.memory:.2f} |"
            )
        peer.print_reward(max(images), rounds)


def _times(ours: Timing, other: Timing) -> str:
    """Return the median and the range over the rounds of the peer's seconds divided by ours."""
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
        _copy_weights(model, self.model)
        self.device = ours.device
        self.model.to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.0)
        self.cross_entropy = losses.LanguageModelCriterion()
        self.self_critical = losses.RewardCriterion()
        self.structure = losses.StructureLosses(options)
        self.rewards, self.ours = rewards, ours
        self.references = all_words_encoded(ours.training.images, ours.vocabulary)
        self._use_frequencies(scratch)

    def check(self) -> None:
        """Check that both decoders give words the same probabilities."""
        batch = self.ours.training.batch([0, 1, 2]).to(self.device)
        self.model.eval()
        labels = self._labels(batch)[0]
        grid, pooled = batch.features[:2]
        with torch.no_grad():
            theirs = self.model(pooled, grid, labels[..., :-1])[:, 0].log_softmax(1)
            model = self.ours.model.eval()
            words = torch.full((len(theirs),), BOS, device=self.device)
            memory = model.encode(batch.features)
            ours, _ = model.next_word(words, memory, model.start(memory, len(words)))
        torch.testing.assert_close(theirs, ours.log_softmax(1), atol=1e-3, rtol=1e-3)

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

    def workload(self, ours: Workload) -> Workload:
        """Return the peer's counterpart of a workload, on the same number of images."""
        batch = self.ours.training.batch(list(range(ours.images))).to(self.device)
        run_once: Callable[[Batch], None] = {
            "xe": self._cross_entropy,
            "rl, greedy": self._self_critical,
            "rl, mean": self._mean_of_others,
            f"beam {BEAM}": self._beam,
        }[ours.phase]
        count = len(batch.tokens_BT) if ours.phase == "xe" else ours.images

        def run() -> Work:
            run_once(batch)
            return Work(count)

        return Workload(ours.phase, "peer", ours.images, ours.trainer, run)

    def _update(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_value_(self.model.parameters(), 0.1)
        self.optimizer.step()

    def _cross_entropy(self, batch: Batch) -> None:
        self.model.train()
        seq, mask = self._labels(batch)
        grid, pooled = batch.features[:2]
        self._update(
            self.cross_entropy(self.model(pooled, grid, seq[..., :-1]), seq[..., 1:], mask[..., 1:])
        )

    def _labels(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return captions between zeros, [I, 5, T + 2], and the mask of the words that count."""
        labels = np.zeros((len(batch.tokens_BT), self.longest + 2), dtype=np.int64)
        masks = np.zeros(labels.shape, dtype=np.float32)
        for row, tokens in enumerate(batch.tokens_BT.tolist()):
            words = [word for word in _theirs(tokens) if word != END]
            labels[row, 1 : len(words) + 1] = words
            masks[row, : len(words) + 2] = 1
        shape = len(batch.image_ids), -1, self.longest + 2
        both = (torch.from_numpy(values).view(shape) for values in (labels, masks))
        labels_I5T, masks_I5T = (tensor.to(self.device) for tensor in both)
        return labels_I5T, masks_I5T

    def _sample(self, batch: Batch, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        grid, pooled = batch.features[:2]
        return self.model(pooled, grid, None, mode="sample", opt=options)

    def _references(self, batch: Batch) -> list[np.ndarray]:
        references = [self.references[image_id] for image_id in batch.image_ids.tolist()]
        longest = max(len(caption) for captions in references for caption in captions)
        return [
            np.array([_theirs(c) + [END] * (longest - len(c)) for c in captions])
            for captions in references
        ]

    def _self_critical(self, batch: Batch) -> None:
        self.model.eval()
        with torch.no_grad():
            greedy, _ = self._sample(batch, sample_method="greedy", beam_size=1)
        self.model.train()
        samples, log_probability = self._sample(
            batch, sample_method="sample", beam_size=1, sample_n=SAMPLES
        )
        with contextlib.redirect_stdout(io.StringIO()):
            reward = self.rewards.get_self_critical_reward(
                greedy, self._references(batch), samples, self.options
            )
        advantage = torch.from_numpy(reward).to(log_probability)
        self._update(self.self_critical(log_probability, samples, advantage))

    def _mean_of_others(self, batch: Batch) -> None:
        self.model.train()
        samples, log_probability = self._sample(
            batch, sample_method="sample", beam_size=1, sample_n=SAMPLES, output_logsoftmax=1
        )
        with contextlib.redirect_stdout(io.StringIO()):
            loss = self.structure(log_probability, samples, self._references(batch))["loss"]
        self._update(loss)

    def _beam(self, batch: Batch) -> None:
        self.model.eval()
        with torch.no_grad():
            self._sample(batch, sample_method="beam_search", beam_size=BEAM, sample_n=1)

    def print_reward(self, images: int, rounds: int) -> None:
        """Print the time of both rewards for the same samples, and their largest difference."""
        batch = self.ours.training.batch(list(range(images)))
        random = torch.Generator().manual_seed(0)
        # Real captions with half of the words and all unknown ones replaced at random.
        samples = batch.tokens_BT.clone()
        other = torch.randint(EOS + 1, self.options.vocab_size, samples.shape, generator=random)
        swapped = (torch.rand(samples.shape, generator=random) < 0.5) & (samples > EOS)
        swapped |= samples == UNK
        samples[swapped] = other[swapped]
        samples[(samples != EOS).all(1), -1] = EOS  # captions that were cut have no end
        theirs = torch.tensor(
            [_theirs(row) + [END] * (len(row) - len(_theirs(row))) for row in samples.tolist()]
        )
        references = self._references(batch)
        reward = MixedReward(self.references, bleu_weight=0)
        seconds: list[tuple[float, float]] = []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            rewards = reward(batch.image_ids, samples, EOS)
            between = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                expected = self.rewards.get_scores(references, theirs, self.options)
            seconds.append((between - started, time.perf_counter() - between))
        difference = np.abs(rewards.numpy() - expected).max()
        ours, other_seconds = (median(s) for s in zip(*seconds[1:], strict=True))
        times = [b / a for a, b in seconds[1:]]
        print(
            f"\nreward of {len(samples)} captions: {1e3 * ours:.1f} ms, peer "
            f"{1e3 * other_seconds:.1f} ms: {median(times):.1f} times "
            f"({min(times):.1f}-{max(times):.1f}); largest difference {difference:.1g} of 10"
        )


def _theirs(tokens: list[int]) -> list[int]:
    """Convert our token ids to the peer's numbering, with the end but without padding.

    Unknown words become word 1: this changes no speed, and neither decoder writes them.
    """
    return [1 if token == UNK else token - EOS for token in tokens if token != PAD]


def _copy_weights(ours: UpDown, peer: Any) -> None:
    """Copy the weights of our Up-Down to the peer's, so that both compute the same."""
    first, second, core = ours.first_cell, ours.second_cell, peer.core
    inputs = [ours.written_gates.weight, ours.image_gates.weight, ours.word_gates.weight]
    gates = first.gates_size
    words = ours.word_embedding.weight.detach()[
        [BOS, *range(EOS + 1, ours.word_embedding.num_embeddings)]
    ]
    # The peer's word vectors pass a ReLU. A constant makes them positive; the bias subtracts it.
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
