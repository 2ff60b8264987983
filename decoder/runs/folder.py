"""A run's folder: what lies where, its config, and the decoder loaded back from it."""

import hashlib
import platform
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import filelock
import torch
from torch.overrides import TorchFunctionMode

from decoder.model import decoders
from decoder.model.decoders import Decoder, ModelOptions
from decoder.runs import checkpoints
from decoder.training.options import TrainOptions
from features import ranks
from features.errors import UserError
from features.files import read_json
from features.rows import RowFormat
from features.store import FeatureStore
from pipeline import vocabulary as vocabularies
from pipeline.captions import Image
from pipeline.vocabulary import Vocabulary

MADE_BY = "python -m decoder.train"
# Where and how a run is trained, not what it is; it may be continued with others.
_NOT_DESCRIBED = (
    "work",
    "run",
    "like",
    "dry_run",
    "device",
    "compile",
    "save_minutes",
    "resume",
    "force",
)
# Parts of config.json that may change while a run is continued: the last digits depend on them.
NOT_THE_RUN = ("versions", "machine")
# Of options that runs had not yet, what was in effect.
_FORMER_OPTIONS = {"length_penalty": 0.0}
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
        # Beside the folder, so that it stays locked while the folder is moved aside.
        self.lock = path.with_name(f".{path.name}.lock")

    @property
    def work(self) -> Path:
        """The work directory that the run belongs to."""
        return self.path.resolve().parent.parent

    def move_aside(self) -> Path:
        """Rename the folder to NAME.old, replacing an older one there, and make it anew, empty."""
        old = self.path.with_name(f"{self.path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        try:
            self.path.rename(old)
        except OSError as error:
            raise UserError(f"cannot move {self.path} to {old}: {error.strerror}") from error
        self.path.mkdir()
        return old

    def sweep(self) -> None:
        """Delete the halves of files that a killed training was writing.

        TensorBoard would take that of an event file for another one. What other stages write to
        the folder, perhaps at this moment, is left alone.
        """
        weights, texts = (self.best, self.best_xe), (self.metrics, self.config, self.vocabulary)
        others = (self.tensorboard / "events", self.path / ".done" / "train.json")
        for file in (self.state, *weights, *texts, *others):
            for half in file.parent.glob(f".{file.name}.*"):
                half.unlink(missing_ok=True)


@contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Hold the run's folder, made if need be, for one training at a time.

    Raises:
        UserError: another training holds it, or it cannot be written to.
    """
    lock = filelock.FileLock(run.lock, timeout=0)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"another training is writing to {run.path}; wait for it, or choose another --run"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot write to {run.path}: {error.strerror}; choose another --work, or make room "
            "and see to its permissions"
        ) from error
    try:
        run.sweep()
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
    of which everything is the same but what `NOT_THE_RUN` names.
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
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _LIBRARIES},
        },
        "machine": {
            "device": str(next(model.parameters()).device),
            "compile": options.compile,
            "threads": torch.get_num_threads(),
            "processes": ranks.world(),
            "processor": platform.machine(),
        },
    }


def reward_signature(options: TrainOptions) -> str:
    """Return the set-up of REINFORCE in one line; two runs compare only if theirs agree."""
    rl = options.rl
    return (
        f"CIDEr-D, n 1-4, sigma 6, end token counted, baseline {rl.baseline}, "
        f"{rl.samples} samples an image at temperature {rl.temperature}, BLEU-4 share "
        f"{rl.bleu_weight}, unknown words never match"
    )


def differences(old: Any, new: Any, besides: Iterable[str] = (), name: str = "") -> list[str]:
    """Return the entries in which two nested dicts differ, as text, except those in `besides`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted((old.keys() | new.keys()) - set(besides))
        return [
            difference
            for key in keys
            for difference in differences(
                old.get(key), new.get(key), (), f"{name}.{key}".strip(".")
            )
        ]
    return [] if old == new else [f"{name} ({old} then, {new} now)"]


def with_former_options(config: dict[str, Any]) -> dict[str, Any]:
    """Return a run's config with the options that came after it, as they were in effect then."""
    machine = {"compile": False, **config.get("machine", {})}
    return {**config, "options": {**_FORMER_OPTIONS, **config["options"]}, "machine": machine}


def arguments_like(folder: Path) -> list[str]:
    """Return the command line that trains the run in `folder` again, without its --run.

    Raises:
        UserError: it has no config.json, or one without options.
    """
    run = RunFolder(folder)
    options = read_json(run.config, MADE_BY)
    try:
        values = with_former_options(options)["options"]
        values |= {f"xe.{k}": v for k, v in dict(values.pop("xe")).items()}
        values |= {f"rl.{k}": v for k, v in dict(values.pop("rl")).items()}
        values |= dict(values.pop("decoder"))
        if strange := values.keys() & set(_NOT_DESCRIBED):
            raise ValueError(f"{sorted(strange)} among its options")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.config} is not a run's config ({error!r})") from error
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    return [f"--work={run.work}", *arguments]


def digest(things: Iterable[object]) -> str:
    """Return the SHA-256, in hexadecimal, of things whose repr says all of them."""
    return hashlib.sha256("\n".join(map(repr, things)).encode()).hexdigest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


class _WithoutValues(TorchFunctionMode):
    """Skips the drawing of initial weights, which on the meta device imports torch's compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.nn.init.normal_:
            return kwargs["tensor"] if kwargs else args[0]
        return func(*args, **(kwargs or {}))


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
        channels = RowFormat(config["features"]).channels
        if not isinstance(config["features"]["backbone"], str):
            raise TypeError(f"a backbone called {config['features']['backbone']!r:.80}")
        # Of whatever size, it takes no memory before the weights are seen to be of that size, too.
        with torch.device("meta"), _WithoutValues():
            model = decoders.build(options, len(vocabulary), channels).eval()
        wanted, _ = str(config["vocabulary"]), str(config["fingerprint"])
    except UserError as error:
        raise UserError(f"{run.config}: {error}") from error
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{run.config} is not a run's config ({error!r}); train anew") from error
    if digest(vocabulary.words) != wanted:
        raise UserError(
            f"{run.vocabulary} is not the vocabulary that the run was trained with: its words or "
            "their order differ; copy it from the same run as config.json and the weights"
        )
    checkpoints.load_weights(model, weights, device)
    return model, vocabulary, config


def _from_json(options_class: type[OptionsClass], values: dict[str, Any]) -> OptionsClass:
    known = {field.name for field in fields(options_class)}  # type: ignore[arg-type]
    if values.keys() != known:
        raise ValueError(f"expected the options {sorted(known)}, found {sorted(values)}")
    return options_class(**values)
