"""The kinds of things and the places that exist in the `shapes` data set."""

from dataclasses import dataclass

SKIES = {"sunny": 4, "cloudy": 2, "sunset": 2, "night": 2}  # how often each is drawn
# Colours that a flying thing must not have, because they hardly differ from the sky.
PALE = {"sunny": (), "cloudy": ("white",), "sunset": ("orange", "pink"), "night": ("black",)}

_BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
_CLOTH = ("red", "yellow", "green", "blue", "orange", "pink")
_PAINT = ("red", "yellow", "green", "blue", "white")


@dataclass(frozen=True)
class Kind:
    """A kind of thing; `width` and `height` are fractions of the picture, for medium size."""

    name: str
    width: float
    height: float
    colours: tuple[str, ...]  # one listed twice is drawn more often
    zone: str = "land"  # or water, or sky
    pose: str = "stand"
    far: bool = False  # stands towards the horizon rather than towards the viewer
    flock: bool = False  # also comes in twos and threes


KINDS = {
    kind.name: kind
    for kind in (
        Kind("house", 0.38, 0.38, (*_PAINT, "pink"), far=True),
        Kind("tree", 0.3, 0.42, ("green", "green", "orange", "pink"), far=True),
        Kind("palm tree", 0.32, 0.46, ("green",), far=True),
        Kind("pine tree", 0.25, 0.42, ("green",), far=True),
        Kind("cactus", 0.22, 0.34, ("green",), far=True),
        Kind("lighthouse", 0.18, 0.48, ("red", "blue"), far=True),
        Kind("tent", 0.36, 0.27, (*_CLOTH, "purple"), far=True),
        Kind("umbrella", 0.36, 0.38, _CLOTH, far=True),
        Kind("snowman", 0.22, 0.36, ()),
        Kind("car", 0.34, 0.18, (*_PAINT, "orange"), pose="park"),
        Kind("bus", 0.44, 0.26, _PAINT[:-1], pose="park"),
        Kind("cat", 0.19, 0.24, ("black", "white", "orange", "gray"), pose="sit"),
        Kind("dog", 0.26, 0.22, ("brown", "white", "black")),
        Kind("sheep", 0.25, 0.2, ("white", "black"), flock=True),
        Kind("flower", 0.17, 0.27, ("red", "yellow", "purple", "pink"), pose="grow", flock=True),
        Kind("boat", 0.31, 0.36, (*_PAINT, "orange", "black"), "water", "sail"),
        Kind("whale", 0.38, 0.26, ("blue", "gray", "black"), "water", "swim"),
        Kind("duck", 0.23, 0.2, ("yellow", "white", "brown"), "water", "swim", flock=True),
        Kind("balloon", 0.25, 0.36, (*_BRIGHT, "white"), "sky", "float"),
        Kind("kite", 0.2, 0.27, _BRIGHT, "sky", "fly"),
        Kind("plane", 0.34, 0.16, _PAINT, "sky", "fly"),
        Kind(
            "bird",
            0.23,
            0.18,
            ("red", "yellow", "blue", "white", "black"),
            "sky",
            "fly",
            flock=True,
        ),
    )
}

# The kinds that may be on, under or in front of other kinds: relation -> guest -> hosts.
GUESTS = {
    "on": {
        "bird": ("house", "cactus", "lighthouse", "tent", "snowman", "car", "bus", "boat"),
        "cat": ("house", "car", "bus"),
    },
    "under": {
        "dog": ("tree", "palm tree", "umbrella"),
        "cat": ("tree", "palm tree", "umbrella"),
        "sheep": ("tree",),
    },
    "in front of": {
        "dog": ("house", "tent", "bus"),
        "cat": ("house", "tent", "bus"),
        "car": ("house",),
        "flower": ("house", "tent"),
    },
}


@dataclass(frozen=True)
class Place:
    """A landscape: the kinds on its ground and in its air, and colours invisible against it."""

    name: str
    grounded: tuple[str, ...]
    aloft: tuple[str, ...]
    hidden_colours: tuple[str, ...] = ()


PLACES = (
    Place(
        "meadow",
        ("house", "house", "tree", "tree", "tree", "car", "tent", "cat", "dog", "sheep", "flower"),
        ("balloon", "kite", "plane", "bird"),
    ),
    Place(
        "beach",
        (
            "palm tree",
            "palm tree",
            "umbrella",
            "umbrella",
            "lighthouse",
            "tent",
            "cat",
            "dog",
            "boat",
        ),
        ("balloon", "kite", "kite", "plane", "bird"),
    ),
    Place("sea", ("boat", "whale", "duck"), ("balloon", "plane", "bird"), ("blue",)),
    Place(
        "snow",
        ("house", "house", "pine tree", "pine tree", "snowman", "tent", "cat", "dog"),
        ("balloon", "plane", "bird"),
        ("white",),
    ),
    Place(
        "desert",
        ("cactus", "tent", "car", "bus", "dog"),
        ("balloon", "kite", "plane", "bird"),
        ("orange",),
    ),
    Place(
        "city",
        ("house", "house", "tree", "tree", "car", "bus", "cat", "dog"),
        ("balloon", "plane", "bird"),
    ),
)
