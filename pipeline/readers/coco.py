"""Reader of COCO captions, with Karpathy's splits or the official ones of 2014 and 2017.

Source: X. Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server", 2015.
"""

from pathlib import Path
from typing import Any

from features.errors import UserError, first_few
from pipeline.options import PrepareOptions
from pipeline.readers import records
from pipeline.readers.karpathy import read_karpathy_json
from pipeline.readers.records import Reading, Record

# Each release, in the order of preference, and a file by which it is known.
RELEASES = {
    "karpathy": "dataset_coco.json",
    "2014": "annotations/captions_train2014.json",
    "2017": "annotations/captions_train2017.json",
}


def read_coco(root: Path, options: PrepareOptions) -> Reading:
    """Read the release of COCO that lies in the root (see `RELEASES`), or the one chosen.

    Raises:
        UserError: the root has none of them, or not the chosen one, or a file is damaged.
    """
    wanted: list[str] = [options.release] if options.release else list(RELEASES)
    found = {release: records.find(root, (RELEASES[release],)) for release in wanted}
    there = {release: path for release, path in found.items() if path}
    if not there:
        files = " or ".join(RELEASES[release] for release in wanted)
        raise UserError(f"{root}: expected {files}; not there (--download gets it)")
    release, path = next(iter(there.items()))
    pictures = records.find(root, ("val2017" if release == "2017" else "val2014",))
    image_root = pictures.parent if pictures else root
    if release == "karpathy":
        reading = read_karpathy_json(path, image_root)
    else:
        reading = _read_official(path.parent, image_root, release, options.skip_missing)
    remark = f"captions and splits of {path}"
    if len(there) > 1:
        remark += f"; also there: {', '.join(list(there)[1:])} (see --release)"
    return Reading(image_root, reading.records, [remark, *reading.remarks])


def _read_official(folder: Path, image_root: Path, year: str, skip_missing: bool) -> Reading:
    read, remarks = [], []
    for split in ("train", "val"):  # the captions of the official test split are not public
        path = folder / f"captions_{split}{year}.json"
        content = records.read_json(path)
        try:
            captions: dict[Any, list[str]] = {}
            for entry in content["annotations"]:
                captions.setdefault(entry["image_id"], []).append(entry["caption"])
            for image in content["images"]:
                name = f"{split}{year}/{image['file_name']}"
                texts = tuple(captions.pop(image["id"], ()))
                read.append(Record(name, split, texts, image["id"]))
        except KeyError as error:
            raise UserError(f"{path}: an image or annotation lacks the key {error}") from error
        except TypeError as error:
            raise UserError(f"{path} is not in COCO's format ({error})") from error
        if captions:
            found = f"{path}: {len(captions)} image ids have captions but no image: "
            found += first_few(captions)
            if not skip_missing:
                raise UserError(f"{found}; --skip-missing leaves them out")
            remarks.append(found)
    return Reading(image_root, read, remarks)
