"""Caption pictures, the images of a web page, or a split: `python -m decoder.caption`."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from decoder.captioning.captioner import usual_writing
from decoder.captioning.files import caption_files
from decoder.captioning.html import caption_page
from decoder.captioning.options import CaptionOptions
from decoder.captioning.split import caption_split
from decoder.runs.packaged import packaged
from features.errors import UserError
from pipeline.command import run as run_command
from pipeline.work import RunFolder


def caption(options: CaptionOptions) -> int:
    """Write captions for pictures and folders of pictures, a web page, or a split of a data set."""
    folders = [RunFolder(path) for path in options.run or (packaged(),)]
    weights = ("best", "best_xe") if options.weights == "both" else (options.weights,)
    runs = [(run, getattr(run, name)) for run in folders for name in weights]
    for run in folders:
        if "best_xe" in weights and run.best.exists() and not run.best_xe.exists():
            raise UserError(
                f"{run.path} holds no weights from before REINFORCE; nor does any captioner that "
                "decoder.export makes: leave out --weights"
            )
    if len(folders) == 1:
        options = replace(options, generate=usual_writing(folders[0], options.generate))
    if options.split is not None:
        return caption_split(options, runs, options.split)
    if options.alt is not None:
        return caption_page(options, runs, options.alt)
    return caption_files(options, runs)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run_command(caption, CaptionOptions, "decoder.caption", argv)


if __name__ == "__main__":
    sys.exit(main())
