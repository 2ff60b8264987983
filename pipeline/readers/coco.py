"""Reader of COCO captions, with Karpathy's splits or the official ones of 2014 and 2017.

Source: X. Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server", 2015.
"""

from pathlib import Path
from typing import Any

from features.errors import UserError, first_few
from pipeline.options import PrepareOptions
from pipeline.readers.files import find, read_json
from pipeline.readers.karpathy import read_karpathy_json
from pipeline.readers.records import Reading, Record

# The releases in order of preference, each with a file that identifies it.
RELEASES = {
    "karpathy": "dataset_coco.json",
    "2014": "annotations/captions_train2014.json",
    "2017": "annotations/captions_train2017.json",
}


def read_coco(root: Path, options: PrepareOptions) -> Reading:
    """Read `--release`, or the first of `RELEASES` that is in the root.

    Raises:
        UserError: that release is not in the root, or a file is damaged.
    """
    wanted: list[str] = [options.release] if options.release else list(RELEASES)
    paths = {release: find(root, (RELEASES[release],)) for release in wanted}
    present = {release: path for release, path in paths.items() if path}
    if not present:
        files = " or ".join(RELEASES[release] for release in wanted)
        raise UserError(f"{root}: expected {files}, found none; --download fetches it")
    release, path = next(iter(present.items()))
    pictures = find(root, ("val2017" if release == "2017" else "val2014",))
    image_root = pictures.parent if pictures else root
    if release == "karpathy":
        reading = read_karpathy_json(path, image_root)
    else:
        reading = _read_official(path.parent, image_root, release, options.skip_missing)
    remark = f"captions and splits of {path}"
    if len(present) > 1:
        remark += f"; also present: {', '.join(list(present)[1:])} (choose with --release)"
    return Reading(image_root, reading.records, [remark, *reading.remarks])


def _read_official(folder: Path, image_root: Path, year: str, skip_missing: bool) -> Reading:
    records, remarks = [], []
    for split in ("train", "val"):  # the captions of the official test split are not public
        path = folder / f"captions_{split}{year}.json"
        content = read_json(path)
        try:
            captions: dict[Any, list[str]] = {}
            for entry in content["annotations"]:
                captions.setdefault(entry["image_id"], []).append(entry["caption"])
            for image in content["images"]:
                name = f"{split}{year}/{image['file_name']}"
                texts = tuple(captions.pop(image["id"], ()))
                records.append(Record(name, split, texts, image["id"]))
        except KeyError as error:
            raise UserError(f"{path}: an image or annotation lacks the key {error}") from error
        except TypeError as error:
            raise UserError(
                f"{path} is not in COCO's caption format: expected an object with the lists "
                f"`images` and `annotations` ({error})"
            ) from error
        if captions:
            remark = f"{path}: {len(captions)} image ids have captions but no image: "
            remark += first_few(captions)
            if not skip_missing:
                raise UserError(f"{remark}; --skip-missing leaves them out")
            remarks.append(remark)
    return Reading(image_root, records, remarks)
