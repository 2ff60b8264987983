"""Start a training from a trained captioner (--init), whose words may be others.

The weights that belong to no word are copied. A word that both vocabularies have keeps its vector
and its output. A word that is new starts between the others: with the mean of their vectors and
outputs, and a bias that follows from how frequent it is.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from decoder.model.decoders import Decoder
from decoder.model.options import ModelOptions
from decoder.runs.loading import load_decoder
from decoder.runs.packaged import PACKAGED, captioner_folder
from features.commands import EXPORT, TRAIN
from features.errors import UserError
from features.files import read_json
from features.store import fingerprint
from features.store_set import Store
from pipeline.caption_database import load as load_table
from pipeline.captions import CaptionTable, described
from pipeline.terms import terms_of
from pipeline.vocabulary import EOS, SPECIAL, Vocabulary
from pipeline.work import RunFolder

log = logging.getLogger(__name__)

LEARNING_RATE = 1e-3  # default of cross-entropy; weights that are trained need no higher one
# The weights with a row for each word; all others are independent of the vocabulary.
_OF_WORDS = ("word_embedding.weight", "output.weight", "output.bias")
# Data sets that have pictures in common with others under other splits.
_SHARED_PICTURES = ("coco", "karpathy", "flickr30k")


@dataclass(frozen=True)
class Trained:
    """A trained captioner from which a training starts."""

    name: str
    """As given to --init."""
    run: RunFolder
    model: Decoder
    vocabulary: Vocabulary
    config: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """Return what config.json records: the captioner, its weights, its data and their terms.

        The data are those of the captioner and of the one that it started from itself.
        """
        data = [
            {**source, "terms": terms_of(source["dataset"], source.get("terms"))}
            for source in _data(self.run)
        ]
        # Trainings that follow each other on the same data name it once.
        inherited = self.config.get("init", {}).get("data", [])
        data += [source for source in inherited if source not in data]
        return {
            "name": self.name,
            "weights_sha256": hashlib.sha256(self.run.best.read_bytes()).hexdigest(),
            "data": data,
        }


def place_of(name: str) -> RunFolder:
    """Return the folder that --init names, which may be missing."""
    return captioner_folder(name)


def folder_of(name: str) -> RunFolder:
    """Return the folder of the captioner that --init names.

    Raises:
        UserError: there is no such run, or this installation includes no captioner.
    """
    run = place_of(name)
    if not run.config.is_file():
        raise UserError(
            f"--init {name}: there is no such run, with a {run.config.name}; expected "
            "WORK/runs/NAME, the folder of an exported captioner, or "
            f"{PACKAGED} for the included one"
        )
    return run


def is_gone(name: str) -> bool:
    """Whether there is no captioner at the place that --init names, for example not any more."""
    return not place_of(name).config.is_file()


def recorded(run: RunFolder, name: str) -> dict[str, Any] | None:
    """Return the record of the captioner `name` in the config.json of a run that started from it.

    The run's saved state has all weights, so it can be continued without the captioner. None if
    there is no such state, or none that started from there.
    """
    if not (run.state.exists() and run.config.exists()):
        return None
    config = read_json(run.config, TRAIN)
    record = config.get("init") if isinstance(config, dict) else None
    return record if isinstance(record, dict) and record.get("name") == name else None


def arguments_of(name: str) -> list[str]:
    """Return the default options of a training that starts from the captioner `name`.

    They are the captioner's architecture, and a lower learning rate of cross-entropy.

    Raises:
        UserError: there is no such run, or its config.json is damaged.
    """
    run = folder_of(name)
    config = read_json(run.config, TRAIN)
    try:
        options = dict(config["options"]["decoder"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.config} is not a run's config ({error!r}); train again") from error
    architecture = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    return [*architecture, f"--xe.learning-rate={LEARNING_RATE}"]


def load(name: str, options: ModelOptions, store: Store, device: torch.device) -> Trained:
    """Load the captioner that --init names.

    Args:
        name: a run's folder, or `PACKAGED`.
        options: the architecture of the decoder to be trained.
        store: the features that it is trained on.
        device: where to load the weights.

    Raises:
        UserError: the captioner is missing or damaged, has another architecture (its dropout may
            differ), or was trained on other features.
    """
    run = folder_of(name)
    model, vocabulary, config = load_decoder(run, run.best, device)
    other = {**config["options"]["decoder"], "dropout": options.dropout}
    conflicts = [
        f"--{key} {value} (it has {other[key]})"
        for key, value in asdict(options).items()
        if value != other[key]
    ]
    if conflicts:
        raise UserError(
            f"--init {name}: expected its own architecture, found {', '.join(conflicts)}; leave "
            "these options out"
        )
    description = config["features"]
    if fingerprint(description) != store.fingerprint:
        grid, backbone = description["grid"][0], description["backbone"]
        store.expect(
            fingerprint(description),
            f"--init {name} (made with --backbone {backbone} --grid {grid})",
            description,
        )
    return Trained(name, run, model, vocabulary, config)


@torch.no_grad()
def transfer(trained: Trained, model: Decoder, vocabulary: Vocabulary) -> int:
    """Set the weights of a new model to those of a trained one; return the number of kept words.

    Raises:
        UserError: the two have no word in common.
    """
    old_ids = trained.vocabulary.ids
    kept = [word for word in vocabulary.words if word in old_ids]
    if len(kept) == len(SPECIAL):
        raise UserError(
            f"--init {trained.name}: none of the {len(vocabulary) - len(SPECIAL)} words of the "
            "training captions is known to it; are they in English?"
        )
    old, new = trained.model.state_dict(), model.state_dict()
    for name, tensor in new.items():
        if name not in _OF_WORDS:
            tensor.copy_(old[name])
    device = model.output.weight.device
    to = torch.tensor([vocabulary.ids[word] for word in kept], device=device)
    source = torch.tensor([old_ids[word] for word in kept], device=device)
    is_new = torch.ones(len(vocabulary), dtype=torch.bool, device=device)
    is_new[to] = False
    new["word_embedding.weight"][to] = old["word_embedding.weight"][source]
    written = to >= EOS
    to, source, is_new = to[written] - EOS, source[written] - EOS, is_new[EOS:]
    for name in ("output.weight", "output.bias"):
        new[name][to] = old[name][source]
    if is_new.any():
        # The count of EOS, the first, is not recorded; it is not new.
        log_count_V = (torch.tensor(vocabulary.counts[EOS:], device=device) + 1.0).log()
        shift = (new["output.bias"] - log_count_V)[~is_new][1:].mean()
        new["output.bias"][is_new] = (log_count_V + shift)[is_new]
        new["output.weight"][is_new] = new["output.weight"][~is_new].mean(0)
        vectors = new["word_embedding.weight"][EOS:]
        vectors[is_new] += vectors[~is_new].mean(0)
    return len(kept) - len(SPECIAL)


def report_overlap(trained: Trained, table: CaptionTable, work: Path) -> None:
    """Warn if the captioner may have been trained on pictures of val or test.

    Args:
        trained: the captioner that a training starts from.
        table: the captions that the training reads.
        work: the folder of the table. A captioner of the same folder has the same splits.
    """
    shared = sorted({source.dataset for source in table.sources} & {*_SHARED_PICTURES})
    if not shared or trained.run.work.path == work.resolve():
        return
    data = ", ".join(entry["dataset"] for entry in trained.record()["data"])
    log.warning(
        "--init %s was trained on %s, which may share pictures with val and test of %s. Scores of "
        "this run may therefore be too high, and cannot be compared with published ones",
        trained.name,
        data or "unknown data",
        ", ".join(shared),
    )


def _data(run: RunFolder) -> list[dict[str, Any]]:
    """Return the data sets that a run or captioner was trained on, with their terms if stated."""
    file, made_by = (run.captioner, EXPORT) if run.captioner.exists() else (run.config, TRAIN)
    content = read_json(file, made_by)
    is_recorded = isinstance(content, dict) and content.get("data") is not None
    if is_recorded or file == run.captioner:
        try:
            data = content.get("data")
            if data is None:
                return []
            name = data["dataset"]
            return data.get("sources") or [{"name": name, "dataset": name}]
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} is not what {made_by} writes ({error!r:.200}); restore the file"
            ) from error
    if run.work.captions.exists():
        return [described(source) for source in load_table(run.work.captions).sources]
    return []
