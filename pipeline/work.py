"""A work directory and the runs in it: what lies where."""

from pathlib import Path


class WorkFolder:
    """The files of a work directory, which commands call WORK."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.captions = path / "captions.json"
        self.vocabulary = path / "vocabulary.json"
        self.features = path / "features.h5"
        self.extraction = path / "extract.json"  # options and figures of the last extraction
        self.search = path / "search"  # what decoder.search learnt

    def run(self, name: str) -> "RunFolder":
        """Return the folder of the run called `name`."""
        return RunFolder(self.path / "runs" / name)


class RunFolder:
    """The files of one run, WORK/runs/NAME, or of a captioner that decoder.export made of one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.vocabulary = path / "vocabulary.json"
        self.best = path / "best.safetensors"
        self.best_xe = path / "best_xe.safetensors"  # before REINFORCE
        self.state = path / "state" / "resume.safetensors"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.report = path / "report.html"
        # Beside the folder, so that it stays locked while the folder is moved aside.
        self.lock = path.with_name(f".{path.name}.lock")
        # A captioner has these besides, the last three if it was exported with them.
        self.captioner = path / "captioner.json"
        self.card = path / "MODEL_CARD.md"
        self.frequencies = path / "document_frequencies.safetensors"
        self.expectation = path / "expectation.safetensors"
        self.embedding = path / "embedding.safetensors"

    @property
    def work(self) -> WorkFolder:
        """The work directory that the run belongs to."""
        return WorkFolder(self.path.resolve().parent.parent)

    def captions(self, split: str, suffix: str = "") -> Path:
        """Return the file of a split's captions; the suffix tells ways of writing apart."""
        return self.path / f"captions_{split}{suffix}.json"

    def scores(self, split: str, suffix: str = "") -> Path:
        """Return the file of these captions' scores."""
        return self.path / f"scores_{split}{suffix}.json"

    def attention(self, split: str) -> Path:
        """Return the file that says where the decoder looked as it wrote each word."""
        return self.path / f"attention_{split}.npz"

    def ranking(self, split: str) -> Path:
        """Return the file of a split's images ranked for each caption, and the reverse."""
        return self.path / f"ranking_{split}.npz"
