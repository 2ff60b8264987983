"""Stage `extract`: run the frozen CNN on every picture once and store its features."""

import sys
from collections.abc import Sequence
from functools import partial

from pipeline.command import run
from pipeline.options import ExtractOptions
from pipeline.presets import with_preset


def extract_features(options: ExtractOptions) -> int:
    """Store the features of every picture of a work directory in WORK/features.h5.

    With --from they are read from files of another program. A stopped extraction continues when it
    is started again. Pictures that failed are tried again when options or files have changed.
    Processes started by torchrun share the work.

    With --shards, each shard of a large collection becomes a store of its own, OUT/SHARD.h5. The
    exit status is 1 if a shard is broken.
    """
    if options.shards:
        from pipeline.extract_shards import extract_shards

        return extract_shards(options)
    from pipeline.extract_work import extract_work

    extract_work(options)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run(
        extract_features,
        ExtractOptions,
        "pipeline.extract",
        argv,
        partial(with_preset, "extract"),
    )


if __name__ == "__main__":
    sys.exit(main())
