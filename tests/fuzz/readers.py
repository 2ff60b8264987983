"""Every function that reads files from outside, each with valid files to damage.

A reader gets a file and may read it, raise UserError or raise PictureError. Anything else is a
defect, and so is taking a long time or a lot of memory.
"""

import hashlib
import io
import json
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as Picture

from decoder import caption, search, train
from decoder.captioning.charsets import decode
from decoder.captioning.html import HtmlPage
from decoder.captioning.kinds import not_html
from decoder.captioning.listing import Listing, State
from decoder.captioning.review import Review, Row
from decoder.captioning.sources import file_of
from decoder.captioning.xml_elements import NotXmpError
from decoder.captioning.xmp import Xmp
from decoder.data.batches import Features
from decoder.generation.generate import Generated, generate
from decoder.generation.options import GenerateOptions
from decoder.model.options import ModelOptions
from decoder.ranking import embedding_file
from decoder.ranking.consensus import count_frequencies
from decoder.ranking.expectation import ReducedExpectation
from decoder.ranking.reranker import fit_expectation
from decoder.runs import checkpoints
from decoder.runs.loading import load_decoder
from decoder.training.config import arguments_like
from decoder.training.options import CrossEntropyOptions, ReinforceOptions, TrainOptions
from evaluation import recall, results, runs, score
from evaluation.report import render
from evaluation.result_names import captions_by_id
from features.files import read_json
from features.images import read_picture
from features.parts import PartWriter, scan
from features.row_format import RowFormat
from features.store import STORED, FeatureStore
from features.store_writing import begin, merge, only_writer, parts_folder
from features.verification import damaged
from pipeline import captions, vocabulary
from pipeline.datasets import load_table
from pipeline.download import _unpack
from pipeline.options import PrepareOptions
from pipeline.vocabulary import EOS, PAD
from pipeline.work import RunFolder
from tests.decoder.captioning.xmp_files import PROGRAMS, languages, with_properties
from tests.fuzz import shards
from tests.fuzz.mutations import damage_bytes, damage_json, damage_text


class Reader(NamedTuple):
    """A reader, its valid examples, and the function that damages a file of its kind."""

    name: str
    read: Callable[[Path], object]
    examples: Sequence[bytes]
    damage: Callable[[bytes, Random], bytes]
    file: str = "file"


def of_bytes(data: bytes, random: Random) -> bytes:
    return damage_bytes(data, random)


def of_text(data: bytes, random: Random) -> bytes:
    if random.random() < 0.2:
        return damage_bytes(data, random)
    return damage_text(data.decode(), random).encode()


def of_json(data: bytes, random: Random) -> bytes:
    if random.random() < 0.1:
        return damage_bytes(data, random)
    return damage_json(json.loads(data), random).encode()


def of_json_lines(data: bytes, random: Random) -> bytes:
    if random.random() < 0.2:
        return of_text(data, random)
    lines = data.split(b"\n")
    line = random.randrange(len(lines))
    if lines[line]:
        lines[line] = of_json(lines[line], random)
    return b"\n".join(lines)


def of_xmp(data: bytes, random: Random) -> bytes:
    """Damage the bytes, or move a tag or an attribute to another place."""
    if random.random() < 0.3:
        return damage_bytes(data, random)
    pieces = re.split(rb"(<[^>]*>|\s[\w:]+=\"[^\"]*\")", data)
    for _ in range(random.randint(1, 4)):
        piece = random.choice(pieces)
        pieces.insert(random.randrange(len(pieces)), piece)
        if random.random() < 0.5:
            del pieces[random.randrange(len(pieces))]
    return b"".join(pieces)


