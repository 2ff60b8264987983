"""How captions are chosen; the docstrings of the fields are their help texts."""

from dataclasses import dataclass

from features.errors import require
from features.views import VIEWS

# After cross-entropy, 0.8 to 1 is worth 0.03 CIDEr against 0; after REINFORCE, which has taught
# lengths, it changes nothing. See EXPERIMENTS.md.
LENGTH_PENALTY = 0.8


@dataclass(frozen=True)
class GenerateOptions:
    """How captions are chosen."""

    beam: int | None = None
    """Width of the beam search; 1 is greedy. By default 5, and 20 with --rerank. A captioner that
    can rerank does so unless --beam, --sample, --consensus or --groups are given."""
    length_penalty: float = LENGTH_PENALTY
    """Captions are ranked by log-probability / length ** this; with 0 short ones win, with 1 long
    ones do."""
    sample: bool = False
    """Draw from the model's distribution instead of searching."""
    temperature: float = 1.0
    """With --sample: above 1 flattens the distribution, below 1 sharpens it."""
    top_k: int = 0
    """With --sample: draw among the k most probable words only; 0 among all."""
    top_p: float = 1.0
    """With --sample: draw among the fewest words that hold this much probability (nucleus)."""
    samples: int = 0
    """With --sample: captions drawn for each image, of which --captions are written; 0 draws just
    those."""
    captions: int = 1
    """Captions of each image, all different, the best first; fewer if fewer are found."""
    groups: int = 1
    """Divide the beam into this many groups, of which each avoids the words of those before
    (diverse beam search); with --captions, the best of each group come first."""
    diversity: float = 0.5
    """With --groups: what a word costs, in log-probability, each time an earlier group takes it at
    the same place."""
    consensus: bool = False
    """Choose, among the captions found, the one with the highest expected CIDEr-D against the
    others, rather than the most probable."""
    rerank: bool = False
    """Choose, among the captions found, the one that agrees best with the others, with what people
    would write, as far as the training pictures and their captions tell, and with the picture, in
    the joint embedding of decoder.search; for a run in its work directory, where that is learnt at
    the first time, or a captioner of decoder.export --rerank."""
    repeat_phrases: bool = False
    """Let a phrase be said twice on end, or with "and" between, as in "a hat and a hat"."""
    no_repeat_ngram: int = 0
    """Never write so many words in a row twice in a caption, such as 3; 0 allows it."""
    no_bad_endings: bool = False
    """Never end a caption in an article, a preposition, a conjunction or the like."""
    views: int = 1
    """Views of each image to look at, the first ones of the store; each gives the words'
    probabilities, of which the mean is taken."""
    max_length: int = 0
    """Most words of a caption; 0 takes the longest that the run was trained on."""

    @property
    def width(self) -> int:
        """Of the beam search."""
        if self.beam is not None:
            return self.beam
        return 20 if self.rerank else 5

    def __post_init__(self) -> None:
        require(self.width > 0, "--beam must be positive")
        require(self.length_penalty >= 0, "--length-penalty must not be negative")
        require(self.temperature > 0, "--temperature must be positive")
        require(self.top_k >= 0, "--top-k must not be negative")
        require(0 < self.top_p <= 1, "--top-p must be in (0, 1]")
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
            require(self.groups == 1, "--groups is for the beam search, not for --sample")
            require(self.beam is None, "--beam is for the search, not for --sample; see --samples")
        else:
            require(
                self.captions <= self.width,
                f"--captions {self.captions} needs a --beam of at least {self.captions}, found "
                f"{self.width}",
            )
        require(
            self.groups > 0 and self.width % self.groups == 0,
            f"--groups must divide --beam {self.width}, found {self.groups}",
        )
        require(self.diversity >= 0, "--diversity must not be negative")
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
