"""A run's folder: what lies where, its config, and the decoder loaded back from it."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import filelock
import torch

from decoder import checkpoints, models
from decoder.models import Decoder
from decoder.options import ModelOptions, TrainOptions
from features.errors import UserError
from features.store import FeatureStore
from pipeline import vocabulary as vocabularies
from pipeline.captions import Image
from pipeline.command import read_json
from pipeline.vocabulary import Vocabulary

MADE_BY = "python -m decoder.train"
# Where and how a run is trained, not what it is; it may be continued with others.
_NOT_DESCRIBED = ("work", "run", "device", "save_minutes", "resume", "force")
_LIBRARIES = ("torch", "numpy", "h5py", "spacy", "pycocoevalcap", "caption-pipeline")

OptionsClass = TypeVar("OptionsClass")


class RunFolder:
    """The files of one run, `WORK/runs/NAME`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.vocabulary = path / "vocabulary.json"
        self.best = path / "best.safetensors"
        self.best_xe = path / "best_xe.safetensors"
        self.state = path / "state" / "resume.safetensors"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"

    @property
    def work(self) -> Path:
        """The work directory that the run belongs to."""
        return self.path.resolve().parent.parent

    def move_aside(self) -> Path:
        """Move what is in the folder to NAME.old beside it, replacing an older one there."""
        old = self.path.with_name(f"{self.path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir()
        for path in self.path.iterdir():
            if path.name != ".lock":
                path.rename(old / path.name)
        return old


@contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Hold the run's folder, made if need be, for one training at a time.

    Raises:
        UserError: another training holds it, or it cannot be made.
    """
    lock = filelock.FileLock(run.path / ".lock", timeout=0)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"another training is writing to {run.path}; wait for it, or choose another --run"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write to {run.path}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def describe(
    options: TrainOptions,
    store: FeatureStore,
    model: Decoder,
    vocabulary: Vocabulary,
    captions: dict[str, list[Image]],
) -> dict[str, Any]:
    """Return what config.json says of a run: all that is needed to repeat it.

    `captions` are the images that the run uses, by split. A saved state is continued only by a run
    of which everything but the versions is the same.
    """
    kept = {k: v for k, v in asdict(options).items() if k not in _NOT_DESCRIBED}
    return {
        "options": kept,
        "seed": options.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "features": store.description,
        "fingerprint": store.fingerprint,
        "vocabulary": digest(vocabulary.words),
        "captions": {split: digest(images) for split, images in captions.items()},
        "reward": reward_signature(options),
        "versions": {name: _version(name) for name in _LIBRARIES},
    }


def reward_signature(options: TrainOptions) -> str:
    """Return the set-up of REINFORCE in one line; two runs compare only if theirs agree."""
    rl = options.rl
    return (
        f"CIDEr-D, n 1-4, sigma 6, end token counted, baseline {rl.baseline}, "
        f"{rl.samples} samples an image at temperature {rl.temperature}, BLEU-4 share "
        f"{rl.bleu_weight}, unknown words never match"
    )


def digest(things: Iterable[object]) -> str:
    """Return the SHA-256, in hexadecimal, of things whose repr says all of them."""
    return hashlib.sha256("\n".join(map(repr, things)).encode()).hexdigest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def load_decoder(
    run: RunFolder, weights: Path, device: torch.device
) -> tuple[Decoder, Vocabulary, dict[str, Any]]:
    """Load a run's decoder in evaluation mode, its vocabulary and its config.

    Raises:
        UserError: a file is missing or broken, or the three do not belong together.
    """
    if not run.path.is_dir():
        raise UserError(f"there is no run {run.path}; {MADE_BY} makes one")
    config = read_json(run.config, MADE_BY)
    vocabulary = vocabularies.load(run.vocabulary)
    try:
        options = _from_json(ModelOptions, config["options"]["decoder"])
        channels = int(config["features"]["channels"])
        model = models.build(options, len(vocabulary), channels).to(device).eval()
        wanted, _ = str(config["vocabulary"]), str(config["fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.config} is not a run's config ({error!r}); train anew") from error
    if digest(vocabulary.words) != wanted:
        raise UserError(
            f"{run.vocabulary} is not the vocabulary that the run was trained with: its words or "
            "their order differ; copy it from the same run as config.json and the weights"
        )
    checkpoints.load_weights(model, weights)
    return model, vocabulary, config


def _from_json(options_class: type[OptionsClass], values: dict[str, Any]) -> OptionsClass:
    known = {field.name for field in fields(options_class)}  # type: ignore[arg-type]
    if values.keys() != known:
        raise ValueError(f"expected the options {sorted(known)}, found {sorted(values)}")
    return options_class(**values)
