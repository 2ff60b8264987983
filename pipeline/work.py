"""The paths of the files in a work directory and in a run."""

from pathlib import Path


class WorkFolder:
    """Paths of the files in a work directory (WORK in the help of the commands)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "captions.db"  # of pictures in shards
        self.vocabulary = path / "vocabulary.json"
        self.images = path / "images"  # drawn, if the data set is shapes
        self.extraction = path / "extract.json"  # options and figures of the last extraction
        self.pictures = path / "pictures.json"  # the files of which the features are
        self.search = path / "search"  # index of decoder.search

    @property
    def captions(self) -> Path:
        """The caption table: captions.json, or the database of pictures in shards."""
        return self.database if self.database.exists() else self.path / "captions.json"

    @property
    def features(self) -> Path:
        """The feature store, or the database that names the stores of the shards."""
        return self.database if self.database.exists() else self.path / "features.h5"

    def baselines(self, split: str) -> Path:
        """Return the file with the scores of the report's baselines on a split."""
        return self.path / f"baselines_{split}.json"

    def run(self, name: str) -> "RunFolder":
        """Return the run `name`."""
        return RunFolder(self.path / "runs" / name)

    def captions_by(self, run: "RunFolder", split: str, suffix: str = "") -> Path:
        """Return the file of the captions of a split by a run of another work directory."""
        return self.path / f"captions_{split}_{run.path.resolve().name}{suffix}.json"


class RunFolder:
    """Paths of the files in a run (WORK/runs/NAME) or in a captioner that decoder.export wrote."""

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
        # Only a captioner has these; the last four are optional.
        self.captioner = path / "captioner.json"
        self.card = path / "README.md"  # MODEL_CARD.md until version 0.2
        self.licence = path / "LICENSE"
        self.frequencies = path / "document_frequencies.safetensors"
        self.expectation = path / "expectation.safetensors"
        self.embedding = path / "embedding.safetensors"
        self.novelty = path / "novelty.safetensors"

    @property
    def work(self) -> WorkFolder:
        """Work directory of the run."""
        return WorkFolder(self.path.resolve().parent.parent)

    def captions(self, split: str, suffix: str = "") -> Path:
        """Return the file of the captions of a split; the suffix names a variant, such as "_xe"."""
        return self.path / f"captions_{split}{suffix}.json"

    def scores(self, split: str, suffix: str = "") -> Path:
        """Return the file with the scores of those captions."""
        return self.path / f"scores_{split}{suffix}.json"

    def attention(self, split: str) -> Path:
        """Return the file with the attention weights of each word."""
        return self.path / f"attention_{split}.npz"

    def ranking(self, split: str) -> Path:
        """Return the file that ranks images for each caption and captions for each image."""
        return self.path / f"ranking_{split}.npz"