def of_safetensors(data: bytes, random: Random) -> bytes:
    """Damage the header's JSON, the JSON in it, or the bytes."""
    size = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + size]), data[8 + size :]
    match random.randint(0, 3):
        case 0:
            return damage_bytes(data, random)
        case 1:  # the numbers themselves, for example by NaN
            head = bytearray(data)
            place = 8 + size + 4 * random.randrange(len(tensors) // 4)
            head[place : place + 4] = struct.pack("<f", random.choice((np.nan, np.inf, 1e38)))
            return bytes(head)
        case 2:
            inner = json.loads(header["__metadata__"]["json"])
            header["__metadata__"]["json"] = damage_json(inner, random)
            text = json.dumps(header).encode()
        case _:
            text = damage_json(header, random).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def of_npz(data: bytes, random: Random) -> bytes:
    """Damage the archive or an array in it, or replace that by another shape or type."""
    if random.random() < 0.3:
        return damage_bytes(data, random)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = random.choice(list(members))
    if random.random() < 0.5:
        members[name] = damage_bytes(members[name], random)
    else:
        shape = tuple(random.choice((0, 1, 2, 4, 7)) for _ in range(random.randint(0, 5)))
        kind = random.choice(("f4", "i8", "U3", "S2", "c8", "M8[s]", "f2", "?", "V3"))
        file = io.BytesIO()
        np.save(file, np.zeros(shape, kind))
        members[name] = file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _load_table(dataset: str, root: Path, work: Path) -> object:
    options = PrepareOptions(dataset, work, root, min_count=1, skip_missing=True)
    table, _ = load_table(options)
    captions.save(table, work / "captions.json")
    return captions.load(work / "captions.json")


def _captions(path: Path) -> None:
    """Load a table, then write it and use its ids: what was accepted must be usable."""
    table = captions.load(path)
    captions.save(table, path.with_name("again.json"))
    np.array([image.id for image in table.images], dtype=np.int64)


def _vocabulary(path: Path) -> None:
    words = vocabulary.load(path)
    words.decode(range(4, len(words)))
    vocabulary.save(words, path.with_name("again.json"))
    words.encode(["a"])


_NAMED = [{"file_name": f"a/{i}.jpg", "caption": f"dog {i}", "image_id": i} for i in range(3)]


def _results(path: Path) -> None:
    found = results.read_results(path)
    by_id = found.by_id
    if found.by_name:
        by_id = captions_by_id(found, lambda: [(i, f"b/{i}.jpg") for i in range(9)], "captions")
    np.array(list(by_id), dtype=np.int64)
    "\n".join(by_id.values()).encode()


def _result_lines(path: Path) -> None:
    _results(Path(shutil.copy(path, path.with_suffix(".jsonl"))))


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


def _picture(path: Path) -> None:
    assert read_picture(path).mode == "RGB"


def pictures() -> dict[str, list[bytes]]:
    """Small valid pictures of every supported format, including its unusual variants."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    colour = Picture.fromarray(pixels)
    exif = Picture.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"

    def saved(picture: Picture.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        return file.getvalue()

    frames = {"save_all": True, "append_images": [colour.rotate(90, expand=False)]}
    return {
        "jpeg": [
            saved(colour, "JPEG", exif=exif),
            saved(colour, "JPEG", progressive=True),
            saved(colour.convert("CMYK"), "JPEG"),
        ],
        "png": [
            saved(colour, "PNG", exif=exif),
            saved(colour.quantize(16), "PNG", transparency=3),
            saved(Picture.fromarray(pixels[:, :, 0].astype(np.uint16) << 8), "PNG"),
            saved(colour, "PNG", **frames),
        ],
        "gif": [saved(colour, "GIF", **frames)],
        "webp": [saved(colour, "WEBP", **frames), saved(colour, "WEBP", lossless=True)],
        "tiff": [
            saved(colour, "TIFF"),
            saved(colour, "TIFF", compression="tiff_lzw"),
            saved(colour, "TIFF", compression="tiff_deflate"),
            saved(colour, "TIFF", compression="jpeg"),
            saved(Picture.fromarray(pixels[:, :, 0].astype(np.float32)), "TIFF"),
        ],
        "bmp": [saved(colour, "BMP"), saved(colour.quantize(16), "BMP")],
        "ppm": [saved(colour, "PPM"), b"P2\n2 2\n255\n1 2 3 4\n"],
        "jpeg2000": [saved(colour, "JPEG2000")],
        "avif": [saved(colour, "AVIF")],
    }


def archive() -> bytes:
    """A zip archive like those of data sets, with stored files, deflated files and folders."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as output:
        output.mkdir("around")
        output.writestr("around/captions.txt", "a.jpg#0\tA dog\n" * 20, zipfile.ZIP_DEFLATED)
        output.writestr("around/pictures/a.jpg", "a" * 100)
    return file.getvalue()


_DESCRIBED = with_properties(
    languages("dc:description", de="Ein Hund", default="A dog")
    + languages("i:AltTextAccessibility", default="A dog")
    + "<dc:description><rdf:Bag><rdf:li>A dog</rdf:li></rdf:Bag></dc:description>",
    'dc:description="A dog" photoshop:CaptionWriter="Jane"',
)

_COCO = {
    "images": [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2)],
    "annotations": [{"id": i, "image_id": i, "caption": "A dog"} for i in (1, 2)],
}
_KARPATHY = {
    "images": [
        {
            "filename": f"{i}.jpg",
            "filepath": "pictures",
            "split": split,
            "sentences": [{"raw": "A dog runs."}, {"raw": "A cat"}],
            "cocoid": i,
        }
        for i, split in enumerate(("train", "val", "restval"), 1)
    ]
}


