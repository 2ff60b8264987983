"""Check that the files of a work directory are intact and belong together."""

import os
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import torch

from decoder.runs import checkpoints
from decoder.runs.folder import digest
from decoder.runs.loading import load_decoder
from decoder.training import checks
from evaluation import runs
from features.commands import CAPTION, EXTRACT, PREPARE, REPORT, SCORE, SEARCH, TRAIN
from features.errors import AccessError, UserError, first_few
from features.store import FAILED, FeatureStore, differences, fingerprint
from features.store_set import Store, StoreSet
from features.store_writing import parts_folder
from features.verification import damaged
from pipeline import vocabulary
from pipeline.caption_database import CaptionDatabase, load
from pipeline.captions import SPLITS, CaptionTable
from pipeline.doctor.results import CheckResult, ok, problem, warning
from pipeline.text import tokenizer
from pipeline.up_to_date import changed_inputs
from pipeline.vocabulary import Vocabulary
from pipeline.work import RunFolder, WorkFolder

# A vocabulary with a smaller share of the training words belongs to another data set.
_LEAST_COVERAGE = 0.5
_SAME = "with the options of the first extraction"
MAKE_READABLE = "make what is named readable and run the doctor again; it may be intact"
_STAGES = {
    "prepare": PREPARE,
    "extract": EXTRACT,
    "train": TRAIN,
    "caption": CAPTION,
    "search": SEARCH,
    "scores": SCORE,
    "baselines": REPORT,
    "report": REPORT,
}


def check_work_directory(work: WorkFolder) -> Iterator[CheckResult]:
    """Check the files that the stages have written so far."""
    if work.path.is_file():
        yield problem(f"{work.path} is a file, not a work directory", "give its folder as --work")
        return
    if not work.captions.exists() and RunFolder(work.path).config.is_file():
        folder = RunFolder(work.path).work.path
        yield problem(f"{work.path} is a run, not a work directory", f"check --work {folder}")
        return
    if not work.path.is_dir():
        yield problem(f"{work.path} does not exist", f"create it with {PREPARE}")
        return
    try:
        table = load(work.captions)
    except UserError as error:
        remedy = f"run {PREPARE} --force; the other checks need this file"
        yield problem(str(error), _advice(error, remedy))
        return
    words: Vocabulary | None = None
    store: Store | None = None
    if isinstance(table, CaptionDatabase):
        try:
            store = table.stores()
            yield from _shards(table, store, work)
            words = vocabulary.load(work.vocabulary) if table.has_split("train") else None
        except UserError as error:
            yield problem(str(error), _advice(error, f"run {PREPARE} again"))
        yield from _outdated(work.path)
        yield from _runs(work, table, words, store)
        return
    yield from _table(table, work)
    try:
        if any(image.split == "train" for image in table.images):
            words = vocabulary.load(work.vocabulary)
            yield from _words(words, table, work)
    except UserError as error:
        yield problem(str(error), _advice(error, f"run {PREPARE} --force"))
    try:
        if parts_folder(work.features).exists():
            yield warning(
                "the extraction of features is not finished", f"continue it with {EXTRACT}"
            )
        if not work.features.exists():
            yield warning(f"{work.path} has no features.h5 yet", f"create it with {EXTRACT}")
        else:
            store = FeatureStore(work.features)
            yield from _features(store, table)
    except UserError as error:
        yield problem(str(error), _advice(error, f"run {EXTRACT} --force {_SAME}"))
    yield from _outdated(work.path)
    yield from _runs(work, table, words, store)


def _runs(
    work: WorkFolder, table: CaptionTable, words: Vocabulary | None, store: Store | None
) -> Iterator[CheckResult]:
    for folder in sorted(path for path in work.path.glob("runs/*") if path.is_dir()):
        if not folder.name.endswith(".old"):
            yield from _run(RunFolder(folder), table, words, store)
            yield from _outdated(folder)


