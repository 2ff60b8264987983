"""What identifies a run: its config.json, and how two of them differ."""

import copy
import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from decoder.model.decoders import Decoder
from decoder.runs.folder import digest
from decoder.training.options import ReinforceOptions, TrainOptions
from features.commands import TRAIN
from features.distributed import world_size
from features.errors import UserError
from features.files import read_json
from features.store_set import Store
from pipeline import pictures
from pipeline.caption_database import SplitImages
from pipeline.captions import Image
from pipeline.pictures import Pictures
from pipeline.vocabulary import Vocabulary
from pipeline.work import RunFolder, WorkFolder

# Options that say where and how a run is trained, not what it is: it may be continued with others.
_NOT_IDENTIFYING = (
    "work",
    "run",
    "like",
    "preset",
    "dry_run",
    "device",
    "compile",
    "no_graphs",
    "save_minutes",
    "resume",
    "force",
)

# Parts of config.json that may change while a run is continued: only last digits depend on the
# first two, and the options that a preset sets and the data are compared by themselves.
ENVIRONMENT = ("versions", "machine", "preset", "data")

# What was in effect in runs that are older than an option.
_FORMER_OPTIONS = {"length_penalty": 0.0, "source_weights": None, "init": None}

_DIGEST = re.compile(r"[0-9a-f]{64}")

_LIBRARIES = ("torch", "numpy", "h5py", "spacy", "pycocoevalcap", "caption-pipeline")


def describe(
    options: TrainOptions,
    store: Store,
    model: Decoder,
    vocabulary: Vocabulary,
    captions: dict[str, Sequence[Image]],
    init: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of config.json: all that is needed to repeat a run.

    A saved state is continued only by a run that is the same in everything but `ENVIRONMENT`.

    Args:
        options: of the run.
        store: the features it is trained on.
        model: the decoder, on its device.
        vocabulary: of the captions.
        captions: the images that the run uses, by split.
        init: what the run records of the captioner that it starts from.
    """
    kept = {k: v for k, v in asdict(options).items() if k not in _NOT_IDENTIFYING}
    known = pictures.load(WorkFolder(options.work))
    train = captions["train"]
    # The pictures of shards have one source, and their digests are known.
    sources = {} if isinstance(train, SplitImages) else Counter(image.source for image in train)
    return {
        "options": kept,
        "preset": options.preset,
        "seed": options.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "features": store.description,
        "fingerprint": store.fingerprint,
        "vocabulary": digest(vocabulary.words),
        **({} if init is None else {"init": init}),
        "captions": {
            split: images.digest if isinstance(images, SplitImages) else digest(images)
            for split, images in captions.items()
        },
        **({"sources": dict(sorted(sources.items()))} if len(sources) > 1 else {}),
        **({"pictures": _pictures(captions, known)} if known else {}),
        "reward": reward_signature(options.rl),
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


def _pictures(captions: dict[str, Sequence[Image]], known: Pictures) -> dict[str, str]:
    """Return a digest of the files that the features of each split were computed from."""
    return {
        split: digest(
            (image.id, known[image.id].get("bytes"), known[image.id].get("crc"))
            for image in images
            if image.id in known
        )
        for split, images in captions.items()
        if not isinstance(images, SplitImages)
    }


def comparable(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a saved run, with what cannot or need not be compared as in `new`.

    That is the record of its picture files, where one of them has none, and the place of the
    captioner that both start from.

    Args:
        old: what was saved.
        new: what it is compared with.
    """
    old = copy.deepcopy(old)
    if "pictures" not in new:
        old.pop("pictures", None)
    elif "pictures" not in old:
        old["pictures"] = new["pictures"]
    before, now = old.get("init"), new.get("init")
    if before and now and before["weights_sha256"] == now["weights_sha256"]:
        old["init"], old["options"]["init"] = now, new["options"]["init"]
    return old


def reward_signature(rl: ReinforceOptions) -> str:
    """Return the set-up of REINFORCE in one line; runs are comparable only if theirs agree."""
    return (
        f"CIDEr-D, n 1-4, sigma 6, end token counted, baseline {rl.baseline}, "
        f"{rl.samples} samples an image at temperature {rl.temperature}, BLEU-4 share "
        f"{rl.bleu_weight}, unknown words never match"
    )


def differences(old: Any, new: Any, ignored: Iterable[str] = (), name: str = "") -> list[str]:
    """Return the entries in which two nested dicts differ, as text.

    Args:
        old: what was saved.
        new: what it is compared with.
        ignored: keys of the outer dict that may differ.
        name: of the entry that holds both, when they are inner dicts.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted((old.keys() | new.keys()) - set(ignored))
        return [
            difference
            for key in keys
            for difference in differences(
                old.get(key), new.get(key), (), f"{name}.{key}".strip(".")
            )
        ]
    if old == new:
        return []
    if all(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (old, new)):
        return [name]  # the digests themselves would tell nobody anything
    return [f"{name} ({old} then, {new} now)"]


def with_former_options(config: dict[str, Any]) -> dict[str, Any]:
    """Return a run's config, completed with options that did not exist when it was trained.

    They get the values that were in effect then.
    """
    machine = {"compile": False, **config.get("machine", {})}
    return {**config, "options": {**_FORMER_OPTIONS, **config["options"]}, "machine": machine}


def arguments_like(folder: Path) -> list[str]:
    """Return the command line that trains the run in `folder` again, without its --run.

    Raises:
        UserError: it has no config.json, or one without options.
    """
    run = RunFolder(folder)
    config = read_json(run.config, TRAIN)
    try:
        values = with_former_options(config)["options"]
        values |= {f"xe.{k}": v for k, v in dict(values.pop("xe")).items()}
        values |= {f"rl.{k}": v for k, v in dict(values.pop("rl")).items()}
        values |= dict(values.pop("decoder"))
        if unexpected := values.keys() & set(_NOT_IDENTIFYING):
            raise ValueError(f"{sorted(unexpected)} among its options")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.config} is not a run's config ({error!r})") from error
    arguments = [
        f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None
    ]
    return [f"--work={run.work.path}", *arguments]


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