def _data_sets(folder: Path) -> list[Reader]:
    """Return the readers of data sets, each with a root of its own and the pictures 1 to 3.jpg."""

    def reader(
        dataset: str, file: str, image_folder: str, example: str, damage: Callable
    ) -> Reader:
        root, work = folder / f"{dataset}-{Path(file).stem}", folder / "work-of-data-set"
        for directory in (root / image_folder, (root / file).parent, work):
            directory.mkdir(parents=True, exist_ok=True)
        for i in (1, 2, 3):
            (root / image_folder / f"{i}.jpg").touch()
        if "captions-generated" in file or "/" in file:  # captions beside the pictures
            for i in (1, 2, 3):
                (root / image_folder / f"{i}.txt").write_text("A dog runs.\n")
        if dataset == "coco":
            val = root / "annotations" / "captions_val2017.json"
            val.write_text(json.dumps({"images": [], "annotations": []}))

        def read(path: Path) -> object:
            shutil.copyfile(path, root / file)
            return _load_table(dataset, root, work)

        return Reader(f"{dataset} {file}", read, [example.encode()], damage)

    rows = "".join(f"{i}.jpg,A dog; a cat,{s}\n" for i, s in enumerate(("train", "val", ""), 1))
    lines = [
        {"file_name": "1.jpg", "captions": ["A dog", "A cat"], "split": "train"},
        {"image": "2.jpg", "caption": "A dog", "split": "val"},
    ]
    tokens = "".join(f"{i}.jpg#{n}\tA dog runs .\n" for i in (1, 2, 3) for n in (0, 1))
    kaggle = "image,caption\n" + "".join(f'{i}.jpg,"A dog, runs"\n' for i in (1, 2, 3))
    text = "\n".join(map(json.dumps, lines))
    lists = (
        'sep=;\nImage;caption_1;Caption 2\n1.jpg;"[\'A dog\', ""A cat""]";nan\n2.jpg;A &amp; b;\n'
    )
    numbered = "".join(f'{i}.jpg| {n}| A "dog" runs\n' for i in (1, 2, 3) for n in (0, 1))
    numbered = f"image_name| comment_number| comment\n{numbered}2.jpg| 3   A cat\n"
    metadata = json.dumps({"caption": ["A dog", "A cat"], "key": "2", "status": "success"})
    generated = json.dumps({"1.txt": "0" * 64, "2.jpg.txt": hashlib.sha256(b"A dog").hexdigest()})
    return [
        reader("folder", "lists.csv", ".", lists, of_text),
        reader("folder", "list.json", ".", json.dumps([*lines, lines[0]]), of_json),
        reader("folder", "coco.json", ".", json.dumps(_COCO), of_json),
        reader("folder", "beside/1.txt", "beside", "A dog runs.\nA cat\n", of_text),
        reader("folder", "metadata/2.json", "metadata", metadata, of_json),
        reader("folder", ".captions-generated.json", ".", generated, of_json),
        reader("flickr30k", "results.csv", "flickr30k-images", numbered, of_text),
        reader("folder", "x.csv", ".", f"file_name,caption,split\n{rows}", of_text),
        reader("folder", "y.jsonl", ".", text, of_json_lines),
        reader("karpathy", "dataset_x.json", "pictures", json.dumps(_KARPATHY), of_json),
        reader(
            "coco",
            "annotations/captions_train2017.json",
            "train2017",
            json.dumps(_COCO),
            of_json,
        ),
        reader("flickr8k", "Flickr8k.token.txt", "Flicker8k_Dataset", tokens, of_text),
        reader("flickr8k", "captions.txt", "Images", kaggle, of_text),
    ]


