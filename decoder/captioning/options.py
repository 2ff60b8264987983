"""Options of decoder.caption and demo; the docstrings of the fields are their help texts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from decoder.captioning.access import host_of
from decoder.captioning.remote import is_remote
from decoder.generation.options import GenerateOptions
from features.errors import require
from pipeline.presets import check_name

PICTURES = 50  # captioned at once by default; the CNN needs memory for them too


@dataclass(frozen=True)
class CaptionOptions:
    """Write captions for a split of a work directory, or for pictures of your own."""

    EXAMPLES: ClassVar[dict[str, str]] = {
        "Print a caption for a photo and for each picture in a folder": "photo.jpg holiday/",
        "Write the captions to a table; run it again to add new pictures": (
            "holiday/ --out captions.csv"
        ),
        "Add alternative texts to a copy of a web page, page.alt.html": "--alt page.html",
        "Do so for a web site, and list the texts for review": (
            "--alt site/ --out copy/ --review texts.csv"
        ),
        "Caption the test split with a run that you trained": "--run work/runs/first --split test",
    }
    ONCE: ClassVar[tuple[str, ...]] = ("--out", "--sidecar", "--review", "--split", "--work")
    EVERYDAY: ClassVar[tuple[str, ...]] = (
        "pictures",
        "shards",
        "out",
        "sidecar",
        "alt",
        "review",
        "split",
        "run",
        "neutral",
        "generate.captions",
        "generate.beam",
        "json",
        "device",
        "force",
    )

    run: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """The folder of a run, WORK/runs/NAME, or of an exported captioner; without it, the
    included captioner; repeat it to average several runs."""
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Pictures, folders of pictures with their subfolders, web addresses, or - for standard
    input."""
    shards: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATTERN")
    ] = ()
    """Caption archives, folders or parquet lists, such as 'a/*.tar', into OUT/SHARD.jsonl;
    may be repeated."""
    columns: Annotated[str | None, tyro.conf.arg(metavar="COLUMNS")] = None
    """With --shards: the columns of parquet lists as image=NAME[,key=NAME]."""
    prefix_keys: bool = False
    """With --shards: put the shard's name before each key, where keys repeat between shards."""
    retry: bool = False
    """With --shards: caption shards again in which pictures failed for reasons that may pass, such
    as a network failure."""
    engine: Literal["ray"] | None = None
    """With --shards: run on a Ray cluster instead of in this process."""
    gpus: float | None = None
    """With --engine ray: GPUs for each shard, such as 0.25 where four share a GPU."""
    split: str | None = None
    """Caption this split of the run's work directory into RUN/captions_SPLIT.json."""
    work: Path | None = None
    """With --split: caption that of this work directory instead, whose features must be of the
    same kind, into WORK/captions_SPLIT_NAME.json for the run NAME; the included captioner, which
    is taken without --run, is called trained."""
    preset: str | None = None
    """Settings of a data set, such as flickr8k, as defaults."""
    alt: tuple[Path, ...] = ()
    """Copy these HTML pages to PAGE.alt.html, or the pages of folders to --out DIR, and add
    alternative texts to the images without one."""
    review: Path | None = None
    """With --alt: list the texts in this CSV file; correct them there and run again to apply."""
    site: Path | None = None
    """With --alt: the folder of the web site, for paths in the page that start with /."""
    weights: Literal["best", "best_xe", "both"] = "best"
    """The best weights of all, those before REINFORCE, or both as an ensemble."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Write to this file: .csv or .jsonl for pictures (new ones are added), COCO results for
    --split, a page or a folder for --alt; a folder or URL for --shards."""
    sidecar: Literal["txt", "stem-txt", "xmp"] | None = None
    """Write each caption beside its picture: txt into photo.jpg.txt, stem-txt into photo.txt, xmp
    as the description in photo.xmp or photo.jpg.xmp."""
    unsure: float = 0.6
    """Mark a caption as unsure if it is good with a probability below this; needs an exported
    captioner."""
    neutral: Literal["auto", "yes", "no"] = "auto"
    """Write "a person" for any man or woman; auto does so for --alt and --sidecar."""
    generate: tyro.conf.OmitArgPrefixes[GenerateOptions] = field(default_factory=GenerateOptions)
    attention: int = 64
    """With --split: number of images whose attention is saved for the report."""
    json: bool = False
    """Print a JSON object for each picture."""
    batch_size: int | None = None
    """Number of images captioned at once; by default 50, with --split on a GPU hundreds."""
    seed: int = 1
    """With --sample: seed of the samples."""
    device: str = "auto"
    """cpu or cuda; auto uses a GPU if there is one."""
    force: bool = False
    """Caption again, and replace existing files."""

    @property
    def neutral_words(self) -> bool:
        """Whether captions name people neutrally."""
        published = bool(self.alt) or self.sidecar is not None
        return published if self.neutral == "auto" else self.neutral == "yes"

    def __post_init__(self) -> None:
        check_name(self.preset)
        self._check_shards()
        given = sum(map(bool, (self.split is not None, self.alt, self.pictures, self.shards)))
        require(
            given == 1,
            "expected paths of pictures, or --split NAME, --alt PAGE or --shards PATTERN, found "
            + ("none of them" if given == 0 else "more than one of them"),
        )
        if self.pictures and self.out is not None:
            require(
                Path(self.out).suffix.lower() in (".csv", ".jsonl"),
                f"--out must end in .csv or .jsonl, found {self.out}",
            )
        require(
            self.split is None
            or self.run not in ((), (Path("packaged"),))
            or self.work is not None,
            "--split needs --run: the folder WORK/runs/NAME of a trained run; or --work WORK "
            "alone, for the included captioner",
        )
        require(self.split is not None or self.work is None, "--work needs --split NAME")
        require(self.pictures != () or self.sidecar is None, "--sidecar needs pictures")
        for picture in filter(is_remote, self.pictures):
            require(
                self.sidecar is None and self.out is None,
                f"--out and --sidecar are for files, found {picture}; leave them out, or save the "
                "picture first",
            )
        require(
            self.sidecar is None or self.out is None,
            "expected --sidecar or --out, found both; choose one",
        )
        require(
            self.split is None or self.neutral != "yes",
            "--neutral is for captions that people read: with --split they are to be scored, so "
            "leave it out",
        )
        require(self.alt != () or self.site is None, "--site needs --alt")
        require(self.alt != () or self.review is None, "--review needs --alt")
        place = "a sidecar" if self.sidecar is not None else "an alternative text"
        require(
            self.generate.captions == 1 or (self.sidecar is None and self.alt == ()),
            f"{place} holds one caption, found --captions {self.generate.captions}; leave it out, "
            "or write all of them with --out FILE.csv or FILE.jsonl",
        )
        require(
            not self.json or (self.pictures != () and self.out is None and self.sidecar is None),
            "--json prints the captions of pictures, so it cannot be combined with --out, "
            "--sidecar, --alt or --split; leave it out, or use --out FILE.jsonl",
        )
        require(0 <= self.unsure <= 1, "--unsure must be from 0 to 1")
        require(
            self.split is None or len(self.run) < 2 or self.out is not None,
            "with --split and more than one --run, name the file to write with --out",
        )
        require(self.seed >= 0, "--seed must not be negative")
        require(self.batch_size is None or self.batch_size > 0, "--batch-size must be positive")
        require(self.attention >= 0, "--attention must not be negative")
        asked = self.attention != CaptionOptions.attention
        require(self.split is not None or not asked, "--attention needs --split NAME")

    def _check_shards(self) -> None:
        """Raise UserError unless the options are those of --shards, or none of them is given."""
        for_shards = ("columns", "prefix_keys", "retry", "engine", "gpus")
        for_others = ("split", "work", "alt", "review", "site", "sidecar", "json", "attention")
        useless = for_others if self.shards else for_shards
        given = [name for name in useless if getattr(self, name) != getattr(CaptionOptions, name)]
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        why = "it has no use with --shards" if self.shards else "it needs --shards"
        require(not given, f"leave out {names}: {why}")
        if not self.shards:
            return
        require(
            self.pictures == (),
            f"expected --shards or pictures, found both ({', '.join(self.pictures[:3])}); put "
            "patterns into quotes, such as --shards 'a/*.tar'",
        )
        require(self.out is not None, "--shards needs --out, the folder or URL for the captions")
        if self.columns is not None:
            from features import shard_lists

            shard_lists.parse_columns(self.columns)
        require(
            self.gpus is None or (self.engine is not None and self.gpus > 0),
            f"--gpus: expected --engine ray and a number above 0, found {self.gpus}",
        )


