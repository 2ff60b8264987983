"""Options of pipeline.prepare, extract and doctor; the fields' docstrings are their help texts."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from features.commands import EXTRACT
from features.errors import UserError, unknown_name
from pipeline.presets import check_name
from pipeline.readers.columns import parse_columns
from pipeline.vocabulary import MAX_LENGTH

DATASETS = ("shapes", "flickr8k", "flickr30k", "coco", "karpathy", "folder", "shards")


def content_of_root(dataset: str) -> str:
    """Return which folder --root is to name for a data set."""
    described = {
        "folder": "the folder of your pictures and their captions",
        "shards": f"the folder that {EXTRACT} --shards wrote to",
    }
    return described.get(dataset, f"the folder of the data set {dataset}")


# The data sets that an option is for; with another it would have no effect.
_ONLY_FOR = {
    "captions": ("karpathy", "folder"),
    "columns": ("folder",),
    "release": ("coco",),
    "val": ("shards",),
    "test": ("shards",),
}


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `pipeline.prepare`."""

    EXAMPLES: ClassVar[dict[str, str]] = {
        "Draw scenes of shapes, to try the pipeline": "--dataset shapes --work work",
        "Download and read Flickr8k": ("--dataset flickr8k --root data --work work --download"),
        "Read a folder with your own pictures and a captions.csv": (
            "--dataset folder --root pictures --work work"
        ),
        "Put two data sets into one work directory": (
            "--work work --dataset flickr8k --root data --dataset folder --root pictures"
        ),
    }
    ONCE: ClassVar[tuple[str, ...]] = ("--work",)
    EVERYDAY: ClassVar[tuple[str, ...]] = (
        "dataset",
        "work",
        "root",
        "captions",
        "columns",
        "name",
        "terms",
        "also",
        "download",
        "skip_missing",
        "preset",
        "min_count",
        "max_length",
        "images",
        "force",
    )

    dataset: str
    """shapes, flickr8k, flickr30k, coco, karpathy (a dataset_*.json), shards or folder (your own
    pictures)."""
    work: Path
    """The work directory; captions.json and vocabulary.json are written to it."""
    root: Path | None = None
    """The folder that holds the data set; not for shapes."""
    captions: Path | None = None
    """With --dataset karpathy or folder: the captions file, if there is more than one in --root."""
    columns: Annotated[str | None, tyro.conf.arg(metavar="COLUMNS")] = None
    """The columns of folder's table as image=NAME,caption=NAME[,split=NAME]; caption may be
    repeated."""
    name: str | None = None
    """The name of the data set as a source of pictures, if there are more; by default that of
    --dataset."""
    terms: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """The terms of use of the data set, in quotes, for the model card."""
    also: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="OPTIONS")
    ] = ()
    """The options of a further data set in quotes, such as "--dataset folder --root B"; instead,
    --dataset may be repeated, and the options of each data set follow it."""
    preset: str | None = None
    """Settings of a data set, such as flickr8k, as defaults."""
    release: Literal["karpathy", "2014", "2017"] | None = None
    """With --dataset coco: the captions and splits to use; by default the first of these found in
    --root."""
    min_count: int | None = None
    """Words that occur less often in the training captions become unknown; by default 5, but 2
    below 5,000 captions and 1 below 1,000."""
    max_length: int = 20
    """Training captions are cut to this many words."""
    skip_missing: bool = False
    """Leave out captions without a picture instead of stopping."""
    seed: int = 1
    """Seed of the scenes that shapes draws, and of splits that the data set does not define."""
    val: int | None = None
    """With --dataset shards: about how many pictures go to val, if their lines do not say; by
    default a tenth of all, at most 5,000."""
    test: int | None = None
    """With --dataset shards: about how many pictures go to test; see --val."""
    images: int = 2000
    """With --dataset shapes: number of pictures to draw."""
    size: int = 224
    """With --dataset shapes: height and width of the pictures in pixels."""
    download: bool = False
    """Download the files that --root lacks; only for coco and flickr8k."""
    mirror: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """With --download: address from which to fetch the archives instead."""
    force: bool = False
    """Run even if nothing changed."""

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise unknown_name("data set", self.dataset, DATASETS)
        check_name(self.preset)
        if self.dataset == "shapes" and self.root is not None:
            raise UserError(
                "leave out --root: it has no use with --dataset shapes, which draws its pictures "
                "into the work directory"
            )
        if self.dataset != "shapes" and self.root is None:
            raise UserError(
                f"--dataset {self.dataset} needs --root: {content_of_root(self.dataset)}"
            )
        # Unlike Path.resolve, realpath accepts circular links.
        if self.root is not None and os.path.realpath(self.root) == os.path.realpath(self.work):
            raise UserError("--work must be another folder than --root; try --work work")
        if self.columns is not None:
            parse_columns(self.columns)
        for name, datasets in _ONLY_FOR.items():
            if getattr(self, name) is not None and self.dataset not in datasets:
                wanted = " or ".join(datasets)
                raise UserError(f"--{name} is for --dataset {wanted}, found {self.dataset}")
        for name in ("val", "test"):
            size = getattr(self, name)
            if size is not None and size < 0:
                raise UserError(f"--{name} must be at least 0, found {size}")
        if self.mirror is not None and not self.mirror.startswith(("http://", "https://")):
            raise UserError(f"--mirror: expected http://... or https://..., found {self.mirror!r}")
        if self.name is not None and not re.fullmatch(r"[\w.+-]+", self.name):
            raise UserError(
                "--name: expected letters, digits and any of . + - _, without spaces, found "
                f"{self.name!r}"
            )
        for name in ("min_count", "max_length", "images", "size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} must be at least 1, found {getattr(self, name)}")
        if self.max_length > MAX_LENGTH:
            raise UserError(f"--max-length must be at most {MAX_LENGTH}, found {self.max_length}")


