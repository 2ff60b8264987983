"""Where things are in a picture of the `shapes` data set, independent of painting and wording.

Lengths are fractions of the side of the picture; x runs to the right and y runs down.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from random import Random
from typing import NamedTuple

from pipeline.shapes.world import GUESTS, KINDS, PALE, PLACES, SKIES, Kind, Place

SIZES = {"small": 0.8, "medium": 1.0, "large": 1.25}
HORIZON = 0.6
_MARGIN = 0.03  # kept free along the edges of the picture
_NEAR = 0.12  # things on the ground with a smaller gap are next to each other


class Box(NamedTuple):
    """The bounding box of a thing."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Horizontal extent."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Vertical extent."""
        return self.bottom - self.top

    @property
    def x(self) -> float:
        """Horizontal centre."""
        return (self.left + self.right) / 2

    def clear_of(self, other: "Box", gap: float) -> bool:
        """Whether the gap between this box and `other` is at least `gap`."""
        return (
            self.right + gap <= other.left
            or other.right + gap <= self.left
            or self.bottom + gap <= other.top
            or other.bottom + gap <= self.top
        )


@dataclass(frozen=True)
class Thing:
    """One thing in the picture, or a flock of `count` equal ones."""

    kind: Kind
    colour: str  # empty for a kind without colours
    size: str
    pose: str
    box: Box
    count: int
    mirrored: bool

    def members(self) -> list[Box]:
        """Return the box of each member of a flock, from left to right."""
        if self.count == 1:
            return [self.box]
        width, height = self.kind.width * 0.9, self.kind.height
        step = (self.box.width - width) / (self.count - 1)
        boxes = []
        for i in range(self.count):
            left = self.box.left + i * step
            bottom = self.box.bottom
            if self.kind.zone == "sky" and i % 2 == 0:  # birds fly staggered
                bottom = self.box.top + height
            boxes.append(Box(left, bottom - height, left + width, bottom))
        return boxes


class Relation(NamedTuple):
    """A relation between two things; `subject` and `object` are indices into `Layout.things`."""

    subject: int
    name: str
    object: int


@dataclass(frozen=True)
class Layout:
    """A scene before it is painted and captioned: 2 to 4 things in a place under a sky.

    `links` are the relations made on purpose ("on", "under", "in front of"); all others follow
    from the boxes. `lamp` is the position of the sun or the moon.
    """

    place: Place
    sky: str
    things: tuple[Thing, ...]
    links: tuple[Relation, ...]
    lamp: tuple[float, float]

    def host(self, i: int) -> int | None:
        """Return the thing that thing `i` is on, under or in front of, or None."""
        return next((link.object for link in self.links if link.subject == i), None)

    def relations(self) -> list[Relation]:
        """Return every relation that a caption may state, those made on purpose first."""
        relations = list(self.links)
        relations += [
            Relation(b, "behind", a) for a, name, b in self.links if name == "in front of"
        ]
        free = [i for i in range(len(self.things)) if self.host(i) is None]
        for a, b in combinations(free, 2):
            relations += _relations_of(a, b, self.things)
        return relations

    def row(self) -> list[int]:
        """Return the things on land or water that have no host, from left to right."""
        ground = [
            i
            for i, thing in enumerate(self.things)
            if thing.kind.zone != "sky" and self.host(i) is None
        ]
        return sorted(ground, key=lambda i: self.things[i].box.x)

    def flyers(self) -> list[int]:
        """Return the things in the sky that have no host."""
        return [
            i
            for i, thing in enumerate(self.things)
            if thing.kind.zone == "sky" and self.host(i) is None
        ]


def _relations_of(a: int, b: int, things: tuple[Thing, ...]) -> Iterator[Relation]:
    if things[a].box.x > things[b].box.x:
        a, b = b, a
    left, right = things[a], things[b]
    zones = {left.kind.zone, right.kind.zone}
    if "sky" in zones and len(zones) == 2:
        high, low = (a, b) if left.kind.zone == "sky" else (b, a)
        if things[low].box.left < things[high].box.x < things[low].box.right:
            yield Relation(high, "above", low)
            yield Relation(low, "below", high)
        return
    gap = right.box.left - left.box.right
    level = left.box.top < right.box.bottom and right.box.top < left.box.bottom
    if gap >= 0 and level:
        if gap <= _NEAR and len(zones) == 1:
            yield Relation(a, "next to", b)
            yield Relation(b, "next to", a)
        yield Relation(a, "left of", b)
        yield Relation(b, "right of", a)


def compose(random: Random) -> Layout:
    """Return a scene with at least one relation, in which things overlap only on purpose."""
    while True:
        layout = _attempt(random)
        if layout is not None:
            return layout


def _attempt(random: Random) -> Layout | None:
    """Return a random scene, or None if its things do not fit together."""
    place = random.choice(PLACES)
    sky = random.choices(list(SKIES), list(SKIES.values()))[0]
    wanted = random.choices((2, 3, 4), (15, 50, 35))[0]
    things = _row(random, place, random.choices((1, 2, 3), (25, 45, 30))[0])
    links = []
    if len(things) < wanted and random.random() < 0.6:
        links = _add_guest(random, place, things)
    for _ in range(min(2, wanted - len(things))):
        _add_flyer(random, place, sky, things)
    lamp = _lamp(random, sky, things)
    looks = {(thing.kind, thing.colour) for thing in things}
    if len(things) < wanted or lamp is None or len(looks) < len(things):
        return None  # two of a kind must differ in colour, or captions could not distinguish them
    layout = Layout(place, sky, tuple(things), tuple(links), lamp)
    return layout if layout.relations() else None


def _thing(random: Random, kind: Kind, hidden_colours: tuple[str, ...]) -> Thing:
    """Return a random thing of `kind`, not yet in its place."""
    colours = [colour for colour in kind.colours if colour not in hidden_colours]
    colour = random.choice(colours) if colours else ""
    size = random.choices(list(SIZES), (1, 2, 1))[0]
    mirrored = random.random() < 0.5
    count = random.choices((1, 2, 3), (3, 1, 1))[0] if kind.flock else 1
    thing = Thing(kind, colour, size, kind.pose, Box(0, 0, 0, 0), count, mirrored)
    if count == 1:
        return _sized(thing, size)
    height = kind.height * (1.5 if kind.zone == "sky" else 1)
    box = Box(0, 0, kind.width * (0.2 + 0.7 * count), height)
    return replace(thing, size="medium", box=box)


def _sized(thing: Thing, size: str) -> Thing:
    """Return `thing` as a single one of the given size."""
    box = Box(0, 0, thing.kind.width * SIZES[size], thing.kind.height * SIZES[size])
    return replace(thing, size=size, box=box, count=1)


def _standing(thing: Thing, x: float, foot: float) -> Thing:
    """Return `thing` with the middle of its lower edge at (`x`, `foot`)."""
    half, height = thing.box.width / 2, thing.box.height
    return replace(thing, box=Box(x - half, foot - height, x + half, foot))


def _row(random: Random, place: Place, count: int) -> list[Thing]:
    """Return as many things as fit side by side on the ground, at most `count`."""
    kinds = [KINDS[random.choice(place.grounded)] for _ in range(count)]
    things = [_thing(random, kind, place.hidden_colours) for kind in kinds]
    while (slack := 1 - 2 * _MARGIN - sum(thing.box.width for thing in things)) < 0.02:
        things.pop()
    shares = [random.random() + 0.1 for _ in range(len(things) + 1)]
    row, left = [], _MARGIN
    for thing, share in zip(things, shares, strict=False):
        left += slack * share / sum(shares)
        row.append(_standing(thing, left + thing.box.width / 2, _foot(random, place, thing.kind)))
        left += thing.box.width
    return row


def _foot(random: Random, place: Place, kind: Kind) -> float:
    """Return the y on which a thing of `kind` stands or swims."""
    if kind.zone == "water":
        return random.uniform(0.76, 0.9) if place.name == "sea" else random.uniform(0.68, 0.7)
    return random.uniform(0.8, 0.84) if kind.far else random.uniform(0.88, 0.94)


def _add_guest(random: Random, place: Place, things: list[Thing]) -> list[Relation]:
    """Add a thing on, under or in front of one of `things`, if it fits."""
    i = random.randrange(len(things))
    host, box = things[i], things[i].box
    choices = [
        (relation, guest)
        for relation, guests in GUESTS.items()
        for guest, hosts in guests.items()
        if host.kind.name in hosts
    ]
    if not choices or host.size == "small":
        return []
    relation, name = random.choice(choices)
    guest = _thing(random, KINDS[name], place.hidden_colours)
    if relation == "on":
        guest = replace(_standing(_sized(guest, "small"), box.x, box.top + 0.015), pose="sit")
    elif relation == "under":
        guest = _sized(guest, "small")
        room = (box.width - guest.box.width) / 2
        x = box.x + random.choice((-1, 1)) * min(0.25 * box.width, room)  # beside the trunk
        guest = _standing(guest, x, box.bottom + 0.03)
    else:
        guest = guest if guest.count > 1 else _sized(guest, "small")
        room = max(0.0, box.width - guest.box.width) / 2
        x = box.x + random.uniform(-room, room)
        guest = _standing(guest, x, min(box.bottom + 0.08, 0.97))
    others = [thing.box for thing in things if thing is not host]
    if not _fits(guest.box, others, 0.01) or guest.box.width > 0.8 * box.width:
        return []
    things.append(guest)
    return [Relation(len(things) - 1, relation, i)]


def _add_flyer(random: Random, place: Place, sky: str, things: list[Thing]) -> None:
    """Add a flying thing that overlaps none of `things`, often above one of them, if it fits."""
    thing = _thing(random, KINDS[random.choice(place.aloft)], PALE[sky])
    for _ in range(20):
        x = random.choice(things).box.x + random.uniform(-0.05, 0.05)
        if random.random() < 0.4:
            x = random.random()
        thing = _standing(thing, x, random.uniform(_MARGIN + thing.box.height, HORIZON - 0.05))
        if _fits(thing.box, [other.box for other in things], 0.02):
            things.append(thing)
            return


def _lamp(random: Random, sky: str, things: list[Thing]) -> tuple[float, float] | None:
    """Return the position of the sun or the moon; things may hide only the setting sun."""
    if sky == "sunset":
        return random.uniform(0.2, 0.8), HORIZON - 0.02
    for _ in range(20):
        x, y = random.uniform(0.12, 0.88), random.uniform(0.12, 0.3)
        box = Box(x - 0.08, y - 0.08, x + 0.08, y + 0.08)
        if _fits(box, [thing.box for thing in things], 0.01):
            return x, y
    return None


def _fits(box: Box, others: list[Box], gap: float) -> bool:
    inside = box.left >= 0 and box.right <= 1 and box.top >= 0 and box.bottom <= 1
    return inside and all(box.clear_of(other, gap) for other in others)
