"""Stage `demo`: a browser page that captions pictures and searches a work directory."""

import importlib.util
import sys
from collections.abc import Sequence

from decoder.captioning.options import DemoOptions
from decoder.runs.packaged import packaged_captioner
from features.devices import choose_device
from features.errors import UserError
from pipeline.command import run as run_command
from pipeline.work import RunFolder, WorkFolder


def demo(options: DemoOptions) -> None:
    """Serve a web page that captions pictures, and searches those of a work directory.

    It needs no internet. Only this machine can reach it unless you set --host.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "the page needs Gradio, which is not installed; in a clone of the project: "
            "./.venv/bin/python -m pip install --editable '.[demo]'"
        )
    from decoder.captioning.page import PageCaptioner, serve
    from decoder.ranking.searcher import Searcher

    run = RunFolder(options.run or packaged_captioner())
    device = choose_device(options.device)
    captioner = PageCaptioner(run, options.unsure, device)
    searcher = None
    if options.work is not None:
        # A decoder from before REINFORCE models human captions better.
        weights = run.best_xe if run.best_xe.exists() else run.best
        searcher = Searcher(run, weights, WorkFolder(options.work), device)
    serve(
        captioner,
        searcher,
        host=options.host,
        port=options.port,
        max_upload=options.max_upload,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run_command(demo, DemoOptions, "decoder.demo", argv)


if __name__ == "__main__":
    sys.exit(main())
