"""Stage `prepare`: from data sets to WORK/captions.json (or captions.db) and vocabulary.json."""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from features.commands import CAPTION
from features.errors import UserError
from features.extras import need
from features.files import make_folder
from pipeline import captions, pictures, vocabulary
from pipeline.captions import SPLITS, CaptionTable, Image
from pipeline.command import run
from pipeline.download import download
from pipeline.options import PrepareOptions
from pipeline.prepare_shards import listing_digest, undone, writing_database
from pipeline.presets import with_preset
from pipeline.sources import all_caption_files, data_sets, load_tables, repeated_as_also
from pipeline.up_to_date import Stamp
from pipeline.vocabulary import SPECIAL, UNK, Vocabulary
from pipeline.work import WorkFolder

# By default a word must occur so often, in fewer training captions than this: an unknown word
# leaves a gap in a caption, and the smaller the data, the more of its words are rare.
MIN_COUNTS = ((1_000, 1), (5_000, 2), (math.inf, 5))
_NO_VAL = "no image is in the split val, which decoder.train needs"


def prepare(options: PrepareOptions) -> None:
    """Read and check data sets, and write their captions and vocabulary to a work directory."""
    every = data_sets(options)
    if any(one.download for one in every):
        need("spacy")
    for one in every:
        if one.download:
            download(one)
    if options.dataset == "shards":
        _prepare_shards(options)
        return
    # Created first: inside the root it changes the root's modification time, which is an input.
    make_folder(options.work)
    stamp = Stamp(options.work, "prepare", options, all_caption_files(options))
    if stamp.holds() and not options.force:
        print("prepare: unchanged, skipped")
        return
    need("spacy")  # before minutes of reading
    work = WorkFolder(options.work)
    table, remarks = load_tables(options, pictures.known_ids(work))
    pictures.expect_free_ids(work, table)
    words, remark = build_vocabulary(table, options.min_count, options.max_length)
    if words is None:
        remark.append(_nothing_to_train_on(options.work))
    work.database.unlink(missing_ok=True)  # of data that were here before
    outputs = [work.captions]
    captions.save(table, work.captions)
    if words is not None:
        vocabulary.save(words, work.vocabulary)
        outputs.append(work.vocabulary)
    else:
        work.vocabulary.unlink(missing_ok=True)  # of data that were here before
    for line in (*remarks, *remark, *_summary(table, words, options.max_length)):
        print(f"prepare: {line}")
    drawn = [WorkFolder(options.work).images] if any(o.root is None for o in every) else []
    stamp.write([*outputs, *drawn])


def build_vocabulary(
    table: CaptionTable, min_count: int | None, max_length: int
) -> tuple[Vocabulary | None, list[str]]:
    """Return the vocabulary of the training captions, None if there are none, and remarks.

    Args:
        table: the images and captions.
        min_count: how often a word must occur; by default as `MIN_COUNTS` says.
        max_length: of the captions.

    Raises:
        UserError: no word is frequent enough.
    """
    train = [image for image in table.images if image.split == "train"]
    if not train:
        return None, []
    every = [caption.tokens for image in train for caption in image.captions]
    min_count, remarks = _chosen_min_count(min_count, len(every))
    if not any(image.split == "val" for image in table.images):
        remarks.append(_NO_VAL)
    words = vocabulary.build(every, min_count, max_length)
    _expect_words(words, len(train))
    return words, remarks


def _chosen_min_count(given: int | None, captions: int) -> tuple[int, list[str]]:
    """Return how often a word must occur in so many training captions, and a remark."""
    if given is not None:
        return given, []
    chosen = next(count for most, count in MIN_COUNTS if captions < most)
    if chosen == MIN_COUNTS[-1][1]:
        return chosen, []
    kept = "all words" if chosen == 1 else f"words that occur {chosen} times or more"
    return chosen, [
        f"{kept} are kept, because there are only {captions:,} training captions; --min-count "
        "changes this"
    ]


def _expect_words(words: Vocabulary, images: int) -> None:
    if len(words) == len(SPECIAL):
        raise UserError(
            f"no word occurs {words.min_count} times in the captions of the {images} training "
            "images; lower --min-count"
        )


def _nothing_to_train_on(work: Path) -> str:
    return (
        "no image is in the split train, so there is no vocabulary and nothing to train on; a run "
        f"trained elsewhere can caption the others: {CAPTION} --run RUN --split NAME --work {work}"
    )


def _prepare_shards(options: PrepareOptions) -> None:
    """Write the captions beside the stores of shards to a database, and the vocabulary."""
    assert options.root is not None
    make_folder(options.work)
    stamp = Stamp(options.work, "prepare", options, digest=listing_digest(options.root))
    if stamp.holds() and not options.force:
        for line in (*undone(options.root), "unchanged, skipped"):
            print(f"prepare: {line}")
        return
    need("spacy")
    work = WorkFolder(options.work)
    outputs, words = [work.database], None
    remarks = [_nothing_to_train_on(options.work)]
    with writing_database(options, work.database) as prepared:
        train = prepared.counts["train"]
        if train["images"]:
            min_count, remarks = _chosen_min_count(options.min_count, train["captions"])
            if not prepared.counts["val"]["images"]:
                remarks.append(_NO_VAL)
            words = vocabulary.of_counts(prepared.words, min_count, options.max_length)
            _expect_words(words, train["images"])
    (work.path / "captions.json").unlink(missing_ok=True)  # of data that were here before
    if words is not None:
        vocabulary.save(words, work.vocabulary)
        outputs.append(work.vocabulary)
    else:
        work.vocabulary.unlink(missing_ok=True)
    counts = {split: of_split["images"] for split, of_split in prepared.counts.items()}
    total, longer = (
        sum(of_split[name] for of_split in prepared.counts.values())
        for name in ("captions", "longer")
    )
    lines = [_listed(counts, options.dataset), *_of_captions(total, longer, options.max_length)]
    for line in (*prepared.remarks, *undone(options.root), *remarks, *lines, *_of_words(words)):
        print(f"prepare: {line}")
    stamp.write(outputs)


def _summary(table: CaptionTable, words: Vocabulary | None, max_length: int) -> list[str]:
    lengths = [len(c.tokens) for image in table.images for c in image.captions]
    longer = sum(length > max_length for length in lengths)
    lines = [_counts(table.images, table.dataset)]
    if len(table.sources) > 1:
        lines += [
            _counts([i for i in table.images if i.source == source.name], source.name)
            for source in table.sources
        ]
    return [*lines, *_of_captions(len(lengths), longer, max_length), *_of_words(words)]


def _of_captions(count: int, longer: int, max_length: int) -> list[str]:
    return [f"{count} captions, {longer} longer than {max_length} words"]


def _of_words(words: Vocabulary | None) -> list[str]:
    if words is None:
        return []
    unknown, total = words.counts[UNK], sum(words.counts)
    return [
        f"vocabulary of {len(words) - len(SPECIAL)} words, {1 - unknown / total:.2%} of the "
        f"{total} in training captions; {unknown} unknown (fewer than {words.min_count} times)",
    ]


def _counts(images: Iterable[Image], name: str) -> str:
    return _listed(Counter(image.split for image in images), name)


def _listed(counts: Mapping[str, int], name: str) -> str:
    return ", ".join(f"{counts[split]} {split}" for split in SPLITS) + f" images of {name}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run(prepare, PrepareOptions, "pipeline.prepare", argv, _expanded)


def _expanded(argv: list[str]) -> list[str]:
    return with_preset("prepare", repeated_as_also(argv))


if __name__ == "__main__":
    sys.exit(main())
