"""The command decoder.train: train a run from features and captions."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from decoder.data.layout import is_static
from decoder.data.readers import SplitReader, TrainingReader, expect_captions, keep_in_memory
from decoder.data.sharded import ShardedReader
from decoder.data.single_store import SingleStoreReader
from decoder.data.weights import parse_weights
from decoder.model import decoders
from decoder.model.operations import compiled
from decoder.runs.folder import locked, move_aside
from decoder.training import checks, transfer
from decoder.training.config import comparable, describe, differences, with_former_options
from decoder.training.estimate import estimate
from decoder.training.options import EPOCHS, TrainOptions, cross_entropy_epochs
from decoder.training.phases import TITLES
from decoder.training.state import TrainingState
from decoder.training.trainer import Stopped, Trainer
from evaluation import concerns
from evaluation.validation import Validator
from evaluation.validation_process import ValidatorProcess
from features.commands import TRAIN
from features.devices import choose_device
from features.distributed import broadcast, own_device, process_group, rank, world_size
from features.errors import AccessError, UserError
from features.extras import need
from features.files import is_there, read_json, write_json
from features.store_set import Store, StoreSet
from pipeline import vocabulary
from pipeline.caption_database import CaptionDatabase, open_features
from pipeline.caption_database import load as load_table
from pipeline.captions import CaptionTable
from pipeline.training_data import training_data
from pipeline.up_to_date import Stamp
from pipeline.vocabulary import Vocabulary
from pipeline.work import RunFolder, WorkFolder


def train(options: TrainOptions) -> int:
    """Train a decoder: first with cross-entropy, then with REINFORCE on CIDEr-D."""
    with process_group():
        return _train(options, WorkFolder(options.work).run(options.run))


def _train(options: TrainOptions, run: RunFolder) -> int:
    """Train in this process; under torchrun only the first process writes and prints."""
    need("tensorboard", "pycocoevalcap")  # before the first epoch
    first = rank() == 0
    if options.dry_run:
        if world_size() > 1:
            raise UserError("--dry-run measures one process; start it without torchrun")
        print(estimate(new_trainer(options)))
        return 0
    with locked(run) if first else nullcontext():
        inputs = _inputs(WorkFolder(options.work))
        if options.init is not None:
            inputs.append(transfer.place_of(options.init).best)
        stamp = Stamp(run.path, "train", options, inputs) if first else None
        unchanged = stamp is not None and stamp.holds()
        if broadcast(unchanged and not (options.force and not options.resume)):
            _print_once(f"train: {run.path} unchanged, skipped")
            return 0
        trainer = new_trainer(options)
        state = trainer.state
        continues = broadcast(_continues(state, options.resume, options.force) if first else False)
        if continues and not first:
            state.restore()
        if continues:
            _print_once(f"train: continuing {run.path} in {state.progress.where()}")
            _report_other_shares(trainer)
        else:
            if options.init is not None and trainer.trained is None:
                transfer.folder_of(options.init)  # raises: the captioner is gone
            trainer.initialise()
        if first and not continues:
            vocabulary.save(trainer.vocabulary, run.vocabulary)
            write_json(run.config, state.config)
        try:
            trainer.train()
        except Stopped:
            _print_once(f"train: stopped in {state.progress.where()}; --resume continues there")
            return 130
        if stamp is not None:
            stamp.write([run.config, run.vocabulary, run.best, run.metrics])
    # Of equal epochs the last one, whose weights are kept.
    best = max(reversed(state.progress.metrics), key=lambda line: line["val"]["CIDEr"])
    _print_once(
        f"train: best validation CIDEr {best['val']['CIDEr']:.3f} after epoch {best['epoch']} of "
        f"{TITLES[best['phase']]}, weights in {run.best}"
    )
    metrics = state.progress.metrics
    for concern in [*concerns.of_captions(best["val"]), *concerns.of_epochs(metrics)]:
        _print_once(f"train: {concern}")
    return 0


def _print_once(text: str) -> None:
    """Print in the first process only."""
    if rank() == 0:
        print(text)


def _inputs(work: WorkFolder) -> list[Path]:
    return [work.captions, work.vocabulary, work.features]


def new_trainer(options: TrainOptions) -> Trainer:
    """Read the work directory and return a trainer with new weights; write nothing.

    `train` uses it. On its own it is for looking at single steps: `initialise`, then `step`.

    Raises:
        UserError: a file of the work directory is missing or broken, or has no captions to use.
    """
    work = WorkFolder(options.work)
    run = work.run(options.run)
    table, store = load_table(work.captions), open_features(work)
    table.split("train")  # without these images there is no vocabulary either
    words = vocabulary.load(work.vocabulary)
    # The decoder comes first: the readers depend on whether it attends.
    torch.manual_seed(options.seed)
    device = own_device(choose_device(options.device))
    model = decoders.build(options.decoder, len(words), store.description["channels"]).to(device)
    trained = None
    record = None
    if options.init is not None:
        if options.resume and transfer.is_gone(options.init):
            record = transfer.recorded(run, options.init)
        if record is None:
            trained = transfer.load(options.init, options.decoder, store, device)
            record = trained.record()
    if options.compile:
        model.use_operations(compiled(device))
    weights = parse_weights(options.source_weights) if options.source_weights else None
    training = _training_reader(options, store, table, words, model.attends, weights)
    validation = SplitReader(store, table, "val", grid=model.attends)
    options = _with_epochs(options, training)
    expect_captions(validation)
    first = rank() == 0
    if first:
        _report_left_out(training, validation)
        checks.report(store, table, training.examples())
        if options.init is None:
            steps = (options.xe.epochs or 0) * training.batches_per_epoch
            checks.report_few_steps(steps, len(training))
        checks.report_precision(options.precision, device)
        if trained is not None:
            transfer.report_overlap(trained, table, options.work)
    if kept := keep_in_memory((training, validation), device):
        _print_once(f"train: {kept}")

    used = {"train": training.images, "val": validation.images}
    config = describe(options, store, model, words, used, record)
    config["data"] = training_data(table)
    validator: Validator | None = None
    if first:
        if options.like is not None:
            _report_unlike(config, options.like)
        references = {image.id: [c.text for c in image.captions] for image in validation.images}
        # Beside two cores that train, scoring would gain nothing; other processes wait for it.
        beside = is_static(device) and world_size() == 1
        validator = (ValidatorProcess if beside else Validator)(references)
    return Trainer(options, run, config, model, words, training, validation, validator, trained)


def _training_reader(
    options: TrainOptions,
    store: Store,
    table: CaptionTable,
    words: Vocabulary,
    grid: bool,
    weights: dict[str, float] | None,
) -> TrainingReader:
    """Return the reader of training batches, from one store or from those of shards."""
    size, seed = options.batch_size, options.seed
    if isinstance(table, CaptionDatabase) and isinstance(store, StoreSet):
        if weights:
            raise UserError(
                "--source-weights is for a work directory of several data sets; the pictures of "
                "shards have one source"
            )
        return ShardedReader(store, table, words, size, seed, grid)
    return SingleStoreReader(store, table, words, size, seed, grid, weights)


def _with_epochs(options: TrainOptions, training: TrainingReader) -> TrainOptions:
    """Return the options with the epochs of cross-entropy for the size of the data."""
    batches = training.batches_per_epoch
    epochs = cross_entropy_epochs(options.xe.epochs, batches, options.init is not None)
    if options.xe.epochs is None and epochs > EPOCHS:
        _print_once(
            f"train: {epochs} epochs of cross-entropy, because {len(training)} training images "
            f"give only {batches} steps an epoch; --xe.epochs changes this"
        )
    return replace(options, xe=replace(options.xe, epochs=epochs))


def _continues(state: TrainingState, resume: bool, force: bool) -> bool:
    """Restore the saved state and return True if it is to be continued, else move it aside.

    Raises:
        UserError: the run may be neither continued nor moved aside.
    """
    run = state.run
    if not (is_there(run.state) or is_there(run.best)):
        return False  # nothing is lost: no run, or one that was killed before it first saved
    reason = "--force"
    if resume and is_there(run.state):
        try:
            state.restore()
            return True
        except AccessError:
            raise  # the state may be intact
        except UserError as error:
            if not force:
                raise
            reason = str(error)
    elif not force:
        how = "continue it with --resume, start" if run.state.exists() else "start"
        raise UserError(
            f"{run.path} already has a run; {how} again with --force, or choose another --run"
        )
    print(f"train: starting again; the old run is kept in {move_aside(run)} ({reason})")
    return False


def _report_unlike(config: dict[str, Any], like: Path) -> None:
    """Print how a run that is to repeat the one in `like` differs from it."""
    before = comparable(with_former_options(read_json(RunFolder(like).config, TRAIN)), config)
    unlike = differences(before, config, ignored=("preset", "data"))
    for difference in unlike:
        print(f"train: unlike {like}: {difference}")
    if not unlike:
        print(f"train: like {like} in everything: options, data, features, versions, machine")


def _report_other_shares(trainer: Trainer) -> None:
    """Say so if the rest of an epoch over shards is divided otherwise than its beginning was."""
    before, batch = trainer.state.processes, trainer.state.progress.batch
    begun = 0 < batch < trainer.training.batches_per_epoch
    if isinstance(trainer.training, ShardedReader) and begun and before != world_size():
        _print_once(
            f"train: this epoch was begun by {before} processes and is divided among "
            f"{world_size()} now, so some images repeat and as many are left out; the next epoch "
            "has every image once"
        )


def _report_left_out(*readers: SplitReader) -> None:
    for reader in readers:
        if reader.left_out:
            print(
                f"train: {reader.left_out} of {reader.left_out + len(reader)} {reader.split} "
                "images left out because their features could not be extracted"
            )
