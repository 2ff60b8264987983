"""What identifies a run: its config.json, and how two of them differ."""

import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from decoder.model.decoders import Decoder
from decoder.runs.folder import digest
from decoder.training.options import TrainOptions
from features.commands import TRAIN
from features.distributed import world_size
from features.errors import UserError
from features.files import read_json
from features.store import FeatureStore
from pipeline.captions import Image
from pipeline.vocabulary import Vocabulary
from pipeline.work import RunFolder

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
            "processes": world_size(),
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
    options = read_json(run.config, TRAIN)
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
    return [f"--work={run.work.path}", *arguments]


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
