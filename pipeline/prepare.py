"""Stage `prepare`: from a data set to WORK/captions.json and WORK/vocabulary.json."""

import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial

from features.errors import UserError
from features.extras import need
from features.files import make_folder
from pipeline import captions, vocabulary
from pipeline.captions import SPLITS, CaptionTable
from pipeline.command import run
from pipeline.datasets import caption_files, load_table
from pipeline.download import download
from pipeline.options import PrepareOptions
from pipeline.presets import with_preset
from pipeline.up_to_date import Stamp
from pipeline.vocabulary import SPECIAL, UNK, Vocabulary
from pipeline.work import WorkFolder


def prepare(options: PrepareOptions) -> None:
    """Read and check a data set, and write its captions and vocabulary to a work directory."""
    if options.download:
        need("spacy")
        download(options)
    # Created first: inside the root it changes the root's modification time, which is an input.
    make_folder(options.work)
    stamp = Stamp(options.work, "prepare", options, caption_files(options))
    if stamp.holds() and not options.force:
        print("prepare: unchanged, skipped")
        return
    need("spacy")  # before minutes of reading
    table, remarks = load_table(options)
    train = table.split("train")
    words = vocabulary.build(
        (caption.tokens for image in train for caption in image.captions),
        options.min_count,
        options.max_length,
    )
    if len(words) == len(SPECIAL):
        raise UserError(
            f"no word occurs {options.min_count} times in the captions of the {len(train)} "
            "training images; lower --min-count"
        )
    work = WorkFolder(options.work)
    table_path, words_path = work.captions, work.vocabulary
    captions.save(table, table_path)
    vocabulary.save(words, words_path)
    for line in (*remarks, *_summary(table, words)):
        print(f"prepare: {line}")
    drawn_pictures = [table.root] if options.root is None else []
    stamp.write([table_path, words_path, *drawn_pictures])


def _summary(table: CaptionTable, words: Vocabulary) -> list[str]:
    counts = Counter(image.split for image in table.images)
    lengths = [len(c.tokens) for image in table.images for c in image.captions]
    longer = sum(length > words.max_length for length in lengths)
    unknown, total = words.counts[UNK], sum(words.counts)
    return [
        ", ".join(f"{counts[split]} {split}" for split in SPLITS) + f" images of {table.dataset}",
        f"{len(lengths)} captions, {longer} longer than {words.max_length} words",
        f"vocabulary of {len(words) - len(SPECIAL)} words, {1 - unknown / total:.2%} of the "
        f"{total} in training captions; {unknown} unknown (fewer than {words.min_count} times)",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run(prepare, PrepareOptions, "pipeline.prepare", argv, partial(with_preset, "prepare"))


if __name__ == "__main__":
    sys.exit(main())
