"""Which pictures the features of a work directory belong to."""

import json
from pathlib import Path

from pipeline.pictures import known_ids
from pipeline.work import WorkFolder


def test_ids_with_features_stay_taken_where_no_name_is_recorded(work: Path) -> None:
    """As in a work directory of version 0.2 from which a picture was removed."""
    (work / "pictures.json").unlink()
    table = json.loads((work / "captions.json").read_text())
    removed = table["images"].pop()
    gone = removed["id"]
    table["annotations"] = [a for a in table["annotations"] if a["image_id"] != gone]
    (work / "captions.json").write_text(json.dumps(table))
    known = known_ids(WorkFolder(work))
    assert gone in known.values()
    assert removed["file_name"] not in known