def trained(work: Path) -> TrainOptions:
    """Return the options of the run "small", which is as small as a run can be."""
    return TrainOptions(
        work=work,
        run="small",
        decoder=ModelOptions(hidden=8, attention=8),
        xe=CrossEntropyOptions(epochs=1),
        rl=ReinforceOptions(epochs=1, samples=2),
        batch_size=10,
        beam=2,
    )


def finish(work: Path) -> None:
    """Train, caption and score the run "small" of an extracted work directory."""
    options = trained(work)
    run = work / "runs" / options.run
    table, captioned = work / "captions.json", run / "captions_val.json"
    train.train(options)
    assert caption.main(["--run", str(run), "--split", "val", "--attention", "2"]) == 0
    assert score.main(["--captions", str(table), "--results", str(captioned)]) == 0


def _store(path: Path) -> None:
    """Open a store and read all its rows."""
    store = FeatureStore(path)
    for row in np.flatnonzero(store.status == STORED):
        store.grid([row])
        store.pooled([row])
    damaged(store)
    store.failures()


def _of_stores(folder: Path) -> list[Reader]:
    """Return the readers of small stores and of their parts, for several row formats."""
    description = {"backbone": "small", "grid": [2, 3], "channels": 16}
    found = []
    for dtype, compression, views in (
        ("float16", "deflate", ("whole",)),
        ("int8", "deflate", ("whole", "mirror")),
        ("float16", "none", ("whole",)),
    ):
        scale = np.full(16, 0.02, np.float32) if dtype == "int8" else None
        kind = RowFormat({**description, "dtype": dtype}, views, compression, scale)
        path = folder / f"{dtype}-{compression}" / "features.h5"
        path.parent.mkdir()
        with only_writer(path):
            with closing(PartWriter(begin(path, kind, None), kind)) as writer:
                random = np.random.default_rng(0)
                grid = np.maximum(random.standard_normal((3, len(views), 6, 16)), 0)
                writer.put([1, 2, 3], grid.astype("f4"), grid.mean(2).astype("f4"))
                writer.fail(4, "no such file")
            part = writer.path.read_bytes()
            merge(path, kind, None, [1, 2, 3, 4], {"numpy": np.__version__})
        name = f"{dtype} {compression}"
        found += [
            Reader(f"store {name}", _store, [path.read_bytes()], of_bytes),
            Reader(f"part {name}", partial(_part, kind), [part], of_bytes),
        ]
    return found


