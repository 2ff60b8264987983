"""Reader of COCO captions, with Karpathy's splits or the official ones of 2014 and 2017.

Source: X. Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server", 2015.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from features.errors import UserError, first_few
from pipeline.options import PrepareOptions
from pipeline.readers.files import find, read_json
from pipeline.readers.karpathy import read_karpathy_json
from pipeline.readers.records import Reading, Record, split_name

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
        read, says = read_coco_file(path, read_json(path), skip_missing)
        for record in read:
            name = f"{split}{year}/{record.file_name.removeprefix(f'{split}{year}/')}"
            records.append(replace(record, file_name=name, split=split))
        remarks += says
    return Reading(image_root, records, remarks)


def is_coco(content: Any) -> bool:
    """Whether the content of a JSON file is in COCO's format of captions."""
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def read_coco_file(
    path: Path, content: Any, skip_missing: bool = False
) -> tuple[list[Record], list[str]]:
    """Return the images of a file of captions, and remarks.

    Images are in no split, unless they have a "split" as in a work directory's captions.json. Ids
    may be numbers or text. If some are text other than a number, the images get no ids. A caption
    that an image has twice is counted once.

    Raises:
        UserError: a key is missing, a split is unknown, or captions belong to no image (unless
            `skip_missing`).
    """
    remarks: list[str] = []
    captions: dict[Any, dict[str, None]] = {}  # the values are ordered sets
    repeated = 0
    try:
        for entry in content["annotations"]:
            texts = captions.setdefault(as_number(entry["image_id"]), {})
            text = "" if entry["caption"] is None else entry["caption"]
            repeated += bool(text) and text in texts
            texts[text] = None
        records = []
        for image in content["images"]:
            image_id = as_number(image["id"])
            if not isinstance(image["file_name"], str) or not image["file_name"]:
                raise TypeError(f"expected a file name, found {image['file_name']!r:.80}")
            own = tuple(captions.pop(image_id, ()))
            split = split_name(str(image["split"])) if image.get("split") else None
            records.append(Record(image["file_name"], split, own, image_id))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
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
    if repeated:
        remarks.append(f"{path.name}: {repeated} annotations are duplicated, counted once")
    if any(isinstance(record.id, str) for record in records):
        records = [replace(record, id=None) for record in records]
        remarks.append(f"{path.name}: image ids are text; images are numbered by file name")
    return records, remarks


def as_number(value: Any) -> Any:
    """Return an id as the number that it spells: "7", "0007" and 7.0 are 7."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value) if len(value) < 20 else value
    return int(value) if isinstance(value, float) and value.is_integer() else value
