"""Stage `export`: turn a run into a captioner, a folder that stands alone."""

import sys
from collections.abc import Sequence

from decoder.sharing.options import ExportOptions
from pipeline.command import run as run_command


def export(options: ExportOptions) -> None:
    """Export a run as a captioner: a folder that works on its own, with scores and a card."""
    from decoder.sharing import export_stage

    export_stage.export(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run_command(export, ExportOptions, "decoder.export", argv)


if __name__ == "__main__":
    sys.exit(main())
