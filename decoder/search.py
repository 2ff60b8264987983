"""Stage `search`: find pictures for a sentence, in a folder or a work directory, or captions."""

import sys
from collections.abc import Sequence

from decoder.ranking.options import SearchOptions
from pipeline.command import run as run_command


def search(options: SearchOptions) -> None:
    """Find pictures by a sentence, in a folder or a work directory, or captions by a picture.

    The first search of a folder or a work directory takes minutes for thousands of pictures.
    """
    from decoder.captioning import search_stage

    search_stage.search(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run_command(search, SearchOptions, "decoder.search", argv)


if __name__ == "__main__":
    sys.exit(main())
