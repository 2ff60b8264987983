"""Options of caption generation; the docstrings of the fields are their help texts."""

from dataclasses import dataclass

from features.errors import require
from features.views import VIEWS

# After cross-entropy, 0.8 to 1 gives 0.03 CIDEr more than 0; after REINFORCE, no more.
LENGTH_PENALTY = 0.8
_RERANKED = 40  # candidates


@dataclass(frozen=True)
class GenerateOptions:
    """How captions are generated."""

    # A run that can rerank does so unless --beam, --sample, --consensus or --groups is given.
    beam: int | None = None
    """Width of the beam search; 1 is greedy. (default: 5; 40 with --rerank)"""
    length_penalty: float = LENGTH_PENALTY
    """Rank captions by log-probability / length ** X; 0 favours short captions, 1 long ones."""
    sample: bool = False
    """Sample from the model's distribution instead of searching."""
    temperature: float = 1.0
    """With --sample: softmax temperature; above 1 flattens the distribution."""
    top_k: int = 0
    """With --sample: sample only among the N most probable words; 0 allows all."""
    top_p: float = 1.0
    """With --sample: sample only among the fewest words whose probabilities add up to this
    (nucleus sampling)."""
    samples: int = 0
    """With --sample: number of samples per image, of which --captions are written; 0 draws
    --captions."""
    captions: int = 1
    """Number of different captions of each image, the best first."""
    groups: int = 1
    """Number of groups of a diverse beam search; each avoids the words of the groups before it."""
    diversity: float = 0.5
    """With --groups: log-probability subtracted from a word that an earlier group chose at the same
    position."""
    consensus: bool = False
    """Choose the candidate with the highest expected CIDEr-D against the other candidates."""
    rerank: bool = False
    """Rerank the candidates with the training captions; needs the run's work directory, or a
    captioner exported with --rerank."""
    repeat_phrases: bool = False
    """Allow immediate repetitions such as "a hat and a hat"."""
    no_repeat_ngram: int = 0
    """Never repeat a sequence of N words within a caption; 0 allows repetition."""
    no_bad_endings: bool = False
    """Never end a caption in an article, a preposition or a conjunction."""
    views: int = 1
    """Number of views of each image whose word probabilities are averaged."""
    max_length: int = 0
    """Largest number of words in a caption; 0 uses the limit of the training."""

    @property
    def width(self) -> int:
        """Width of the beam search."""
        if self.beam is not None:
            return self.beam
        return _RERANKED if self.rerank else 5

    def __post_init__(self) -> None:
        require(self.width > 0, "--beam must be positive")
        require(self.length_penalty >= 0, "--length-penalty must not be negative")
        require(self.temperature > 0, "--temperature must be positive")
        require(self.top_k >= 0, "--top-k must not be negative")
        require(0 < self.top_p <= 1, "--top-p must be above 0 and at most 1")
        drawn = (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0)
        require(self.sample or not drawn, "--temperature, --top-k and --top-p need --sample")
        require(self.sample or self.samples == 0, "--samples needs --sample")
        require(self.samples >= 0, "--samples must not be negative")
        require(self.captions > 0, "--captions must be positive")
        if self.sample:
            require(
                self.samples == 0 or self.captions <= self.samples,
                f"--captions {self.captions} needs --samples of at least {self.captions}, found "
                f"{self.samples}",
            )
            require(
                self.groups == 1, "--groups is for the beam search, so leave it out with --sample"
            )
            require(self.beam is None, "--beam is for the search; with --sample, use --samples")
        else:
            reranked = self.beam is None and self.captions <= _RERANKED
            rerank = f"--rerank, which searches with {_RERANKED}, or " if reranked else ""
            require(
                self.captions <= self.width,
                f"--captions {self.captions} needs {rerank}a --beam of at least {self.captions}, "
                f"found {self.width}",
            )
        require(
            self.groups > 0 and self.width % self.groups == 0,
            f"--groups must divide --beam {self.width}, found {self.groups}",
        )
        require(self.diversity >= 0, "--diversity must not be negative")
        asked = self.diversity != GenerateOptions.diversity
        require(self.groups > 1 or not asked, "--diversity needs --groups of at least 2")
        require(
            not (self.consensus and self.rerank),
            "--rerank includes --consensus; give only --rerank",
        )
        if self.consensus or self.rerank:
            candidates = (self.samples or self.captions) if self.sample else self.width
            name = "consensus" if self.consensus else "rerank"
            require(candidates > 2, f"--{name} needs --beam or --samples of at least 3")
        require(
            self.no_repeat_ngram == 0 or self.no_repeat_ngram > 1,
            f"--no-repeat-ngram must be 0, or 2 or more, found {self.no_repeat_ngram}",
        )
        require(
            0 < self.views <= len(VIEWS),
            f"--views must be from 1 to {len(VIEWS)}, found {self.views}",
        )
        require(self.max_length >= 0, "--max-length must not be negative")
