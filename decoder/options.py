"""The options of the decoder's stages; the docstrings of the fields are their help texts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from features.errors import UserError
from features.views import VIEWS

# After cross-entropy, 0.8 to 1 is worth 0.03 CIDEr against 0; after REINFORCE, which has taught
# lengths, it changes nothing. See EXPERIMENTS.md.
LENGTH_PENALTY = 0.8


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


@dataclass(frozen=True)
class ModelOptions:
    """What the decoder is made of."""

    model: Literal["show_tell", "att2in", "updown"] = "updown"
    """Show and Tell sees the pooled feature only; Att2in and Up-Down attend to the grid."""
    cell: Literal["lstm", "gru"] = "lstm"
    """The recurrent cell."""
    hidden: int = 256
    """Size of the recurrent state, of the word vectors and of the embedded image features."""
    attention: int = 64
    """Size of the space in which a region and the state are compared."""
    dropout: float = 0.2
    """Share of the word vectors, embedded image features and outputs dropped in training."""

    def __post_init__(self) -> None:
        _require(min(self.hidden, self.attention) > 0, "--hidden and --attention must be positive")
        _require(0 <= self.dropout < 1, f"--dropout must be in [0, 1), found {self.dropout}")


@dataclass(frozen=True)
class CrossEntropyOptions:
    """Phase 1: teacher forcing with cross-entropy."""

    epochs: int = 4
    """Passes over the training images; each pass sees every caption once."""
    learning_rate: float = 3e-3
    """Adam's learning rate after the warm-up; it then falls linearly to 0."""
    label_smoothing: float = 0.0
    """Share of the target's probability spread over all words."""
    scheduled_sampling: float = 0.0
    """Probability that an input word is the model's own; rises from 0 to this over the phase."""
    patience: int = 0
    """Stop after this many epochs without a better validation CIDEr; 0 never stops early."""

    def __post_init__(self) -> None:
        _check_phase("xe", self.epochs, self.learning_rate)
        _require(0 <= self.label_smoothing < 1, "--xe.label-smoothing must be in [0, 1)")
        _require(0 <= self.scheduled_sampling <= 1, "--xe.scheduled-sampling must be in [0, 1]")
        _require(self.patience >= 0, "--xe.patience must not be negative")


@dataclass(frozen=True)
class ReinforceOptions:
    """Phase 2: REINFORCE on the CIDEr-D of the model's own samples."""

    epochs: int = 4
    """Passes over the training images; 0 leaves the phase out."""
    learning_rate: float = 4e-4
    """Adam's learning rate after the warm-up; it then falls linearly to 0."""
    samples: int = 5
    """Captions sampled for each image."""
    baseline: Literal["greedy", "mean"] = "mean"
    """What a sample must beat: the greedy caption (self-critical), or its siblings' mean."""
    temperature: float = 0.7
    """Of the policy that is sampled and taught. The model's own distribution (temperature
    1) is so flat, the more so after label smoothing, that its samples say little about the captions
    a search would find."""
    bleu_weight: float = 0.0
    """Share of BLEU-4 in the reward; the rest is CIDEr-D."""
    patience: int = 0
    """Stop after this many epochs without a better validation CIDEr; 0 never stops early."""

    def __post_init__(self) -> None:
        _check_phase("rl", self.epochs, self.learning_rate)
        _require(self.samples > 0, "--rl.samples must be positive")
        if self.baseline == "mean":
            _require(self.samples > 1, "--rl.baseline mean needs --rl.samples of at least 2")
        _require(self.temperature > 0, "--rl.temperature must be positive")
        _require(0 <= self.bleu_weight <= 1, "--rl.bleu-weight must be in [0, 1]")
        _require(self.patience >= 0, "--rl.patience must not be negative")


def _check_phase(name: str, epochs: int, learning_rate: float) -> None:
    _require(epochs >= 0, f"--{name}.epochs must not be negative, found {epochs}")
    _require(learning_rate > 0, f"--{name}.learning-rate must be positive, found {learning_rate}")


