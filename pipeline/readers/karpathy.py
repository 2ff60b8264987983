"""Reader of the JSON format in which A. Karpathy published captions and splits.

Source: A. Karpathy, L. Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image
Descriptions", CVPR 2015; https://cs.stanford.edu/people/karpathy/deepimagesent/
"""

from pathlib import Path
from typing import Any

from features.errors import UserError
from pipeline.options import PrepareOptions
from pipeline.readers.files import captions_file, read_json
from pipeline.readers.records import Reading, Record, split_name


def read_karpathy(root: Path, options: PrepareOptions) -> Reading:
    """Read `--captions`, or the only dataset_*.json in the root."""
    path = captions_file(root, options.captions, ("dataset_*.json",))
    return read_karpathy_json(path, root)


def read_karpathy_json(path: Path, image_root: Path) -> Reading:
    """Read the file `path`; its pictures are in `image_root`.

    The optional "cocoid" of an image is its id, the optional "filepath" the folder of its file.

    Raises:
        UserError: the file is not JSON, or an image lacks a key or has an unknown split.
    """
    content = read_json(path)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UserError(f'{path}: expected an object with a list "images"')
    return Reading(image_root, [_record(entry, i, path) for i, entry in enumerate(entries)])


def _record(entry: Any, index: int, path: Path) -> Record:
    try:
        folder, name = entry.get("filepath"), entry["filename"]
        return Record(
            f"{folder}/{name}" if folder else name,
            split_name(entry["split"]),
            tuple("" if one["raw"] is None else one["raw"] for one in entry["sentences"]),
            entry.get("cocoid"),
        )
    except KeyError as error:
        raise UserError(f"{path}: image {index} lacks the key {error}") from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: image {index} is not in Karpathy's format ({error})") from error
    except UserError as error:
        raise UserError(f"{path}: image {index}: {error}") from error
