"""Caption pictures, the images of a web page, a split, or shards: `python -m decoder.caption`."""

import sys
from collections.abc import Sequence
from functools import partial

from decoder.captioning.options import CaptionOptions
from pipeline.command import run as run_command
from pipeline.presets import with_preset


def caption(options: CaptionOptions) -> int:
    """Write captions for pictures, a web page, a split of a data set, or shards.

    Returns:
        The exit status: 0, or 1 if some pictures, or shards, could not be read.
    """
    # Imported here, as in every command: PyTorch takes seconds, and a wrong option none.
    from decoder.captioning import caption_stage

    return caption_stage.caption(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run_command(
        caption, CaptionOptions, "decoder.caption", argv, partial(with_preset, "caption")
    )


if __name__ == "__main__":
    sys.exit(main())
