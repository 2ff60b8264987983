"""The files of an exported captioner, written from a run or copied from another captioner."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from decoder.captioning.captioner import Captioner
from decoder.data.readers import MOST_SAMPLED, SplitReader
from decoder.ranking.consensus import count_frequencies, save_frequencies
from decoder.ranking.embedding_file import load_or_train, provenance, save_compact
from decoder.ranking.novelty import Novelty
from decoder.ranking.reranker import fit_expectation
from decoder.runs import checkpoints
from features.errors import UserError
from features.store import fingerprint
from pipeline.caption_database import load, open_features
from pipeline.captions import CaptionTable
from pipeline.vocabulary import Vocabulary
from pipeline.work import RunFolder

_MAX_FLOAT16 = torch.finfo(torch.float16).max


def write_weights(weights: Path, file: Path, int8: bool) -> None:
    """Write a run's weights in 8 or 16 bits.

    Raises:
        UserError: a weight does not fit into 16 bits.
    """
    tensors = checkpoints.dequantize(checkpoints.load(weights, torch.device("cpu"))[0])
    halves = _to_float16(tensors, weights)  # also checks the weights that become 8 bits
    checkpoints.save(file, checkpoints.quantize(tensors) if int8 else halves)


def write_frequencies(
    run: RunFolder, vocabulary: Vocabulary, table: CaptionTable | None, file: Path
) -> None:
    """Write the n-gram frequencies for --consensus, if the run is a captioner or has captions."""
    if run.frequencies.exists():
        shutil.copyfile(run.frequencies, file)
    elif table is not None:
        save_frequencies(count_frequencies(table, vocabulary), file)


def write_expectation(run: RunFolder, captioner: Captioner, file: Path) -> None:
    """Write the regression for --rerank.

    Raises:
        UserError: the captions or features of the run's work directory are missing, or are not
            those that it was trained on.
    """
    if run.expectation.exists():  # the run is a captioner
        shutil.copyfile(run.expectation, file)
        return
    features, vocabulary = captioner.config["features"], captioner.vocabulary
    frequencies = count_frequencies(load(run.work.captions), vocabulary)
    expectation = fit_expectation(run, vocabulary, features, frequencies)
    expectation.reduced().save(file, provenance(vocabulary, fingerprint(features)))


def write_novelty(
    run: RunFolder, captioner: Captioner, table: CaptionTable | None, file: Path
) -> None:
    """Write what recognises unfamiliar pictures, if the run is a captioner or has its features.

    Raises:
        UserError: the features are damaged, or are not those that the run was trained on.
    """
    if run.novelty.exists():
        shutil.copyfile(run.novelty, file)
    elif table is not None and run.work.features.exists():
        features = captioner.config["features"]
        store = open_features(run.work)
        store.expect(fingerprint(features), f"the run {run.path}", features)
        reader = SplitReader(store, table, "train", grid=False)
        fitted = Novelty.fit(reader.pooled(reader.sample(MOST_SAMPLED)))
        fitted.save(file, provenance(captioner.vocabulary, fingerprint(features)))


def write_embedding(run: RunFolder, captioner: Captioner, file: Path) -> None:
    """Write the joint embedding for decoder.search in 8 bits; train it first if necessary.

    Raises:
        UserError: there are no training captions to train it on.
    """
    if run.embedding.exists():  # the run is a captioner
        shutil.copyfile(run.embedding, file)
        return
    features = fingerprint(captioner.config["features"])
    save_compact(load_or_train(run, run.work, captioner.vocabulary, features), file)


def _to_float16(tensors: Mapping[str, torch.Tensor], file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file as float16.

    Raises:
        UserError: a value is too large.
    """
    large = [name for name, tensor in tensors.items() if tensor.abs().max() > _MAX_FLOAT16]
    if large:
        raise UserError(
            f"expected weights of at most {_MAX_FLOAT16:.0f}, found larger ones in {large[0]} of "
            f"{file}, which do not fit into 16 bits; train again"
        )
    return {name: tensor.half() for name, tensor in sorted(tensors.items())}
