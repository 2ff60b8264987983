"""Bootstrap confidence intervals over images for corpus scores (Efron, 1979, percentile method).

BLEU and METEOR of a corpus are not means over images, so their statistics are resampled and the
corpus score is computed from the sums. CIDEr, ROUGE-L and SPICE are means. CIDEr keeps the document
frequencies of all references; its interval leaves out their uncertainty.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PerImage = Mapping[str, Mapping[int, float]]
Statistics = Mapping[str, NDArray[Any]]

_BLOCK = 100  # resamples at a time, so that 40,000 images need 32 MB


def intervals(
    per_image: PerImage,
    statistics: Statistics,
    resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Return the lower and upper bound of each corpus score; none for 0 resamples.

    Args:
        per_image: the scores of N images by metric (see `evaluation.toolkit.ToolkitScores`).
        statistics: those of BLEU [N, 10] and METEOR [N, 23], if `per_image` has these metrics.
        resamples: of the images, with replacement.
        seed: of the random numbers.
        confidence: the share of resampled scores between the bounds.

    A score that is NaN has NaN bounds.
    """
    values = resampled(per_image, statistics, resamples, seed)
    return {name: interval(scores_R, confidence) for name, scores_R in values.items()}


def resampled(
    per_image: PerImage, statistics: Statistics, resamples: int, seed: int
) -> dict[str, Floats]:
    """Return each corpus score [R] of `resamples` resamples; none for 0 (see `intervals`).

    The same seed and number of images give the same resamples, so that the differences between two
    models are paired.
    """
    images = len(next(iter(per_image.values())))
    blocks = [resample(per_image, statistics, counts) for counts in _draws(images, resamples, seed)]
    names = per_image if blocks else ()
    return {name: np.concatenate([block[name] for block in blocks]) for name in names}


def interval(values: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """Return the bounds of the middle `confidence` of resampled values [R]."""
    low, high = np.percentile(values, [50 * (1 - confidence), 50 * (1 + confidence)])
    return float(low), float(high)


def resample(
    per_image: PerImage, statistics: Statistics, counts: NDArray[np.int64]
) -> dict[str, Floats]:
    """Return the corpus scores [R] of resamples that contain image i `counts[r, i]` times.

    `counts` is int64 [R, N]; a row of ones gives the corpus scores themselves.
    """
    values = {}
    if "Bleu" in statistics:
        columns = bleu(counts @ statistics["Bleu"]).T
        values = {f"Bleu_{n}": column for n, column in enumerate(columns, 1)}
    for name, scores in per_image.items():
        if name == "METEOR":
            values[name] = meteor(counts @ countable(statistics[name]))
        elif name not in values:
            values[name] = counts @ np.array(list(scores.values())) / counts.sum(axis=1)
    return values


def bleu(sums: NDArray[np.int64] | Floats) -> Floats:
    """Return BLEU-1 to BLEU-4 [..., 4] from summed statistics [..., 10].

    `evaluation.toolkit.ToolkitScores` describes the statistics. The small constants are those of
    the toolkit's `BleuScorer`.
    """
    length, reference, guesses, matches = np.split(sums, [1, 2, 6], axis=-1)
    precision = np.cumprod((matches + 1e-15) / (guesses + 1e-9), axis=-1)
    ratio = (length + 1e-15) / (reference + 1e-9)
    brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
    return precision ** (1 / np.arange(1, 5)) * brevity


def countable(statistics: Floats) -> Floats:
    """Return METEOR's statistics [N, 23] in the form that its jar sums over a corpus.

    A caption that matches its reference word for word is not fragmented, so its single chunk is not
    counted.
    """
    statistics = statistics.copy()
    statistics[_identical(statistics), 20] = 0
    return statistics


def meteor(sums: Floats) -> Floats:
    """Return METEOR 1.5 [...] from summed statistics [..., 23], with its parameters for English.

    Denkowski and Lavie, "Meteor Universal" (2014). The statistics count words of the caption and of
    the reference, in this order: all words, function words; for each of the modules exact, stem,
    synonym and paraphrase the matched content words, then the matched function words; the chunks
    (one number for both); all matched words.
    """
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    weights = np.array([1.0, 0.6, 0.8, 0.6])
    lengths, functions = sums[..., 0:2], sums[..., 2:4]
    modules = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # module, kind, side
    matched = np.einsum("m,k,...mks->...s", weights, [delta, 1 - delta], modules)
    weighted_length = delta * (lengths - functions) + (1 - delta) * functions
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(matched / weighted_length, -1, 0)
        f_mean = 1 / ((1 - alpha) / precision + alpha / recall)
        fragmentation = sums[..., 20] / (sums[..., 21:23].sum(axis=-1) / 2)
    fragmentation = np.where(_identical(sums), 0, fragmentation)
    return np.nan_to_num(f_mean * (1 - gamma * fragmentation**beta))


def _identical(statistics: Floats) -> NDArray[np.bool_]:
    all_matched = (statistics[..., 0:2] == statistics[..., 21:23]).all(axis=-1)
    return all_matched & (statistics[..., 20] == 1)


def _draws(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    chances = np.full(images, 1 / images)
    for start in range(0, resamples, _BLOCK):
        yield generator.multinomial(images, chances, size=min(_BLOCK, resamples - start))
