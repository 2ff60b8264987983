"""From a work directory to captions: models, objectives, reward, search, checkpoints, stages."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

# The features of this project, not a features.py of the current folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import features  # noqa: F401 - before torch, see there

del sys.path[0]

if TYPE_CHECKING:
    from decoder.captioning.writer import CaptionWriter
    from decoder.generation.options import GenerateOptions


def load(
    run: "str | Path | None" = None,
    generate: "GenerateOptions | None" = None,
    *,
    unsure: float = 0.6,
    neutral: bool = False,
    batch_size: int = 50,
    seed: int = 1,
    device: str = "auto",
) -> "CaptionWriter":
    """Load a captioner, whose `caption` describes pictures as the command decoder.caption does.

        c = decoder.load()
        print(c.caption("photo.jpg").caption)

    Args:
        run: the folder of a run, WORK/runs/NAME, or of an exported captioner; None for the one
            included in the package.
        generate: how captions are generated and chosen; None for the defaults of decoder.caption.
        unsure: captions that are good with a probability below this are marked as unsure.
        neutral: whether captions say "a person" and "a child" instead of guessing who is a man or a
            woman.
        batch_size: number of pictures captioned at once.
        seed: seed of the samples, if `generate` samples.
        device: "cpu" or "cuda"; "auto" uses a GPU if there is one.

    Raises:
        UserError: there is no such run, or its files are broken or do not belong together; or
            there is no such device, or `unsure` is no probability.
    """
    # Here, so that `import decoder` takes no time.
    from decoder.captioning.captioner import default_generation
    from decoder.captioning.writer import CaptionWriter
    from decoder.runs.packaged import captioner_folder
    from features.devices import choose_device
    from features.errors import require

    require(0 <= unsure <= 1, f"unsure must be from 0 to 1, found {unsure}")
    folder = captioner_folder(run)
    writer = CaptionWriter(
        [(folder, folder.best)],
        default_generation(folder, generate),
        threshold=unsure,
        neutral=neutral,
        batch_size=batch_size,
        seed=seed,
        device=choose_device(device),
    )
    writer.load()
    return writer