def _shards(table: CaptionDatabase, stores: StoreSet, work: WorkFolder) -> Iterator[CheckResult]:
    """Check every row of every store of shards, one store after the other."""
    counts = {split: len(images) for split, images in table.splits.items()}
    listed = ", ".join(f"{count} {split}" for split, count in counts.items())
    text = f"{work.captions}: {listed} images of {len(table.shards)} shards in {table.folder}"
    if counts["train"] and not counts["val"]:
        yield problem(f"{text}; none in val", f"decoder.train needs both: {PREPARE} --val N")
    else:
        yield ok(text)
    broken = 0
    for number, shard in enumerate(table.shards):
        try:
            wrong = damaged(stores.store(number))
        except UserError as error:
            broken += 1
            yield problem(str(error), _advice(error, f"extract this shard again, then {PREPARE}"))
            continue
        if wrong:
            broken += 1
            yield problem(
                f"{table.folder / shard.name}.h5: {len(wrong)} rows are damaged: "
                f"{first_few(f'image {image} ({why})' for image, why in wrong.items())}",
                f"delete it and extract this shard again, then run {PREPARE}",
            )
    if not broken:
        yield ok(f"all rows of {len(table.shards)} stores match their checksums")
        yield from _leaks(stores, table)


def _advice(error: UserError, for_content: str) -> str:
    """Return what to do about a file: an error of access says nothing about its content."""
    if isinstance(error, AccessError):
        return MAKE_READABLE
    return for_content


def _table(table: CaptionTable, work: WorkFolder) -> Iterator[CheckResult]:
    counts = Counter(image.split for image in table.images)
    listed = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
    text = f"{work.captions}: {listed} images of {table.dataset}"
    if not counts["train"]:
        yield ok(f"{text}; without training pictures they can only be captioned and scored")
    elif not counts["val"]:
        yield problem(f"{text}; none in val", "decoder.train needs both splits")
    else:
        yield ok(text)
    splits: dict[str, set[str]] = {}
    for image in table.images:
        splits.setdefault(os.path.normpath(image.file_name), set()).add(image.split)
    overlap = [name for name, of_name in splits.items() if len(of_name) > 1]
    if overlap:
        yield problem(
            f"{len(overlap)} pictures are in two splits: {first_few(overlap)}",
            f"fix the splits and run {PREPARE}; overlapping splits inflate the scores",
        )
    missing = [i.file_name for i in table.images if not os.path.isfile(table.path(i))]  # noqa: PTH113
    if missing:
        yield warning(
            f"{len(missing)} of {len(table.images)} pictures are not in {table.root}: "
            f"{first_few(missing)}",
            f"restore them for extraction and reports, or run {PREPARE} with the new --root",
        )


def _words(words: Vocabulary, table: CaptionTable, work: WorkFolder) -> Iterator[CheckResult]:
    path = work.vocabulary
    train = [c.tokens for i in table.images if i.split == "train" for c in i.captions]
    total = sum(map(len, train))
    known = sum(token in words.ids for tokens in train for token in tokens) / max(total, 1)
    text = f"{path}: {len(words):,} words cover {known:.1%} of the {total:,} in training captions"
    if known < _LEAST_COVERAGE:
        yield problem(f"{text}; it belongs to another data set", f"run {PREPARE} --force")
        return
    try:
        installed = tokenizer()
    except PackageNotFoundError:
        yield ok(f"{text}; not built again to compare, because spaCy is not installed")
        return
    rebuilt = vocabulary.build(train, words.min_count, words.max_length)
    if (rebuilt.words, rebuilt.counts) != (words.words, words.counts):
        yield problem(f"{text}, but it was built from other captions", f"run {PREPARE} --force")
    elif known < 1 - checks.UNKNOWN_BOUND:
        yield warning(text, f"keep more words: run {PREPARE} with a smaller --min-count")
    else:
        yield ok(text)
    if words.tokenizer != installed:
        yield warning(
            f"{path} was built with another tokenizer ({words.tokenizer}; installed: {installed})",
            f"run {PREPARE} --force, or install the version that built it",
        )