@dataclass(frozen=True)
class DemoOptions:
    """A page in the browser that captions pictures, and searches those of a folder."""

    EXAMPLES: ClassVar[dict[str, str]] = {
        "Open the page with the included captioner": "",
        "Add a tab that searches a folder of pictures": "--folder ~/Pictures",
        "Review captions and save them beside the pictures": "--folder ~/Pictures --save",
        "Caption with a run that you trained": "--run work/runs/first",
        "Open it to other machines, with the password in a file": (
            "--host 0.0.0.0 --password-file password.txt"
        ),
    }
    ONCE: ClassVar[tuple[str, ...]] = ("--run", "--folder", "--work")
    EVERYDAY: ClassVar[tuple[str, ...]] = (
        "run",
        "folder",
        "save",
        "work",
        "host",
        "port",
        "password_file",
        "allow_host",
        "device",
    )

    run: Path | None = None
    """The folder of a run, WORK/runs/NAME, or of an exported captioner; without it, the
    included captioner."""
    folder: Path | None = None
    """Add a tab that searches the pictures in this folder and below it."""
    save: bool = False
    """Let the page save captions in the --folder, in files beside its pictures or in a table."""
    work: Path | None = None
    """Add a tab that searches the pictures of this work directory."""
    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens the page to the network and needs a password."""
    port: int = 7860
    """Port to listen on; 0 chooses a free one."""
    password_file: Path | None = None
    """File that only you can read, whose first line is the password of the page; DEMO_PASSWORD in
    the environment is another way."""
    allow_host: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Name by which a tunnel or proxy reaches the page, NAME or NAME:PORT; repeat it for others;
    with --host 0.0.0.0, the page then answers to these and to localhost only."""
    max_upload: int = 20
    """Largest picture that is accepted, in megabytes."""
    max_queue: int = 50
    """Number of pictures and searches that may wait; further ones are refused as busy."""
    unsure: float = 0.6
    """Mark a caption as unsure if it is good with a probability below this."""
    device: str = "auto"
    """cpu or cuda; auto uses a GPU if there is one."""

    def __post_init__(self) -> None:
        require(0 <= self.port < 2**16, f"--port must be from 0 to 65535, found {self.port}")
        require(self.max_upload > 0, f"--max-upload must be positive, found {self.max_upload}")
        require(
            self.folder is None or self.work is None,
            "expected --folder or --work to search in, found both; choose one",
        )
        require(self.folder is not None or not self.save, "--save needs --folder")
        require(self.max_queue > 0, f"--max-queue must be positive, found {self.max_queue}")
        for name in self.allow_host:
            require(
                host_of(name) is not None,
                "expected --allow-host NAME or NAME:PORT, such as demo.example.org, found "
                f"{name!r}",
            )
        require(0 <= self.unsure <= 1, "--unsure must be from 0 to 1")