def _part(kind: RowFormat, path: Path) -> None:
    """Read the intact records of a part, merge them into a store and read that."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        store = Path(folder, "features.h5")
        shutil.copyfile(path, begin(store, kind, None) / "1.part")
        if found := scan(parts_folder(store), kind):
            merge(store, kind, None, list(found), {})
            _store(store)


def _of_run(work: Path, folder: Path) -> list[Reader]:
    """Return the readers of a run's files; `work` has the run "small", captioned and scored."""
    copy = Path(shutil.copytree(work, folder / "work"))
    run = RunFolder(copy / "runs" / "small")
    trainer = train.new_trainer(trained(copy))
    features = Features(torch.rand(2, 49, 1280), torch.rand(2, 1280))

    def in_place(path: Path, use: Callable[[], object]) -> Callable[[Path], None]:
        intact = path.read_bytes()

        def read(damaged: Path) -> None:
            try:
                shutil.copyfile(damaged, path)
                use()
            finally:
                path.write_bytes(intact)

        return read

    def decode() -> None:
        model, words, config = load_decoder(run, run.best, torch.device("cpu"))
        found = generate(model, features, GenerateOptions(beam=2), 5)
        words.decode(found.tokens_IKT[0, 0].tolist())
        assert {"fingerprint", "features"} <= config.keys()
        arguments_like(run.path)

    def report() -> None:
        render(runs.load(run, "val"), 2)

    assert search.main(["--run", str(run.path), "--split", "val"]) == 0
    vocabulary_of_run = vocabulary.load(run.vocabulary)

    def embed(path: Path) -> None:
        if embedding := embedding_file.load(path, {}, vocabulary_of_run):
            embedding.model.pictures(embedding.background.pooled_IC)
            embedding.model.sentences(torch.tensor([[5, 6]]))

    def reader(name: str, path: Path, use: Callable[[], object], damage: Callable) -> Reader:
        return Reader(name, in_place(path, use), [path.read_bytes()], damage)

    description = read_json(run.config, "")["features"]
    frequencies = count_frequencies(captions.load(copy / "captions.json"), vocabulary_of_run)
    expectation = fit_expectation(run, vocabulary_of_run, description, frequencies)
    expectation.reduced(rank=8, ngrams=50).save(folder / "expectation.safetensors", {})
    found = Generated(torch.tensor([[[5, 6, EOS]], [[7, EOS, PAD]]]), torch.zeros(2, 1))

    def expect(path: Path) -> None:
        reduced = ReducedExpectation.load(path, {}, frequencies, 1280)
        reduced.cider(found, features.pooled_IC)

    reduced = (folder / "expectation.safetensors").read_bytes()
    trained_embedding = (copy / "search" / "embedding.safetensors").read_bytes()
    in_8_bits = checkpoints.quantize(checkpoints.load(run.best, torch.device("cpu"))[0])
    ranking = (run.path / "ranking_val.npz").read_bytes()
    return [
        Reader("embedding", embed, [trained_embedding], of_safetensors),
        Reader("ranking.npz", recall.read, [ranking], of_npz),
        Reader("expectation", expect, [reduced], of_safetensors),
        Reader(
            "weights",
            in_place(run.best, decode),
            [run.best.read_bytes(), checkpoints.to_bytes(in_8_bits)],
            of_safetensors,
        ),
        reader("state", run.state, trainer.state.restore, of_safetensors),
        reader("config.json", run.config, decode, of_json),
        reader("vocabulary.json of a run", run.vocabulary, decode, of_json),
        reader("config.json in the report", run.config, report, of_json),
        reader("metrics.jsonl", run.metrics, report, of_json_lines),
        reader("scores.json", run.path / "scores_val.json", report, of_json),
        reader("attention.npz", run.path / "attention_val.npz", report, of_npz),
    ]


def _of_listings(folder: Path) -> list[Reader]:
    """Return the readers of caption lists, which are continued after an interruption."""
    found = []
    picture = folder / "é.jpg"
    picture.write_bytes(b"abc")
    for kind, damage in ((".csv", of_text), (".jsonl", of_json_lines)):
        file = folder / f"captions{kind}"
        with Listing(file, "writer", captions=2) as listing:
            for name in ('a, "b".jpg', picture.name):
                values = {"caption": "A dog runs.", "unsure": False, "confidence": 0.5}
                listing.add(folder / name, State(3, 4), {**values, "alternatives": [values]})
            listing.add(folder / "c.jpg", None, {"caption": None, "error": "no such file"})
        old = "path,caption,unsure,confidence,bytes,modified,writer\n"
        old += f"{picture},A,false,,3,{picture.stat().st_mtime_ns},writer\n"
        if kind == ".jsonl":
            row = {"path": str(picture), "caption": "A", "bytes": 3, "modified": 4}
            old = json.dumps({**row, "writer": "writer"}) + "\n"

        def read(path: Path, file: Path = file) -> None:
            """Continue the listing twice: what was accepted must be readable again."""
            shutil.copyfile(path, file)
            for _ in range(2):
                with Listing(file, "writer", captions=2) as listing:
                    listing.find(picture)
                    listing.add(picture, State(5, 6), {"caption": "A cat."})

        found.append(Reader(f"listing {kind}", read, [file.read_bytes(), old.encode()], damage))
    return found


