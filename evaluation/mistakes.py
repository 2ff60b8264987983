"""What captions get wrong: confused colours, numbers, people and things, and their vocabulary."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from evaluation.toolkit import Captions
from evaluation.validation import tokenize_without_java
from evaluation.word_kinds import COLOURS, NUMBERS, PEOPLE

_KINDS = {"Colours": COLOURS, "Numbers": NUMBERS, "Men, women, boys, girls": PEOPLE}
_THINGS = "Things and actions"

# Between a colour or a number and the noun that it belongs to: "two small black dogs".
_BESIDE = {"and", "small", "large", "big", "little", "young", "old", "tall", "other", "different"}
# These words are in sentences about anything.
_COMMON = frozenset(
    (
        *("a", "an", "the", "and", "or", "but", "of", "in", "on", "at", "to", "by", "for", "from"),
        *("with", "without", "into", "onto", "over", "under", "near", "next", "through", "off"),
        *("up", "down", "out", "as", "while", "that", "which", "who", "is", "are", "was", "were"),
        *("be", "been", "being", "has", "have", "having", "there", "this", "these", "those", "it"),
        *("its", "his", "her", "their", "he", "she", "they", "him", "them", "another", "other"),
        *("some", "one", "each", "very", "behind", "front", "top", "beside", "between", "above"),
        *("below", "around", "along", "across", "against", "towards", "toward", "'s", "n't", "not"),
        *("what", "where", "when", "like", "looks", "looking", "many", "several"),
    )
)
_SHARE = 0.5  # of an image's references that must say a word before a caption can contradict it
_LEAST = 2  # images in which two words must be confused before they are listed


@dataclass(frozen=True)
class Confusion:
    """A word of captions where references have another one."""

    written: str
    expected: str
    images: list[int]
    """Ids of the images where it happened."""


@dataclass
class Kind:
    """Words of one kind, such as colours, in the captions of a split."""

    name: str
    confirmed: int = 0
    """Number of these words in captions that a reference of the image agrees with."""
    contradicted: int = 0
    """Number of words where references have another one."""
    unmentioned: int = 0
    """Number of words that no reference says anything about."""
    confusions: list[Confusion] = field(default_factory=list)
    """The most frequent first; of things and actions, those most above chance first."""


@dataclass(frozen=True)
class WordUse:
    """How often captions use a word, and how often they would if people had written them."""

    word: str
    written: int
    """Number of captions with the word."""
    expected: float
    """Sum over the images of the share of references with the word."""


@dataclass(frozen=True)
class Mistakes:
    """The error analysis of the captions of a split."""

    kinds: list[Kind]
    never_used: list[WordUse]
    overused: list[WordUse]


def analyse(captions: Mapping[int, str], references: Captions, most: int = 8) -> Mistakes:
    """Compare captions with the references of the same images, word by word.

    A colour or number contradicts the references if they have another one for the same noun and
    never this one ("a red car", "the blue car"), or if at least half of them have the same other
    one and none has this one. A man, woman, boy or girl does if at least half of the references
    have another of these and none has this one. Things and actions are words that no reference
    has, each with a word that at least half of the references have and the caption lacks; a pair
    is listed by how often it occurs and by how much more often than by chance.

    Args:
        captions: one for each image.
        references: of these images.
        most: length of each list.
    """
    written = {
        image: text[0].split()
        for image, text in tokenize_without_java({i: [t] for i, t in captions.items()}).items()
    }
    every = tokenize_without_java({image: references[image] for image in captions})
    expected = {image: [text.split() for text in texts] for image, texts in every.items()}
    kinds = [_kind(name, of, written, expected, most) for name, of in _KINDS.items()]
    kinds.append(_things(written, expected, most))
    never, over = _vocabulary(written, expected, most)
    return Mistakes(kinds, never, over)


Words = Mapping[int, Sequence[str]]
References = Mapping[int, Sequence[Sequence[str]]]


def _kind(
    name: str, classes: Mapping[str, str], written: Words, expected: References, most: int
) -> Kind:
    """Compare the words of one kind, a `classes` of synonyms, in captions and references."""
    kind = Kind(name)
    confused: dict[tuple[str, str], list[int]] = defaultdict(list)
    has_nouns = classes is not PEOPLE
    for image, words in written.items():
        references = expected[image]
        for own, noun in sorted(set(_mentions(words, classes))):
            other = _counterpart(own, noun if has_nouns else "", references, classes)
            if other is None:
                kind.unmentioned += 1
            elif other == own:
                kind.confirmed += 1
            else:
                kind.contradicted += 1
                confused[own, other].append(image)
    kind.confusions = _most_frequent(confused, most)
    return kind


def _counterpart(
    own: str, noun: str, references: Sequence[Sequence[str]], classes: Mapping[str, str]
) -> str | None:
    """Return what the references say for `own`: itself, another class, or None if nothing."""
    mentions = [_mentions(words, classes) for words in references]
    of_noun = Counter(c for found in mentions for c, n in set(found) if noun and n == noun)
    if of_noun:
        return own if own in of_noun else of_noun.most_common(1)[0][0]
    counts = Counter(c for found in mentions for c in {c for c, _ in found})
    if own in counts:
        return own
    if not counts:
        return None
    other, count = counts.most_common(1)[0]
    if any(noun and noun == _singular(word) for words in references for word in words):
        return None  # they name the thing without its colour
    # With nouns, a second colour shows that the references speak of more than one thing.
    unambiguous = len(counts) == 1 or classes is PEOPLE
    return other if unambiguous and count >= _SHARE * len(references) else None


def _mentions(words: Sequence[str], classes: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return each word of a kind as its class, with the noun after it ("" at the end)."""
    found = []
    for place, word in enumerate(words):
        if word in classes:
            after = (w for w in words[place + 1 :] if w not in COLOURS and w not in _BESIDE)
            noun = next(after, "")
            found.append((classes[word], "" if noun in _COMMON else _singular(noun)))
    return found