@dataclass(frozen=True)
class TrainOptions:
    """Train a decoder from a work directory's features and captions."""

    work: Path
    """The work directory that pipeline.prepare and pipeline.extract made."""
    run: str
    """Name of the run; its files are written to WORK/runs/NAME."""
    decoder: tyro.conf.OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    xe: CrossEntropyOptions = field(default_factory=CrossEntropyOptions)
    rl: ReinforceOptions = field(default_factory=ReinforceOptions)
    batch_size: int = 20
    """Images in a batch; each comes with all its captions."""
    warmup: float = 0.05
    """Share of a phase's steps over which the learning rate rises from 0."""
    initial: Literal["data", "random"] = "data"
    """First weights of the image embeddings and of the output's bias: fitted to the training images
    and their words (see decoder/training/initialisation.py), or random."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    average: float = 0.999
    """Decay of the running average of the weights, which is what is validated; 0 keeps none."""
    beam: int = 5
    """Beam of the validation captions that choose the best weights."""
    length_penalty: float = LENGTH_PENALTY
    """By which those captions are ranked; see decoder.caption."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products in training: bfloat16 gives other numbers, and is faster on GPUs and on
    processors that have instructions for it; on others it is many times slower."""
    compile: bool = False
    """Fuse the small operations of a step by torch's compiler, which changes last digits. Meant for
    GPUs, not measured on one yet, no faster on a CPU; compiling takes some 15 s at first. Needs a
    C++ compiler, and on a GPU Triton."""
    seed: int = 1
    """Fixes the initial weights, the order of the images, dropout and the samples."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    save_minutes: float = 5.0
    """Save the state for --resume this often, besides after every epoch and when terminated."""
    like: Path | None = None
    """Repeat the run in this folder: its options, but for those given besides. --work is that run's
    unless given; --run is the new run's name."""
    dry_run: bool = False
    """Measure a few steps and say how long and how large the run will be; train nothing."""
    resume: bool = False
    """Continue a run that was stopped, exactly where its last saved state stands."""
    force: bool = False
    """Start anew although the run has begun; with --resume only if it cannot be continued."""

    def __post_init__(self) -> None:
        name = Path(self.run)
        _require(
            len(name.parts) == 1 and self.run not in ("", ".", ".."),
            f"--run must be a plain name such as 'updown', found {self.run!r}",
        )
        _require(self.batch_size > 0, "--batch-size must be positive")
        _require(0 <= self.warmup <= 1, "--warmup must be in [0, 1]")
        _require(self.clip > 0, "--clip must be positive")
        _require(0 <= self.average < 1, "--average must be in [0, 1)")
        _require(self.beam > 0, "--beam must be positive")
        _require(self.length_penalty >= 0, "--length-penalty must not be negative")
        _require(self.save_minutes >= 0, "--save-minutes must not be negative")
        _require(self.seed >= 0, "--seed must not be negative")
        _require(self.xe.epochs + self.rl.epochs > 0, "--xe.epochs and --rl.epochs are both 0")


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
        _require(self.width > 0, "--beam must be positive")
        _require(self.length_penalty >= 0, "--length-penalty must not be negative")
        _require(self.temperature > 0, "--temperature must be positive")
        _require(self.top_k >= 0, "--top-k must not be negative")
        _require(0 < self.top_p <= 1, "--top-p must be in (0, 1]")
        drawn = (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0)
        _require(self.sample or not drawn, "--temperature, --top-k and --top-p need --sample")
        _require(self.sample or self.samples == 0, "--samples needs --sample")
        _require(self.samples >= 0, "--samples must not be negative")
        _require(self.captions > 0, "--captions must be positive")
        if self.sample:
            _require(
                self.samples == 0 or self.captions <= self.samples,
                f"--captions {self.captions} cannot be chosen of --samples {self.samples}",
            )
            _require(self.groups == 1, "--groups is for the beam search, not for --sample")
            _require(self.beam is None, "--beam is for the search, not for --sample; see --samples")
        else:
            _require(
                self.captions <= self.width,
                f"--captions {self.captions} needs a --beam of at least {self.captions}, found "
                f"{self.width}",
            )
        _require(
            self.groups > 0 and self.width % self.groups == 0,
            f"--groups must divide --beam {self.width}, found {self.groups}",
        )
        _require(self.diversity >= 0, "--diversity must not be negative")
        _require(
            not (self.consensus and self.rerank), "--rerank is more than --consensus; give one"
        )
        if self.consensus or self.rerank:
            candidates = (self.samples or self.captions) if self.sample else self.width
            name = "consensus" if self.consensus else "rerank"
            _require(candidates > 2, f"--{name} chooses among a --beam, or --samples, of 3 or more")
        _require(
            self.no_repeat_ngram == 0 or self.no_repeat_ngram > 1,
            f"--no-repeat-ngram must be 0, or 2 or more, found {self.no_repeat_ngram}",
        )
        _require(
            0 < self.views <= len(VIEWS),
            f"--views must be from 1 to {len(VIEWS)}, found {self.views}",
        )
        _require(self.max_length >= 0, "--max-length must not be negative")