def _xmp(path: Path) -> None:
    """Describe a picture in an XMP file; what was accepted must be edited or refused."""
    with suppress(NotXmpError):
        again = Xmp(Xmp(path.read_bytes()).describe("A <dog> & a cat.", force=True))
        assert again.described


def _of_pages(folder: Path) -> list[Reader]:
    """Pages in several encodings, and the table in which their texts are corrected."""

    def read_page(path: Path) -> None:
        content = path.read_bytes()
        with suppress(UnicodeDecodeError):  # which the command reports
            page = HtmlPage(content)
            added = ' alt="x" data-alt-generated="true"'
            made = page.with_texts(dict.fromkeys(range(len(page.bare)), ("x", False)))
            lost = len(made) - len(content) - len(page.bare) * len(added)
            assert lost >= 0, "a text must not remove anything"
            not_html(path, content, decode(content)[0])
            for bare in page.bare:
                for source in bare.sources:
                    file_of(source, page.codec, folder, folder)

    text = (
        '<?xml version="1.0" encoding="{0}"?><html lang="ja"><meta charset="{0}"><title/>'
        "<picture><source srcset='写.png 2x, b.png'><img src=%E5.png data-src=a.png></picture>"
        "<svg><image href=写.png /></svg>{{{{ a }}}}<?php x ?><!-- --><img src=写.png></html>"
    )
    pages = [text.format(codec).encode(codec) for codec in ("utf-8", "iso-2022-jp", "utf-16")]
    table = folder / "review.csv"
    Review(table).write([Row("a.html", "1", "ä.png", "A dog.", "false", "", "", "", "1")], set())
    return [
        Reader("page", read_page, pages, of_bytes),
        Reader("review", Review, [table.read_bytes()], of_bytes),
    ]


def readers(work: Path, folder: Path) -> list[Reader]:
    """Return all readers, with examples from a finished work directory.

    Args:
        work: a work directory with the run "small", captioned and scored on val.
        folder: an empty folder for temporary files.
    """
    small = captions.load(work / "captions.json")
    few = captions.CaptionTable(small.dataset, folder, small.images[:9])
    captions.save(few, folder / "few.json")
    run = work / "runs" / "small"
    unpacked = folder / "unpacked"
    unpacked.mkdir()

    shard = shards.examples(folder / "shards")

    def unpack(path: Path) -> None:
        _unpack(path, ("captions.txt",), unpacked)
        shutil.rmtree(unpacked)
        unpacked.mkdir()

    return [
        Reader("captions.json", _captions, [(folder / "few.json").read_bytes()], of_json),
        Reader("vocabulary.json", _vocabulary, [(run / "vocabulary.json").read_bytes()], of_json),
        Reader(
            "results.json",
            _results,
            [(run / "captions_val.json").read_bytes(), json.dumps(_NAMED).encode()],
            of_json,
        ),
        Reader("results.jsonl", _result_lines, [_lines(_NAMED)], of_json_lines),
        *_data_sets(folder),
        Reader("zip archive", unpack, [archive()], of_bytes),
        *(Reader(f"picture {k}", _picture, e, of_bytes) for k, e in pictures().items()),
        *_of_stores(folder),
        Reader("captions of a shard", shard.read_lines, [shard.lines], of_json_lines),
        Reader("captions.db", shard.read_database, [shard.database], of_bytes, "captions.db"),
        *_of_listings(folder),
        Reader("xmp", _xmp, [*PROGRAMS.values(), _DESCRIBED], of_xmp),
        *_of_pages(folder),
        *_of_run(work, folder),
    ]