def _features(store: FeatureStore, table: CaptionTable) -> Iterator[CheckResult]:
    failed, stored = store.failures(), set(store.image_ids.tolist())
    kind = store.description
    yield ok(
        f"{store.path}: {len(store) - len(failed):,} images stored, {kind['backbone']}, "
        f"{kind['grid'][0]} x {kind['grid'][1]} x {kind['channels']} {kind['dtype']}, fingerprint "
        f"{store.fingerprint[:12]}"
    )
    missing = [image.id for image in table.images if image.id not in stored]
    if missing:
        yield problem(
            f"{len(missing)} images of captions.json are not in the store: {first_few(missing)}",
            f"run {EXTRACT} again {_SAME}; it keeps what is stored",
        )
    extra = stored.difference(image.id for image in table.images)
    if extra:
        yield warning(
            f"{len(extra)} stored images are not in captions.json: {first_few(sorted(extra))}",
            f"if they are no longer needed, remove them with {EXTRACT} --prune",
        )
    if failed:
        reasons = (f"image {image_id} ({why})" for image_id, why in failed.items())
        yield warning(
            f"{int((store.status == FAILED).sum())} pictures could not be read and are left out: "
            f"{first_few(reasons, 3)}",
            f"fix them and run {EXTRACT} again {_SAME}, or leave them out",
        )
    broken = damaged(store)
    if broken:
        listed = (f"image {image_id} ({why})" for image_id, why in broken.items())
        yield problem(
            f"{len(broken)} rows of the store are damaged: {first_few(listed, 3)}",
            f"check the disk, and run {EXTRACT} --force {_SAME}",
        )
        return
    yield ok(f"all rows of {store.path.name} match their checksums")
    yield from _leaks(store, table)


def _leaks(store: Store, table: CaptionTable) -> Iterator[CheckResult]:
    for split, leaked in checks.leaks(store, table).items():
        if leaked:
            pairs = (f"{image} (train {twin})" for image, twin in leaked.items())
            yield warning(
                f"{len(leaked)} {split} images are also in the training split under another id: "
                f"{first_few(pairs)}",
                f"remove them from one split and run {PREPARE}; overlapping splits inflate the "
                "scores",
            )


def _run(
    run: RunFolder, table: CaptionTable, words: Vocabulary | None, store: Store | None
) -> Iterator[CheckResult]:
    name = f"run {run.path.name}"
    if not run.best.exists():
        yield warning(
            f"{name} has no weights yet",
            f"unless it is being trained now, continue it with --resume, or delete {run.path}",
        )
        return
    try:
        model, own_words, config = load_decoder(run, run.best, torch.device("cpu"))
    except UserError as error:
        yield problem(
            f"{name}: {error}",
            _advice(error, "restore these files from a backup, or train the run again"),
        )
        return
    size = sum(parameter.numel() for parameter in model.parameters())
    yield ok(f"{name}: config, vocabulary and weights ({size:,} parameters) belong together")
    if store is not None and fingerprint(config["features"]) != store.fingerprint:
        yield problem(
            f"{name} was trained on other features than features.h5 has: "
            f"{differences(config['features'], store.description)}",
            f"run {EXTRACT} with the earlier options in another --work, or train the run again",
        )
    if words is not None and digest(words.words) != digest(own_words.words):
        yield warning(
            f"{name} has another vocabulary than {run.work.vocabulary}",
            "train again if the captions have changed; the run itself is intact",
        )
    try:
        if run.state.exists():
            checkpoints.load(run.state, torch.device("cpu"))
        else:
            yield warning(
                f"{name} has no state: --resume cannot continue it",
                "train it again if you want to continue it",
            )
    except UserError as error:
        yield problem(
            f"{name}: {error}",
            _advice(error, "the run cannot be continued; its best weights are intact"),
        )
    for split in SPLITS:
        if run.captions(split).exists():
            try:
                runs.load(run, split)
                yield ok(
                    f"{name}: captions of {split} and the files that belong to them are intact"
                )
            except UserError as error:
                yield problem(
                    f"{name}: {error}",
                    _advice(error, "write the named file again, with --force on its command"),
                )


def _outdated(folder: Path) -> Iterator[CheckResult]:
    """Warn about files that are older than the files they were made from."""
    for record in sorted(folder.glob(".done/*.json")):
        if changed := changed_inputs(folder, record.stem):
            command = next(
                (c for s, c in _STAGES.items() if record.stem.startswith(s)), record.stem
            )
            yield warning(
                f"{folder}: {record.stem} is older than {first_few(changed, 3)}",
                f"run {command} again for {folder}",
            )