def _things(written: Words, expected: References, most: int) -> Kind:
    """Pair words that only the caption has with words that only the references have."""
    kind = Kind(_THINGS)
    pairs: dict[tuple[str, str], list[int]] = defaultdict(list)
    invented, missed = Counter[str](), Counter[str]()
    forms: dict[str, Counter[str]] = defaultdict(Counter)  # "tennis" is not to be shown as "tenni"
    for image, words in written.items():
        own = {_singular(word) for word in words if _is_content(word)}
        for word in (*words, *(word for reference in expected[image] for word in reference)):
            forms[_singular(word)][word] += 1
        counts = Counter(
            stem
            for reference in expected[image]
            for stem in {_singular(word) for word in reference if _is_content(word)}
        )
        least = max(min(2, len(expected[image])), _SHARE * len(expected[image]))
        wrong = {stem for stem in own if stem not in counts}
        lacking = {stem for stem, n in counts.items() if n >= least and stem not in own}
        kind.confirmed += len(own) - len(wrong)
        kind.contradicted += len(wrong) if lacking else 0
        kind.unmentioned += 0 if lacking else len(wrong)
        invented.update(wrong)
        missed.update(lacking)
        for pair in ((w, m) for w in wrong for m in lacking):
            pairs[pair].append(image)

    def weight(item: tuple[tuple[str, str], list[int]]) -> float:
        (own, other), images = item
        chance = invented[own] * missed[other] / len(written)
        return len(images) * math.log(len(images) / chance)

    likely = {p: i for p, i in sorted(pairs.items()) if len(i) >= _LEAST and weight((p, i)) > 0}
    ranked = sorted(likely.items(), key=weight, reverse=True)
    # One pair for each word: where "snow" is missed, so are most other words of the scene.
    seen: set[str] = set()
    for pair, images in ranked:
        if not seen & set(pair) and len(kind.confusions) < most:
            seen |= set(pair)
            written_as, expected_as = (forms[stem].most_common(1)[0][0] for stem in pair)
            kind.confusions.append(Confusion(written_as, expected_as, images))
    return kind


def _vocabulary(
    written: Words, expected: References, most: int
) -> tuple[list[WordUse], list[WordUse]]:
    """Return the words that captions never use, and those that they use far too often."""
    own = Counter(word for words in written.values() for word in set(words))
    share: dict[str, float] = defaultdict(float)
    for references in expected.values():
        for reference in references:
            for word in sorted(set(reference)):
                share[word] += 1 / len(references)
    uses = [
        WordUse(word, own[word], share.get(word, 0.0))
        for word in sorted({*own, *share})
        if word not in _COMMON and word.isalpha()
    ]
    never = [use for use in uses if not use.written and use.expected >= 1]
    over = [use for use in uses if use.written >= 2 and use.written > 1.5 * use.expected]
    never.sort(key=lambda use: -use.expected)
    # In standard errors of a Poisson count, so that neither rare nor frequent words win by size.
    over.sort(key=lambda use: -(use.written - use.expected) / math.sqrt(use.expected + 1))
    return never[: 3 * most], over[:most]


def _most_frequent(confused: Mapping[tuple[str, str], list[int]], most: int) -> list[Confusion]:
    ranked = sorted(confused.items(), key=lambda item: (-len(item[1]), item[0]))
    return [Confusion(*pair, images) for pair, images in ranked[:most]]


def _is_content(word: str) -> bool:
    kinds: Iterable[Mapping[str, str]] = _KINDS.values()
    return word.isalpha() and word not in _COMMON and not any(word in kind for kind in kinds)


def _singular(word: str) -> str:
    """Return a regular noun or verb without its s, for comparison only."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
