"""The built-in data set is reproducible, and its captions are true and grammatical."""

import json
import re
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from features.errors import UserError
from pipeline import shapes
from pipeline.shapes.captions import captions
from pipeline.shapes.layout import Box, Layout, Thing
from pipeline.shapes.pen import PALETTE
from pipeline.shapes.pictures import paint
from pipeline.shapes.world import KINDS

# A description of the language, independent of the code that writes it.
NOUNS = {
    **{name: name for name in KINDS},
    "hot air balloon": "balloon",
    "airplane": "plane",
    "sailboat": "boat",
    **{name: name[:-1] for name in ("birds", "ducks", "flowers")},
}
SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}
NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3}
POSES = {
    ("stands", "stand", "standing"): "stand",
    ("sits", "sit", "sitting"): "sit",
    ("is parked", "are parked", "parked"): "park",
    ("grows", "grow", "growing"): "grow",
    ("sails", "sail", "sailing"): "sail",
    ("swims", "swim", "swimming"): "swim",
    ("floats", "float", "floating"): "float",
    ("flies", "fly", "flying"): "fly",
}
PLACES = {
    "in a meadow": "meadow",
    "in a green meadow": "meadow",
    "on the grass": "meadow",
    "on the beach": "beach",
    "on a sandy beach": "beach",
    "at the beach": "beach",
    "by the sea": "beach",
    "on the sea": "sea",
    "on the water": "sea",
    "in the snow": "snow",
    "in a snowy field": "snow",
    "in the desert": "desert",
    "in a sandy desert": "desert",
    "in the city": "city",
    "on a city street": "city",
    "a meadow": "meadow",
    "a green meadow": "meadow",
    "a beach": "beach",
    "a sandy beach": "beach",
    "the sea": "sea",
    "the open sea": "sea",
    "a snowy field": "snow",
    "the desert": "desert",
    "a city": "city",
    "a city street": "city",
}
SKIES = {
    "on a sunny day": "sunny",
    "the sun shines": "sunny",
    "on a cloudy day": "cloudy",
    "clouds hang": "cloudy",
    "at sunset": "sunset",
    "in the evening": "sunset",
    "the sun sets": "sunset",
    "at night": "night",
    "the moon shines": "night",
}


PLURALS = {"birds", "ducks", "flowers", "sheep"}
VERBS_OF = {"a": "verb", "b": "b_verb", "c": "c_verb"}
Scenes = list[tuple[Layout, tuple[str, ...]]]


def _inside(thing: Box, other: Box) -> bool:
    slack = 1e-9
    return other.left - slack <= thing.left and thing.right <= other.right + slack


def _left(a: Box, b: Box) -> bool:
    return a.right <= b.left


def _above(a: Box, b: Box) -> bool:
    return a.bottom <= b.top and b.left < (a.left + a.right) / 2 < b.right


def _in_front(a: Box, b: Box) -> bool:
    return _inside(a, b) and a.top < b.bottom < a.bottom


TRUTHS: dict[str, Callable[[Box, Box], bool]] = {
    "to the left of": _left,
    "to the right of": lambda a, b: _left(b, a),
    "above": _above,
    "over": _above,
    "below": lambda a, b: _above(b, a),
    "under": lambda a, b: _above(b, a) or (_in_front(a, b) and a.top > b.top + b.height / 3),
    "on top of": lambda a, b: _inside(a, b) and abs(a.bottom - b.top) < 0.03,
    "on": lambda a, b: _inside(a, b) and abs(a.bottom - b.top) < 0.03,
    "in front of": _in_front,
    "behind": lambda a, b: _in_front(b, a),
    **{
        near: lambda a, b: 0 <= max(a.left - b.right, b.left - a.right) < 0.15
        for near in ("next to", "beside", "near")
    },
}