@dataclass(frozen=True)
class CaptionOptions:
    """Write captions for a split of a work directory, or for pictures of your own."""

    run: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A run's folder, WORK/runs/NAME, or what decoder.export made of one; without it the captioner
    that comes with this package. Several, each with --run, write together: the mean of their word
    probabilities decides."""
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Pictures, and folders that are searched for pictures with all below them; a line is printed
    for each: path, tab, caption, and if the caption is unsure, tab, unsure."""
    split: str | None = None
    """Caption this split of the run's work directory instead, into RUN/captions_SPLIT.json."""
    alt: Path | None = None
    """Write a copy of this HTML page (page.alt.html, or --out) whose <img> without alt get one,
    marked by data-alt-generated. Pictures are looked for below the page's folder, or --site."""
    site: Path | None = None
    """With --alt: the folder of the web site, which "/" stands for in the page."""
    weights: Literal["best", "best_xe", "both"] = "best"
    """The weights with the best validation CIDEr of all, or of the cross-entropy phase; or both
    together, as if they were two runs."""
    out: Path | None = None
    """Write the captions here: of pictures to a .csv or .jsonl file, to which only the pictures are
    added that it has not yet, so that an interrupted run goes on; of --split as COCO results; of
    --alt the page."""
    sidecar: Literal["txt", "xmp"] | None = None
    """Write each caption beside its picture, as PICTURE.txt or as the description in PICTURE.xmp.
    Sidecars that are there already are left alone, but for an XMP file of ours that is older than
    its picture."""
    unsure: float = 0.4
    """Captions less probable than this to be good are marked as unsure. Good means a CIDEr of 0.3
    or more, learnt from validation captions: only captioners that decoder.export made know it."""
    generate: tyro.conf.OmitArgPrefixes[GenerateOptions] = field(default_factory=GenerateOptions)
    attention: int = 64
    """With --split: save where each word looked for this many of the first images."""
    json: bool = False
    """Print a JSON object a line instead of path, tab, caption."""
    batch_size: int = 50
    """Images captioned at once."""
    seed: int = 1
    """With --sample: fixes what is drawn."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    force: bool = False
    """Caption again although nothing changed; with --out, --alt and --sidecar, replace files that
    are there, whoever made them."""

    def __post_init__(self) -> None:
        given = sum((self.split is not None, self.alt is not None, bool(self.pictures)))
        _require(
            given == 1,
            "expected the paths of pictures, or --split NAME, or --alt PAGE, found "
            + ("none of them" if given == 0 else "several of them"),
        )
        if self.pictures and self.out is not None:
            _require(
                self.out.suffix.lower() in (".csv", ".jsonl"),
                f"--out must end in .csv or .jsonl, found {self.out}",
            )
        _require(
            self.split is None or len(self.run) > 0,
            "--split needs --run: the folder WORK/runs/NAME of a trained run",
        )
        _require(self.pictures != () or self.sidecar is None, "--sidecar needs pictures")
        _require(
            self.sidecar is None or self.out is None, "--sidecar and --out are two ways; choose one"
        )
        _require(self.alt is not None or self.site is None, "--site needs --alt")
        _require(0 <= self.unsure <= 1, "--unsure must be from 0 to 1")
        _require(
            self.split is None or len(self.run) == 1 or self.out is not None,
            "captions by several runs are no single run's: name their file with --out",
        )
        _require(self.seed >= 0, "--seed must not be negative")
        _require(self.batch_size > 0, "--batch-size must be positive")
        _require(self.attention >= 0, "--attention must not be negative")


@dataclass(frozen=True)
class ExportOptions:
    """Make a captioner of a trained run: a folder that stands alone, with a model card."""

    run: Path
    """The run's folder, WORK/runs/NAME, captioned and scored for the card to have scores."""
    out: Path
    """The folder to write; a captioner that is there already is replaced."""
    weights: Literal["best", "best_xe"] = "best"
    """The weights with the best validation CIDEr of all, or of the cross-entropy phase."""
    no_frequencies: bool = False
    """Leave out what --consensus needs to know of the training captions, 12 bytes an n-gram."""
    int8: bool = False
    """Write the decoder's matrices in 8 bits, at half the size."""
    rerank: bool = False
    """Put in what --rerank needs, 5 MB: a regression of what people wrote on the training pictures,
    of which none is in it. The run must be in its work directory, or such a captioner."""
    search: bool = False
    """Put in what decoder.search learnt, 3 MB, so that the captioner can search work directories
    that have no captions to learn from."""
    onnx: bool = False
    """Write the CNN and the decoder as ONNX too, in float32, with a README that shows the loop."""

    def __post_init__(self) -> None:
        _require(
            not (self.rerank and self.no_frequencies),
            "--rerank needs what --no-frequencies leaves out; give one",
        )


