"""Options of the pipeline's stages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from features.errors import UserError, unknown_name
from pipeline.vocabulary import MAX_LENGTH

DATASETS = ("shapes", "flickr8k", "flickr30k", "coco", "karpathy", "folder")


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `pipeline.prepare`."""

    dataset: str
    """shapes, flickr8k, flickr30k, coco, karpathy (a dataset_*.json) or folder (your own)."""
    work: Path
    """Work directory to write captions.json and vocabulary.json to."""
    root: Path | None = None
    """Where the data set lies; not needed for shapes."""
    captions: Path | None = None
    """karpathy and folder: the captions file, if it is not the only one in the root."""
    release: Literal["karpathy", "2014", "2017"] | None = None
    """coco: which captions and splits; by default the first of these that lies in the root."""
    min_count: int = 5
    """Words seen less often than this in the training captions become unknown."""
    max_length: int = 20
    """Training cuts captions to this many words."""
    skip_missing: bool = False
    """Leave out captions whose picture is not there instead of stopping."""
    seed: int = 1
    """Draws the scenes of shapes; splits a data set that names no splits."""
    images: int = 2000
    """shapes: how many pictures to draw."""
    size: int = 224
    """shapes: height and width of a picture in pixels."""
    download: bool = False
    """Fetch into the root what is missing there, if the source is public (coco, flickr8k)."""
    mirror: str | None = None
    """Download the archives, by their file names, from below this address instead."""
    force: bool = False
    """Run even if nothing changed since the last time."""

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise unknown_name("data set", self.dataset, DATASETS)
        if self.dataset == "shapes" and self.root is not None:
            raise UserError("--root: shapes are drawn into the work directory, leave it out")
        if self.dataset != "shapes" and self.root is None:
            raise UserError(f"--dataset {self.dataset} needs --root, the folder it lies in")
        if self.root is not None and self.root.resolve() == self.work.resolve():
            raise UserError("--work must be another folder than --root; try --work work")
        if self.mirror is not None and not self.mirror.startswith(("http://", "https://")):
            raise UserError(f"--mirror: expected http://... or https://..., found {self.mirror!r}")
        for name in ("min_count", "max_length", "images", "size"):
            if getattr(self, name) < 1:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} must be at least 1, found {getattr(self, name)}")
        if self.max_length > MAX_LENGTH:
            raise UserError(f"--max-length must be at most {MAX_LENGTH}, found {self.max_length}")


@dataclass(frozen=True)
class ExtractOptions:
    """Options of `pipeline.extract`."""

    work: Path
    """Work directory with captions.json; features.h5 and extract.json are written to it."""
    backbone: str = "efficientnet_lite2"
    """efficientnet_lite0, 1 or 2, any torchvision classification CNN, such as resnet101, or several
    joined by +, whose features stand side by side: they see more than the best of them."""
    grid: int = 7
    """The last feature map is averaged to a grid of this height and width."""
    batch_size: int = 32
    """Pictures that go through the network together."""
    device: str = "auto"
    """Where the network runs: cpu, cuda, ...; auto takes a GPU if there is one."""
    backend: Literal["auto", "eager", "compile", "onnxruntime", "openvino"] = "auto"
    """What runs the network; auto takes the fastest one for the device that is installed."""
    workers: int | None = None
    """Threads that decode, and compute if the backend takes pictures one by one; by default as many
    as there are cores."""
    views: int = 1
    """Views of each picture to store, for training to draw from: all of it, its mirror, crops."""
    dtype: Literal["float16", "int8"] = "float16"
    """Type of the stored grid; int8, with a scale for each channel, takes half the space."""
    compression: Literal["deflate", "none"] = "deflate"
    """deflate is lossless; none takes three times the space and reads faster."""
    prune: bool = False
    """Drop the features of images that captions.json has no more; else they are kept."""
    dry_run: bool = False
    """Extract nothing: measure some pictures and say how long and how large the extraction is."""
    verify: bool = False
    """Extract nothing: check every row of features.h5, and recompute some from the pictures."""
    force: bool = False
    """Start anew, even if nothing changed since the last time."""

    def __post_init__(self) -> None:
        for name in ("grid", "batch_size", "workers", "views"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, found {value}")


@dataclass(frozen=True)
class DoctorOptions:
    """Options of `pipeline.doctor`."""

    work: Path | None = None
    """Check the files of this work directory, too."""
