"""Consensus choice: the caption that agrees best with the others found for the same image.

The most probable caption is the likeliest to be exactly right, which none is. What scores well is a
caption that is much like whatever is probable: the one with the highest expected score if the truth
is drawn from the model (minimum Bayes risk, Kumar & Byrne 2004), here by CIDEr-D.

Shape suffixes: I images, K candidates of each, T tokens.
"""

from pathlib import Path

import torch
from torch import Tensor

from decoder.cider import CiderD, Frequencies, References, all_words_encoded, whole_captions
from decoder.generation.generate import Generated
from decoder.runs import checkpoints
from features.errors import UserError
from pipeline import captions as tables
from pipeline.vocabulary import EOS, Vocabulary
from pipeline.work import RunFolder

# What the log-probability of beams is divided by: they are the top of the distribution only, and
# the first would outvote the others. On Flickr8k, 20 beams of a small Up-Down: CIDEr 0.399 with 3,
# 0.390 with 1, 0.387 if all count alike, 0.383 for the first of 5 beams.
FLATTENED = 3.0


def expected_cider(found: Generated, weight_IK: Tensor, frequencies: Frequencies) -> Tensor:
    """Return each candidate's mean CIDEr-D against the image's other candidates.

    Args:
        found: candidates, each ending in EOS (or cut off); the same one may come several times.
        weight_IK: of each candidate in the mean, not negative.
        frequencies: in how many training images each n-gram occurs.

    Returns:
        float64 [I, K], from 0 to 10; 0 where the others have no weight.
    """
    images, count = weight_IK.shape
    candidates = [whole_captions(tokens_KT) for tokens_KT in found.tokens_IKT.cpu()]
    references = References(dict(enumerate(candidates)), frequencies)
    image_ids = torch.arange(images, device=weight_IK.device)
    likeness, _ = CiderD(references).likeness(image_ids, found.tokens_IKT.flatten(0, 1), EOS)
    likeness_IKK = likeness.view(images, count, count)
    # Its likeness to itself is no agreement.
    itself = torch.eye(count, dtype=torch.bool, device=weight_IK.device)
    weight_IKK = weight_IK.double()[:, None].masked_fill(itself, 0)
    total_IK = weight_IKK.sum(2)
    return 10 * (likeness_IKK * weight_IKK).sum(2) / total_IK.where(total_IK > 0, 1)


def by_consensus(found: Generated, frequencies: Frequencies, drawn: bool) -> Generated:
    """Return the candidates, those that agree best with the others first.

    Samples (`drawn`) count alike, for probable ones were drawn more often; beams by a power of
    their probability.
    """
    return found.best_first(own_agreement(found, frequencies, drawn))


def own_agreement(found: Generated, frequencies: Frequencies, drawn: bool) -> Tensor:
    """Return how well each candidate agrees with the image's others, float64 [I, K], 0 to 10."""
    exists_IK = found.log_probability_IK > -torch.inf
    weight_IK = (found.log_probability_IK.double() / FLATTENED).softmax(1)
    return expected_cider(found, exists_IK.double() if drawn else weight_IK, frequencies)


def frequencies_of(run: RunFolder, vocabulary: Vocabulary) -> Frequencies:
    """Return the document frequencies of the training captions.

    They are read from the run's folder if it holds them, as that of a captioner does that went out
    without its captions; else they are counted in its work directory's captions.json.

    Raises:
        UserError: neither is there, or it is broken.
    """
    file = run.frequencies
    if file.exists():
        return load_frequencies(file)
    table = run.work.captions
    if not table.exists():
        raise UserError(
            f"--consensus weighs words by how rare they are in the training captions, but neither "
            f"{file} nor {table} is there; use the run where it was trained, or choose by "
            "probability, without --consensus"
        )
    return count_frequencies(tables.load(table), vocabulary)


def count_frequencies(table: tables.CaptionTable, vocabulary: Vocabulary) -> Frequencies:
    """Count the n-grams of the training captions of a table.

    Raises:
        UserError: it has none.
    """
    images = [image for image in table.split("train") if image.captions]
    if not images:
        raise UserError("--consensus needs training captions, and no training image has one")
    return References(all_words_encoded(images, vocabulary)).frequencies


def save_frequencies(frequencies: Frequencies, path: Path) -> None:
    """Write document frequencies to `path`, atomically: 12 bytes for each n-gram listed."""
    tensors = {"ngram": frequencies.key_U, "images": frequencies.images_U.int()}
    checkpoints.save(path, tensors, {"images": frequencies.images})


def load_frequencies(path: Path) -> Frequencies:
    """Read document frequencies.

    Raises:
        UserError: the file is missing or broken.
    """
    tensors, header = checkpoints.load(path, torch.device("cpu"))
    try:
        images, key_U, images_U = int(header["images"]), tensors["ngram"], tensors["images"].long()
        if key_U.dtype != torch.int64 or key_U.ndim != 1 or key_U.shape != images_U.shape:
            raise ValueError("expected a list of whole numbers and a count for each")
        if not (key_U[1:] > key_U[:-1]).all() or not ((images_U > 1) & (images_U <= images)).all():
            raise ValueError(f"expected ascending n-grams, each of 2 to {images} images")
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not hold document frequencies ({error!r}); copy it again from where it "
            "was made"
        ) from error
    return Frequencies(key_U, images_U, images)