@dataclass(frozen=True)
class SearchOptions:
    """Find pictures by a sentence, or captions by a picture."""

    sentence: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """What to look for, such as "a dog in the snow"; the pictures that fit it best are printed:
    path, tab, score."""
    run: Path | None = None
    """A run's folder, WORK/runs/NAME, or what decoder.export made of one; without it the captioner
    that comes with this package."""
    work: Path | None = None
    """The work directory to be searched; by default that of the run."""
    image: Path | None = None
    """Print the captions of the work directory that fit this picture best instead."""
    split: str | None = None
    """Search this split only. Without a sentence or --image, rank all of it, the images for each
    caption and the captions for each image, into RUN/ranking_SPLIT.npz, for evaluation.retrieve."""
    top: int = 10
    """How many are printed."""
    weights: Literal["best", "best_xe"] | None = None
    """By default best_xe, where the run has it: REINFORCE teaches to write well, and costs some of
    the sense for what others write."""
    out: Path | None = None
    """Write the ranking of a split here instead."""
    json: bool = False
    """Print a JSON object a line."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    force: bool = False
    """Rank the split again although nothing changed."""

    def __post_init__(self) -> None:
        _require(
            bool(self.sentence) + (self.image is not None) < 2,
            "a sentence finds pictures, --image finds captions; choose one",
        )
        _require(
            bool(self.sentence) or self.image is not None or self.split is not None,
            'expected a sentence to search for ("a dog in the snow"), or --image, or --split',
        )
        ranks = not self.sentence and self.image is None
        _require(ranks or self.out is None, "--out is for the ranking of a --split")
        _require(self.top > 0, f"--top must be positive, found {self.top}")


@dataclass(frozen=True)
class DemoOptions:
    """A page in the browser that captions pictures, and searches those of a work directory."""

    run: Path | None = None
    """A run's folder, WORK/runs/NAME, or what decoder.export made of one; without it the captioner
    that comes with this package."""
    work: Path | None = None
    """Add a tab that searches this work directory."""
    host: str = "127.0.0.1"
    """Address to listen on; only this machine can reach the default. 0.0.0.0 lets the whole network
    in."""
    port: int = 7860
    """0 takes any that is free."""
    max_upload: int = 20
    """Largest picture that is taken, in megabytes."""
    unsure: float = 0.4
    """Captions less probable than this to be good are marked as unsure."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        _require(0 <= self.port < 2**16, f"--port must be from 0 to 65535, found {self.port}")
        _require(self.max_upload > 0, f"--max-upload must be positive, found {self.max_upload}")
        _require(0 <= self.unsure <= 1, "--unsure must be from 0 to 1")