def _one_of(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


NAME = (
    rf"(?:{_one_of(NUMBERS)}) (?:(?:{_one_of(SIZES)}) )?(?:(?:{_one_of(PALETTE)}) )?"
    rf"(?:{_one_of(NOUNS)})\b"
)
VERB = _one_of(word for forms in POSES for word in forms)
ENDING = rf"(?: (?:over )?(?P<place>{_one_of(PLACES)}))?(?: (?P<sky>{_one_of(SKIES)}))?"
RELATION = _one_of(TRUTHS)
SENTENCES = [
    re.compile(pattern)
    for pattern in (
        rf"(?P<there>there is |there are )?(?P<a>{NAME})(?: (?P<verb>{VERB}))?"
        rf" (?P<relation>{RELATION}) (?P<b>{NAME}){ENDING}",
        rf"(?P<a>{NAME}) (?P<relation>{RELATION}) (?P<b>{NAME})"
        rf" (?:with|while) (?P<c>{NAME})(?: (?P<c_verb>{VERB}))? in the sky",
        rf"(?P<b>{NAME})(?: (?P<b_verb>{VERB}))? between (?P<a>{NAME}) and (?P<c>{NAME}){ENDING}",
        rf"(?P<place>{_one_of(PLACES)}) (?P<sky>{_one_of(SKIES)})"
        rf" with (?P<c>{NAME}) and (?P<d>{NAME})",
        rf"(?P<sky>{_one_of(SKIES)}) over (?P<place>{_one_of(PLACES)})"
        rf" with (?P<c>{NAME}) and (?P<d>{NAME})",
    )
]


def _parse(caption: str) -> dict[str, str]:
    """Return the parts of a caption, which must match one of the patterns completely."""
    text = caption[0].lower() + caption[1:].removesuffix(".")
    for sentence in SENTENCES:
        match = sentence.fullmatch(text)
        if match:
            return {part: words for part, words in match.groupdict().items() if words}
    raise AssertionError(f"no known sentence: {caption}")


def _meant(name: str, layout: Layout) -> list[Thing]:
    """Return the things that a noun phrase may mean."""
    number, *words = name.split()
    noun = next(noun for noun in sorted(NOUNS, key=len, reverse=True) if name.endswith(noun))
    return [
        thing
        for thing in layout.things
        if thing.kind.name == NOUNS[noun]
        and thing.count == NUMBERS[number]
        and all(thing.colour == word for word in words if word in PALETTE)
        and all(thing.size == SIZES[word] for word in words if word in SIZES)
    ]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    """Layouts of three seeds with their captions, without pictures."""
    return [
        (layout, captions(layout, Random(i)))
        for i in range(600)
        for layout in [shapes.describe(seed=i % 3, index=i)]
    ]


def test_a_picture_does_not_depend_on_the_number_of_pictures(tmp_path: Path) -> None:
    few = shapes.draw(tmp_path / "few", count=4, seed=7, size=64)
    many = shapes.draw(tmp_path / "many", count=12, seed=7, size=64)
    assert many[:4] == few
    for scene in few:
        bytes_of_few = (tmp_path / "few" / scene.file_name).read_bytes()
        assert (tmp_path / "many" / scene.file_name).read_bytes() == bytes_of_few


def test_another_seed_draws_other_pictures(tmp_path: Path) -> None:
    one = shapes.draw(tmp_path / "one", count=5, seed=1, size=64)
    two = shapes.draw(tmp_path / "two", count=5, seed=2, size=64)
    for a, b in zip(one, two, strict=True):
        assert a.captions != b.captions
        assert (tmp_path / "one" / a.file_name).read_bytes() != (
            tmp_path / "two" / b.file_name
        ).read_bytes()


def test_pictures_are_square_rgb_files_and_nothing_else_is_left(tmp_path: Path) -> None:
    scenes = shapes.draw(tmp_path, count=3, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [s.file_name for s in scenes]
    for scene in scenes:
        with Image.open(tmp_path / scene.file_name) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (224, 224))


def test_ten_pictures_have_all_three_splits(tmp_path: Path) -> None:
    splits = [scene.split for scene in shapes.draw(tmp_path, count=10, seed=0, size=32)]
    assert [splits.count(name) for name in ("train", "val", "test")] == [8, 1, 1]


def test_captions_equal_the_golden_ones(tmp_path: Path) -> None:
    # Written by regenerate_golden_shapes.py.
    golden = json.loads(Path(__file__).with_name("golden_shapes.json").read_text())
    scenes = shapes.draw(tmp_path, count=len(golden), seed=0, size=64)
    assert {scene.file_name: list(scene.captions) for scene in scenes} == golden


def test_five_different_captions_are_short_sentences(scenes: Scenes) -> None:
    for _, five in scenes:
        assert len(set(five)) == 5
        for caption in five:
            assert re.fullmatch(r"[A-Z][a-z]*( [a-z]+)+\.", caption), caption
            assert len(caption.split()) <= 16


def test_captions_are_grammatical(scenes: Scenes) -> None:
    for _, five in scenes:
        for caption in five:
            parts = _parse(caption)
            is_plural = {}
            for name in parts.keys() & set("abcd"):
                number, *_, noun = parts[name].split()
                is_plural[name] = number in ("two", "three")
                assert noun in (
                    PLURALS if is_plural[name] else NOUNS.keys() - PLURALS | {"sheep"}
                ), caption
            for article, letter in re.findall(r"\b(an?) (\w)", caption.lower()):
                assert (article == "an") == (letter in "aeiou"), caption
            if "there" in parts:
                assert parts["there"] == ("there are " if is_plural["a"] else "there is "), caption
            for name, verb in VERBS_OF.items():
                if verb in parts:
                    one, many, doing = next(forms for forms in POSES if parts[verb] in forms)
                    finite = many if is_plural[name] else one
                    assert parts[verb] == doing or (
                        parts[verb] == finite and "there" not in parts
                    ), caption


def test_captions_are_true(scenes: Scenes) -> None:
    stated = set()
    for layout, five in scenes:
        for caption in five:
            parts = _parse(caption)
            meant = {name: _meant(parts[name], layout) for name in "abcd" if name in parts}
            assert all(meant.values()), caption
            relations = []
            if "relation" in parts:
                relations = [("a", parts["relation"], "b")]
            elif " between " in caption:
                relations = [("a", "to the left of", "b"), ("b", "to the left of", "c")]
            for a, relation, b in relations:
                stated.add(relation)
                true = TRUTHS[relation]
                assert any(true(x.box, y.box) for x in meant[a] for y in meant[b]), caption
            if " in the sky" in caption:
                assert any(thing.kind.zone == "sky" for thing in meant["c"]), caption
            for name, verb in VERBS_OF.items():
                if verb in parts:
                    pose = next(pose for forms, pose in POSES.items() if parts[verb] in forms)
                    assert any(thing.pose == pose for thing in meant[name]), caption
            if "sky" in parts:
                assert SKIES[parts["sky"]] == layout.sky, caption
            if "place" in parts:
                at_the_shore = layout.place.name == "beach" and PLACES[parts["place"]] == "sea"
                assert at_the_shore or PLACES[parts["place"]] == layout.place.name, caption
    assert stated == TRUTHS.keys()  # every relation was tested


def test_at_the_beach_swimming_things_are_on_the_water_and_standing_ones_are_not(
    scenes: Scenes,
) -> None:
    seen = set()
    for layout, five in scenes:
        if layout.place.name != "beach":
            continue
        for caption in five:
            parts = _parse(caption)
            if "b" in parts and parts.get("place", "by the sea") not in (
                "at the beach",
                "by the sea",
            ):
                swims = all(thing.kind.zone == "water" for thing in _meant(parts["b"], layout))
                assert (PLACES[parts["place"]] == "sea") == swims, caption
                seen.add(swims)
    assert seen == {True, False}


def test_the_vocabulary_has_60_to_150_words(scenes: Scenes) -> None:
    words = {word for _, five in scenes for c in five for word in c.lower().rstrip(".").split()}
    assert 60 <= len(words) <= 150


def test_things_are_inside_the_picture_separate_and_large_enough_for_a_cnn(scenes: Scenes) -> None:
    for layout, _ in scenes:
        assert 2 <= len(layout.things) <= 4
        linked = {frozenset((link.subject, link.object)) for link in layout.links}
        for i, thing in enumerate(layout.things):
            assert min(thing.box) >= 0
            assert max(thing.box) <= 1
            for box in thing.members():
                assert max(box.width, box.height) * 224 >= 40, thing
            for j in range(i):
                if frozenset((i, j)) not in linked:
                    assert thing.box.clear_of(layout.things[j].box, 0), layout


def test_two_of_a_kind_differ_in_colour(scenes: Scenes) -> None:
    alike = [
        (a.colour, b.colour)
        for layout, _ in scenes
        for a, b in combinations(layout.things, 2)
        if a.kind is b.kind
    ]
    assert len(alike) > 20
    assert all(a != b for a, b in alike)


def test_things_are_painted_in_their_box_and_colour() -> None:
    seen = set()
    for i in range(120):
        layout = shapes.describe(seed=0, index=i)
        if layout.sky != "sunny":  # the light of other skies tints every colour
            continue
        pixels = np.asarray(paint(layout, Random(i), 224)).astype(int)
        for thing in layout.things:
            if not thing.colour:
                continue
            seen.add(thing.colour)
            left, top, right, bottom = (round(edge * 224) for edge in thing.box)
            distance = abs(pixels[top:bottom, left:right] - PALETTE[thing.colour]).max(axis=-1)
            assert (distance <= 16).mean() > 0.05, thing
    assert seen == set(PALETTE)


def test_a_count_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at least 1 picture.*found 0"):
        shapes.draw(tmp_path, count=0, seed=0)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="images"):
        shapes.draw(tmp_path / "images", count=1, seed=0, size=32)
