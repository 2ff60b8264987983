"""Write golden_shapes.json, the captions of the first pictures of seed 0.

Run `python tests/pipeline/regenerate_golden_shapes.py` after an intended change of the scenes or
their wording, and read the diff before committing it.
"""

import json
import tempfile
from pathlib import Path

from pipeline import shapes

GOLDEN = Path(__file__).with_name("golden_shapes.json")


def captions_by_file() -> dict[str, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        scenes = shapes.draw(Path(folder), count=12, seed=0, size=64)
    return {scene.file_name: list(scene.captions) for scene in scenes}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(captions_by_file(), indent=1) + "\n")
