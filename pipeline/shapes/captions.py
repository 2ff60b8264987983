"""Five captions of a scene, as five people might write them: true, grammatical and different."""

from dataclasses import dataclass
from random import Random

from pipeline.shapes.layout import Layout, Relation
from pipeline.text import as_sentence

MOST_WORDS = 16

# One of the listed wordings is drawn; a wording that is listed twice is drawn more often.
NOUNS = {
    "balloon": ("balloon", "balloon", "hot air balloon"),
    "boat": ("boat", "boat", "sailboat"),
    "plane": ("plane", "plane", "airplane"),
}
PLURALS = {"bird": "birds", "duck": "ducks", "flower": "flowers", "sheep": "sheep"}
NUMBERS = {2: "two", 3: "three"}
SIZE_WORDS = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
VERBS = {  # singular, plural, participle
    "stand": ("stands", "stand", "standing"),
    "sit": ("sits", "sit", "sitting"),
    "park": ("is parked", "are parked", "parked"),
    "grow": ("grows", "grow", "growing"),
    "sail": ("sails", "sail", "sailing"),
    "swim": ("swims", "swim", "swimming"),
    "float": ("floats", "float", "floating"),
    "fly": ("flies", "fly", "flying"),
}
RELATION_WORDS = {
    "on": ("on", "on", "on top of"),
    "under": ("under",),
    "in front of": ("in front of",),
    "behind": ("behind",),
    "above": ("above", "above", "over"),
    "below": ("below", "under"),
    "next to": ("next to", "next to", "beside", "near"),
    "left of": ("to the left of",),
    "right of": ("to the right of",),
}
# How likely people are to mention a relation.
SALIENCE = {
    "on": 8,
    "under": 8,
    "in front of": 8,
    "behind": 2,
    "above": 4,
    "below": 0.8,
    "next to": 2,
    "left of": 1,
    "right of": 1,
}

PLACE_PHRASES = {
    "meadow": ("in a meadow", "in a green meadow", "on the grass"),
    "beach": ("on the beach", "on a sandy beach"),
    "sea": ("on the sea", "on the water"),
    "snow": ("in the snow", "in a snowy field"),
    "desert": ("in the desert", "in the desert", "in a sandy desert"),
    "city": ("in the city", "on a city street"),
}
BY_THE_SEA = ("at the beach", "by the sea")
PLACE_NOUNS = {
    "meadow": ("a meadow", "a green meadow"),
    "beach": ("a beach", "a sandy beach"),
    "sea": ("the sea", "the open sea"),
    "snow": ("a snowy field",),
    "desert": ("the desert",),
    "city": ("a city", "a city street"),
}
TIME_PHRASES = {
    "sunny": ("on a sunny day",),
    "cloudy": ("on a cloudy day",),
    "sunset": ("at sunset", "at sunset", "in the evening"),
    "night": ("at night",),
}
OPENINGS = {
    "sunny": "the sun shines",
    "cloudy": "clouds hang",
    "sunset": "the sun sets",
    "night": "the moon shines",
}


def captions(layout: Layout, random: Random) -> tuple[str, ...]:
    """Return five different captions of `layout`, each a sentence of at most 16 words."""
    writer = _Writer(layout, random)
    patterns = [writer.brief, writer.existential, writer.statement, writer.three, writer.listing]
    random.shuffle(patterns)
    written: list[str] = []
    for pattern in patterns:
        caption = as_sentence(pattern())
        while caption in written or len(caption.split()) > MOST_WORDS:
            caption = as_sentence(random.choice((writer.existential, writer.statement))())
        written.append(caption)
    return tuple(written)


