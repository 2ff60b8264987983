"""The official COCO caption toolkit (the package pycocoevalcap) behind one function.

The toolkit's own classes compute BLEU, ROUGE-L and CIDEr. Its tokenizer, METEOR and SPICE are Java
programs. We run them with the toolkit's files, flags and protocol, but not through its wrappers:
these hang when Java writes to its standard error, fail on a decimal comma or a line break in a
caption, and write into the package's folder.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from evaluation import java, spice
from features.errors import UserError, first_few

Captions = Mapping[int, Sequence[str]]  # the captions of each image id

METRICS = ("Bleu", "METEOR", "ROUGE_L", "CIDEr")
# Names of scores in reports, where they differ from those in the files.
LABELS = {f"Bleu_{n}": f"BLEU-{n}" for n in range(1, 5)} | {"ROUGE_L": "ROUGE-L"}
TIME_LIMIT = 900.0  # seconds


@dataclass(frozen=True)
class ToolkitScores:
    """Scores on the toolkit's scale: 0 to 1, for CIDEr 0 to 10.

    Attributes:
        corpus: by name: Bleu_1 to Bleu_4, METEOR and so on. CIDEr is NaN for a single image.
        per_image: by the same names and by image id.
        statistics: sufficient statistics of BLEU and METEOR, a row for each image in the order of
            `per_image`; their sums give the corpus scores. "Bleu" int64 [N, 10]: the length of the
            caption, the length of the reference closest to it, the number of n-grams for n from 1
            to 4, and of matched n-grams. "METEOR" float64 [N, 23]: what its jar calls statistics.
        tokens: the tokenized candidate by image id.
    """

    corpus: dict[str, float]
    per_image: dict[str, dict[int, float]]
    statistics: dict[str, NDArray[Any]]
    tokens: dict[int, str]


def versions() -> dict[str, str]:
    """Return the versions of the toolkit and of Java, on which the scores depend."""
    return {
        "pycocoevalcap": version("pycocoevalcap"),
        "java": java.version(java.find_java()),
    }


def tokenize(captions: Captions, time_limit: float = TIME_LIMIT) -> dict[int, list[str]]:
    """Tokenize captions with the toolkit's PTB tokenizer: lower case, most punctuation removed.

    Raises:
        UserError: there is no Java, or the tokenizer failed or took more than `time_limit` seconds.
    """
    return tokenize_together([captions], time_limit)[0]


def tokenize_together(
    several: Sequence[Captions], time_limit: float = TIME_LIMIT
) -> list[dict[int, list[str]]]:
    """Tokenize several sets of captions and start Java only once; otherwise like `tokenize`."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    lines = [
        one_line(caption)
        for captions in several
        for texts in captions.values()
        for caption in texts
    ]
    with tempfile.TemporaryDirectory(prefix="captions-") as temporary:
        file = Path(temporary, "captions.txt")
        # The full stop added at the end keeps the lines of empty captions before it.
        file.write_text("\n".join([*lines, "."]), encoding="utf-8", errors="replace")
        command = ["-cp", ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR]
        command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        tokenized = java.run(
            [*command, file],
            Path(ptbtokenizer.__file__).parent,
            lambda _, out: out.read().rstrip("\n").split("\n"),
            time_limit,
            "the PTB tokenizer",
        )
    if len(tokenized) != len(lines) + 1:
        raise UserError(
            f"the PTB tokenizer returned {len(tokenized) - 1} lines for {len(lines)} captions: it "
            "takes some character in a caption for a line break; remove unusual characters"
        )
    dropped = frozenset(ptbtokenizer.PUNCTUATIONS)
    words = (
        " ".join(w for w in line.rstrip().split(" ") if w not in dropped) for line in tokenized
    )
    return [
        {image: [next(words) for _ in texts] for image, texts in captions.items()}
        for captions in several
    ]


def one_line(caption: str) -> str:
    """Return `caption` without line breaks of any kind, at which the tokenizer would split it."""
    return " ".join(caption.splitlines())


def score(
    references: Captions,
    candidates: Mapping[int, str],
    metrics: Sequence[str] = METRICS,
    time_limit: float = TIME_LIMIT,
) -> ToolkitScores:
    """Score one caption for each image against the references of the same images.

    The numbers equal those of the toolkit. CIDEr is CIDEr-D, with document frequencies from
    `references`: a subset of the images gives other scores, and a single image none.

    Args:
        references: the reference captions by image id, at least one for each image.
        candidates: the caption to score, by the same image ids.
        metrics: any of Bleu, METEOR, ROUGE_L, CIDEr and SPICE.
        time_limit: seconds that each Java program may take.

    Raises:
        UserError: the ids differ, an image has no reference, no reference has a word, there is no
            Java, or a Java program failed or took too long.
    """
    _check_ids(references, candidates)
    written = {image: [text] for image, text in candidates.items()}
    tokens, reference_tokens = tokenize_together([written, references], time_limit)
    return score_tokens(
        reference_tokens,
        {image: texts[0] for image, texts in tokens.items()},
        metrics,
        time_limit,
    )


