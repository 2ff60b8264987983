"""The decoder of a run, loaded back from its folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from decoder.model import decoders
from decoder.model.decoders import Decoder
from decoder.model.options import ModelOptions
from decoder.runs import checkpoints
from decoder.runs.folder import digest
from features.commands import TRAIN
from features.errors import UserError
from features.files import read_json
from features.row_format import RowFormat
from pipeline import vocabulary as vocabularies
from pipeline.vocabulary import Vocabulary
from pipeline.work import RunFolder

OptionsClass = TypeVar("OptionsClass")


def load_decoder(
    run: RunFolder, weights: Path, device: torch.device
) -> tuple[Decoder, Vocabulary, dict[str, Any]]:
    """Load a run's decoder in evaluation mode, its vocabulary and its config.

    Raises:
        UserError: a file is missing or broken, or the three do not belong together.
    """
    vocabulary, config = load_description(run)
    with _checked(run):
        options = _from_json(ModelOptions, config["options"]["decoder"])
        channels = RowFormat(config["features"]).channels
        # The meta device takes no memory, whatever sizes a damaged config asks for.
        with torch.device("meta"):
            model = decoders.allocate(options, len(vocabulary), channels).eval()
    checkpoints.load_weights(model, weights, device)
    return model, vocabulary, config


def load_description(run: RunFolder) -> tuple[Vocabulary, dict[str, Any]]:
    """Load a run's vocabulary and its config, whose "features" describe what it was trained on.

    Raises:
        UserError: a file is missing or broken, or the two do not belong together.
    """
    if not run.path.is_dir():
        raise UserError(f"there is no run {run.path}; create it with {TRAIN}")
    config = read_json(run.config, TRAIN)
    vocabulary = vocabularies.load(run.vocabulary)
    with _checked(run):
        RowFormat(config["features"])
        if not isinstance(config["features"]["backbone"], str):
            raise TypeError(f"a backbone called {config['features']['backbone']!r:.80}")
        wanted, _ = str(config["vocabulary"]), str(config["fingerprint"])
    if digest(vocabulary.words) != wanted:
        raise UserError(
            f"{run.vocabulary} is not the vocabulary that the run was trained with: its words or "
            "their order differ; replace it with the vocabulary.json of the run that config.json "
            "and the weights came from"
        )
    return vocabulary, config


@contextmanager
def _checked(run: RunFolder) -> Iterator[None]:
    """Turn what a damaged config.json raises in the block into UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{run.config}: {error}") from error
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{run.config} is not a run's config ({error!r}); train again") from error


def _from_json(options_class: type[OptionsClass], values: dict[str, Any]) -> OptionsClass:
    known = {field.name for field in fields(options_class)}  # type: ignore[arg-type]
    if values.keys() != known:
        raise ValueError(f"expected the options {sorted(known)}, found {sorted(values)}")
    return options_class(**values)