@dataclass(frozen=True)
class ExtractOptions:
    """Options of `pipeline.extract`."""

    EXAMPLES: ClassVar[dict[str, str]] = {
        "Extract the features of all pictures": "--work work",
        "Estimate time and size without extracting": "--work work --dry-run",
        "Use two CNNs side by side": "--work work --backbone efficientnet_lite2+resnet101",
        "Extract a large collection, a store for each shard": "--shards 'a/*.tar' --out features",
    }
    ONCE: ClassVar[tuple[str, ...]] = ("--work", "--from", "--out")
    EVERYDAY: ClassVar[tuple[str, ...]] = (
        "work",
        "shards",
        "out",
        "preset",
        "backbone",
        "from_",
        "grid",
        "dtype",
        "device",
        "workers",
        "dry_run",
        "force",
    )

    work: Path | None = None
    """The work directory with captions.json; features.h5 and extract.json are written to it."""
    shards: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATTERN")
    ] = ()
    """Instead of --work: tar archives, folders of pictures or parquet lists, as paths or URLs with
    wildcards and braces such as {000..199}; may be repeated."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """With --shards: the folder or URL for the outputs."""
    columns: Annotated[str | None, tyro.conf.arg(metavar="COLUMNS")] = None
    """With --shards: the columns of parquet lists as image=NAME[,caption=NAME][,key=NAME]."""
    prefix_keys: bool = False
    """With --shards: put the shard's name before each key, where keys repeat between shards."""
    retry: bool = False
    """With --shards: extract shards again in which pictures failed for reasons that may pass, such
    as a network failure."""
    scale: Path | None = None
    """With --shards and --dtype int8: the file with the scale of all shards; it is made from the
    first shard if it is missing."""
    engine: Literal["ray"] | None = None
    """With --shards: run on a Ray cluster instead of in this process."""
    gpus: float | None = None
    """With --engine ray: GPUs for each shard, such as 0.25 where four share a GPU."""
    backbone: str = "efficientnet_lite2"
    """efficientnet_lite0, 1 or 2, any torchvision classification CNN such as resnet101, any
    network of timm such as timm:resnet50_clip.openai, or several joined by +."""
    weights: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """File with the CNN's weights (safetensors or a state dict) instead of the published ones;
    repeat it for each CNN that is not an EfficientNet-Lite."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Import features from files instead of computing them: a folder of .npy or .npz files, or one
    .npy, .npz or HDF5 file."""
    keys: Literal["auto", "id", "name"] = "auto"
    """With --from: whether the files or keys are named by image id or by the picture's file
    name."""
    layout: Literal["auto", "hwc", "chw"] = "auto"
    """With --from: the order of the axes of grids; auto takes the longest one as the channels."""
    skip_extra: bool = False
    """With --from: leave out features of images that are not in captions.json instead of
    stopping."""
    grid: int = 7
    """Height and width of the stored grid of features."""
    preset: str | None = None
    """Settings of a data set, such as flickr8k, as defaults."""
    batch_size: int = 32
    """Number of pictures that go through the network together."""
    device: str = "auto"
    """cpu or cuda; auto uses a GPU if there is one."""
    backend: Literal["auto", "eager", "compile", "onnxruntime", "openvino"] = "auto"
    """The runtime of the network; auto uses the fastest one installed for the device."""
    workers: int | None = None
    """Threads that decode pictures, by default one a core; with --engine ray, CPUs of each shard,
    by default 1."""
    views: int = 1
    """Number of views of each picture to store, for augmentation: the picture, its mirror image,
    crops."""
    dtype: Literal["float16", "int8"] = "float16"
    """Type of the stored grid; int8, with a scale for each channel, takes half the space."""
    compression: Literal["deflate", "none"] = "deflate"
    """Lossless compression; none takes three times the space and reads faster."""
    prune: bool = False
    """Drop the features of images that are no longer in captions.json."""
    dry_run: bool = False
    """Estimate time and size from a few pictures, without extracting."""
    verify: bool = False
    """Check every row of features.h5 and recompute some, without extracting."""
    force: bool = False
    """Extract all features again, even if nothing changed."""

    def __post_init__(self) -> None:
        check_name(self.preset)
        for name in ("grid", "batch_size", "workers", "views"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, found {value}")
        if self.views > 1:
            from features.views import VIEWS

            if self.views > len(VIEWS):
                raise UserError(
                    f"--views must be at most {len(VIEWS)} ({', '.join(VIEWS)}), found {self.views}"
                )
        self._check_sources()
        if self.from_ is None:
            return
        for name in ("backbone", "weights", "grid", "views"):
            if getattr(self, name) != getattr(ExtractOptions, name):
                raise UserError(
                    f"leave out --{name}: --from stores features as they are, from a CNN that is "
                    "not run here"
                )

    def _check_sources(self) -> None:
        """Raise UserError unless the options are those of --work, or those of --shards."""
        for_shards = ("out", "columns", "prefix_keys", "retry", "scale", "engine", "gpus")
        for_work = ("from_", "keys", "layout", "skip_extra", "prune")
        if not self.shards and self.work is None:
            raise UserError("expected --work PATH, or --shards PATTERN and --out FOLDER")
        if self.shards and self.work is not None:
            raise UserError(
                "expected --work or --shards, found both; shards need no work directory"
            )
        useless, with_ = (for_work, "--shards") if self.shards else (for_shards, "--work")
        for name in useless:
            if getattr(self, name) != getattr(ExtractOptions, name):
                option = f"--{name.rstrip('_').replace('_', '-')}"
                raise UserError(f"leave out {option}: it has no use with {with_}")
        if not self.shards:
            return
        if self.out is None:
            raise UserError("--shards needs --out, the folder or URL for the features")
        if self.columns is not None:
            from features import shard_lists

            shard_lists.parse_columns(self.columns)
        if (self.dtype == "int8") != (self.scale is not None):
            raise UserError(
                "with --shards, --dtype int8 and --scale FILE go together: all shards share the "
                "scale in this file, which the first run makes"
            )
        if self.gpus is not None and (self.engine is None or self.gpus <= 0):
            raise UserError(
                f"--gpus: expected --engine ray and a number above 0, found {self.gpus}"
            )


@dataclass(frozen=True)
class DoctorOptions:
    """Options of `pipeline.doctor`."""

    EXAMPLES: ClassVar[dict[str, str]] = {
        "Check this machine": "",
        "Check a work directory too": "--work work",
        "Check the work directory of ./run_all.sh": "--work work/shapes",
    }
    ONCE: ClassVar[tuple[str, ...]] = ("--work",)
    EVERYDAY: ClassVar[tuple[str, ...]] = ("work",)

    work: Path | None = None
    """Check the files of this work directory too."""