@dataclass(frozen=True)
class _Writer:
    """Writes phrases and sentences about one layout; things are indices into `layout.things`."""

    layout: Layout
    random: Random

    def brief(self) -> str:
        """State only a relation: "a red house next to a tree"."""
        a, relation, b = self.relation(self.layout.relations())
        return f"{self.plain(a)} {relation} {self.plain(b)}"

    def existential(self) -> str:
        """Say what exists: "there are two birds flying over a small boat on the sea"."""
        a, relation, b = self.relation(self.layout.relations())
        there = "there are" if self.layout.things[a].count > 1 else "there is"
        doing = f" {self.participle(a)}" if self.random.random() < 0.3 else ""
        return f"{there} {self.full(a)}{doing} {relation} {self.full(b)}{self.setting([a, b], 0.4)}"

    def statement(self) -> str:
        """Say what one thing does: "a black cat sits on a blue car at night"."""
        a, relation, b = self.relation(self.layout.relations())
        doing = self.random.choice((self.verb(a), self.participle(a)))
        return f"{self.full(a)} {doing} {relation} {self.full(b)}{self.setting([a, b], 0.8)}"

    def three(self) -> str:
        """Name three things if possible: three side by side, or two and one in the sky."""
        layout, random = self.layout, self.random
        row, flyers = layout.row(), layout.flyers()
        if len(row) == 3 and len({self.zone(i) for i in row}) == 1 and random.random() < 0.6:
            left, middle, right = row
            doing = random.choice(("", f" {self.verb(middle)}"))
            pair = f"{self.plain(left)} and {self.plain(right)}"
            return f"{self.plain(middle)}{doing} between {pair}{self.setting(row, 0.5)}"
        grounded = [
            relation
            for relation in layout.relations()
            if relation.subject not in flyers and relation.object not in flyers
        ]
        if not flyers or not grounded:
            return self.statement()
        a, relation, b = self.relation(grounded)
        c = random.choice(flyers)
        end = random.choice(("with {}", "while {} {}")).format(self.plain(c), self.verb(c))
        return f"{self.plain(a)} {relation} {self.plain(b)} {end} in the sky"

    def listing(self) -> str:
        """Name a place and two things in it: "a beach at night with a black dog and a tent"."""
        layout, random = self.layout, self.random
        a, b = random.sample(range(len(layout.things)), 2)
        if layout.things[a].kind.far:
            a, b = b, a
        place = random.choice(PLACE_NOUNS[layout.place.name])
        if random.random() < 0.7:
            start = f"{place} {random.choice(TIME_PHRASES[layout.sky])}"
        else:
            start = f"{OPENINGS[layout.sky]} over {place}"
        return f"{start} with {self.plain(a)} and {self.plain(b)}"

    def relation(self, relations: list[Relation]) -> tuple[int, str, int]:
        """Draw one of `relations`, the salient ones more often, and put it into words."""
        things = self.layout.things
        weights = [
            # People say "a cat next to a house", seldom "a house next to a cat".
            SALIENCE[name] * (0.2 if things[a].kind.far and not things[b].kind.far else 1)
            for a, name, b in relations
        ]
        a, name, b = self.random.choices(relations, weights)[0]
        return a, self.random.choice(RELATION_WORDS[name]), b

    def full(self, i: int) -> str:
        """Return e.g. "a small red boat"."""
        return self.noun_phrase(i, size=0.6)

    def plain(self, i: int) -> str:
        """Return e.g. "a red boat", seldom with its size."""
        return self.noun_phrase(i, size=0.2)

    def noun_phrase(self, i: int, size: float) -> str:
        """Name a thing with its number and colour, and with probability `size` its size."""
        thing, random = self.layout.things[i], self.random
        alike = sum(other.kind is thing.kind for other in self.layout.things) > 1
        # People rarely say that a cactus is green, but they always distinguish two houses.
        colour = 1 if alike else 0.1 if len(thing.kind.colours) == 1 else 0.8
        words = []
        if thing.size in SIZE_WORDS and random.random() < size:
            words.append(random.choice(SIZE_WORDS[thing.size]))
        if thing.colour and random.random() < colour:
            words.append(thing.colour)
        if thing.count > 1:
            return " ".join((NUMBERS[thing.count], *words, PLURALS[thing.kind.name]))
        words.append(random.choice(NOUNS.get(thing.kind.name, (thing.kind.name,))))
        return " ".join(("an" if words[0][0] in "aeiou" else "a", *words))

    def verb(self, i: int) -> str:
        """Return what a thing does, singular or plural: "flies", "fly"."""
        thing = self.layout.things[i]
        return VERBS[thing.pose][1 if thing.count > 1 else 0]

    def participle(self, i: int) -> str:
        """Return what a thing is doing: "flying"."""
        return VERBS[self.layout.things[i].pose][2]

    def setting(self, mentioned: list[int], likely: float) -> str:
        """Return the end of a sentence: the place, the time, both or nothing.

        In "a boat under a balloon on the sea" the balloon seems to swim, so no place follows a
        thing in the sky, unless everything mentioned is in the sky.
        """
        random, place = self.random, self.layout.place.name
        zones = [self.zone(i) for i in mentioned]
        ways: tuple[str, ...] = ()
        if set(zones) == {"sky"}:
            ways = tuple(f"over {noun}" for noun in PLACE_NOUNS[place])
        elif {"land", "water"} <= set(zones):
            ways = BY_THE_SEA
        elif zones[-1] == "water":
            ways = PLACE_PHRASES["sea"]
        elif zones[-1] == "land":
            ways = PLACE_PHRASES[place]
        ending = ""
        if ways and random.random() < likely:
            ending += f" {random.choice(ways)}"
        if random.random() < likely / 2:
            ending += f" {random.choice(TIME_PHRASES[self.layout.sky])}"
        return ending

    def zone(self, i: int) -> str:
        """Return land, water or sky; a thing that sits on another is in the zone of the other."""
        host = self.layout.host(i)
        return self.layout.things[i if host is None else host].kind.zone