def score_tokens(
    references: Captions,
    candidates: Mapping[int, str],
    metrics: Sequence[str] = METRICS,
    time_limit: float = TIME_LIMIT,
) -> ToolkitScores:
    """Score captions that are already tokenized; otherwise like `score`."""
    check_captions(references, candidates)
    scores = ToolkitScores({}, {}, {}, {image: candidates[image] for image in references})
    for metric in metrics:
        _SCORERS[metric](references, candidates, time_limit, scores)
    return scores


def check_captions(references: Captions, candidates: Mapping[int, str]) -> None:
    """Raise UserError if the image ids differ, or no reference has a word."""
    _check_ids(references, candidates)
    if not any(caption for captions in references.values() for caption in captions):
        raise UserError(
            "no reference caption has a word; expected reference captions to score against"
        )


def _check_ids(references: Captions, candidates: Mapping[int, str]) -> None:
    if not candidates:
        raise UserError("there is no caption to score")
    for problem, images in {
        "have a caption but no reference": [i for i in candidates if not references.get(i)],
        "have references but no caption": [i for i in references if i not in candidates],
    }.items():
        if images:
            raise UserError(f"{len(images)} images {problem}: {first_few(images)}")


def _bleu(
    references: Captions, candidates: Mapping[int, str], _: float, scores: ToolkitScores
) -> None:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for image, captions in references.items():
        scorer += (candidates[image], captions)
    # The wrapper around this class does the same, and prints.
    corpus, per_image = scorer.compute_score(option="closest", verbose=0)
    for n in range(4):
        _add(scores, f"Bleu_{n + 1}", corpus[n], per_image[n])
    scores.statistics["Bleu"] = np.array(
        [
            (
                (length := counts["testlen"]),
                min((abs(other - length), other) for other in counts["reflen"])[1],
                *counts["guess"],
                *counts["correct"],
            )
            for counts in scorer.ctest
        ]
    )


def _meteor(
    references: Captions, candidates: Mapping[int, str], time_limit: float, scores: ToolkitScores
) -> None:
    from pycocoevalcap.meteor import meteor

    questions = [
        " ||| ".join(
            ["SCORE", *(text.replace("|||", "") for text in (*captions, candidates[image]))]
        )
        for image, captions in references.items()
    ]

    def talk(stdin: IO[str], stdout: IO[str]) -> tuple[list[str], list[str]]:
        def ask(question: str, answers: int) -> list[str]:
            stdin.write(f"{question}\n")
            stdin.flush()
            lines = [stdout.readline() for _ in range(answers)]
            if not lines[-1]:
                raise EOFError
            return [line.strip() for line in lines]

        statistics = [ask(question, 1)[0] for question in questions]
        return statistics, ask(" ||| ".join(["EVAL", *statistics]), len(statistics) + 1)

    statistics, values = java.run(
        ["-Xmx2G", "-jar", meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"],
        Path(meteor.__file__).parent,
        talk,
        time_limit,
        "METEOR",
    )
    *per_image, corpus = map(float, values)
    _add(scores, "METEOR", corpus, per_image)
    scores.statistics["METEOR"] = np.array([line.split() for line in statistics], dtype=np.float64)


def _rouge(
    references: Captions, candidates: Mapping[int, str], _: float, scores: ToolkitScores
) -> None:
    from pycocoevalcap.rouge.rouge import Rouge

    _add(scores, "ROUGE_L", *Rouge().compute_score(references, _lists(references, candidates)))


def _cider(
    references: Captions, candidates: Mapping[int, str], _: float, scores: ToolkitScores
) -> None:
    from pycocoevalcap.cider.cider import Cider

    if len(references) == 1:  # every n-gram is in every image, so all weights are log 1 = 0
        _add(scores, "CIDEr", np.nan, [np.nan])
    else:
        _add(scores, "CIDEr", *Cider().compute_score(references, _lists(references, candidates)))


def _spice(
    references: Captions, candidates: Mapping[int, str], time_limit: float, scores: ToolkitScores
) -> None:
    per_image = spice.score(references, candidates, time_limit)
    _add(scores, "SPICE", float(np.mean(per_image)), per_image)


_SCORERS: dict[str, Callable[[Captions, Mapping[int, str], float, ToolkitScores], None]] = {
    "Bleu": _bleu,
    "METEOR": _meteor,
    "ROUGE_L": _rouge,
    "CIDEr": _cider,
    "SPICE": _spice,
}


def _lists(references: Captions, candidates: Mapping[int, str]) -> dict[int, list[str]]:
    return {image: [candidates[image]] for image in references}


def _add(scores: ToolkitScores, name: str, corpus: float, per_image: Sequence[float]) -> None:
    scores.corpus[name] = float(corpus)
    scores.per_image[name] = dict(zip(scores.tokens, map(float, per_image), strict=True))
