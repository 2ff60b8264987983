"""Neutral words for people: a captioner guesses from clothes and hair who is a man or a woman."""

import re

# The neutral noun and its plural, and those that it stands for.
_NOUNS = (
    (
        "person",
        "people",
        "man woman guy lady lad gal gentleman dude male female bride groom bridesmaid groomsman",
        "men women guys ladies lads gals gentlemen dudes males females bridesmaids groomsmen",
    ),
    ("child", "children", "boy girl son daughter", "boys girls sons daughters"),
    ("schoolchild", "schoolchildren", "schoolboy schoolgirl", "schoolboys schoolgirls"),
    ("parent", "parents", "mother father mom dad", "mothers fathers moms dads"),
    ("grandparent", "grandparents", "grandmother grandfather", "grandmothers grandfathers"),
    ("grandchild", "grandchildren", "grandson granddaughter", "grandsons granddaughters"),
    ("sibling", "siblings", "brother sister", "brothers sisters"),
    ("spouse", "spouses", "husband wife", "husbands wives"),
    ("partner", "partners", "boyfriend girlfriend", "boyfriends girlfriends"),
    ("police officer", "police officers", "policeman policewoman", "policemen policewomen"),
    ("firefighter", "firefighters", "fireman firewoman", "firemen firewomen"),
    ("fisher", "fishers", "fisherman fisherwoman", "fishermen fisherwomen"),
    ("camera operator", "camera operators", "cameraman camerawoman", "cameramen camerawomen"),
    ("batter", "batters", "batsman batswoman", "batsmen batswomen"),
    ("base player", "base players", "baseman", "basemen"),
    ("rider", "riders", "cowboy cowgirl horseman", "cowboys cowgirls horsemen"),
    ("businessperson", "businesspeople", "businessman businesswoman", "businessmen businesswomen"),
    ("salesperson", "salespeople", "salesman saleswoman", "salesmen saleswomen"),
    ("chairperson", "chairpeople", "chairman chairwoman", "chairmen chairwomen"),
    ("athlete", "athletes", "sportsman sportswoman", "sportsmen sportswomen"),
    ("worker", "workers", "workman", "workmen"),
    ("mail carrier", "mail carriers", "mailman postman", "mailmen postmen"),
    ("server", "servers", "waiter waitress", "waiters waitresses"),
    ("actor", "actors", "actress", "actresses"),
)
_PRONOUNS = {
    "person's": "mans womans",
    "their": "his",
    "theirs": "hers",
    "them": "him",
    "they": "he she",
    "themselves": "himself herself",
}
_NEUTRAL = {word: one for one, _, words, _ in _NOUNS for word in words.split()}
_NEUTRAL |= {word: many for _, many, _, words in _NOUNS for word in words.split()}
_NEUTRAL |= {word: plain for plain, words in _PRONOUNS.items() for word in words.split()}
# What people wear is no person: cowboy boots, bridesmaid dresses.
_WORN = (
    r"(?:cow(?:boy|girl)|bridesmaid) (?:attire|cloth(?:es|ing)|gear|dress(?:es)?"
    r"|(?:boot|costume|glove|gown|hat|jacket|outfit|shirt|shoe|uniform)s?)"
)
_GENDERED = re.compile(rf"(?:\b(an?) )?(?<!-)\b(?!{_WORN}\b)({'|'.join(_NEUTRAL)})\b(?!-)")

# What follows a noun, after which "male" and "female" are nouns; before others they are adjectives.
_AFTER_NOUN = (
    r"in|on|at|with|and|is|are|was|were|has|have|of|to|by|from|who|that|while|near|next|up|down|"
    r"over|under|through|into|onto|along|behind|off|across|beside|dressed|sit|stand|walk|run|play|"
    r"ride|pose|look|talk|hold|wear|smile|jump|\w+ing"
)
_ADJECTIVE = re.compile(rf"\b(an? )?(?:fe)?male (?!(?:{_AFTER_NOUN})\b)(?=([a-z]+))")
# So they are before a verb: "a young male swims", but not "two male students".
_BEFORE_VERB = re.compile(r"\b((?:an?|the|one) (?:\w+ )?)(?:fe)?male(?= \w+[^\Ws]s\b)")
_VOWEL = re.compile(r"[aeio]|u(?!ni)")
# "Her" is an object at the end and before a preposition or an article, else a possessive.
_HER = re.compile(
    r"\bher\b(?= (?:in|on|at|with|and|as|while|to|from|by|near|is|for|over|under|into|onto|off|up|"
    r"down|through|around|along|across|behind|beside|before|after|during|against|out|away|who|"
    r"that|an?|the)\b|$)"
)
# Pairs that would read "a person and a person", with the same words before both.
_PAIR = re.compile(
    r"(?:\b(an?|the|one|this|that|another|their|its|each|every|no) |^)((?:\w+ )??)"
    rf"({'|'.join(one for one, *_ in _NOUNS)}) and (?:(?:(?:an?|the|one)|\1) \2|\2|)\3\b"
)
_TWO = {
    "the": "the two",
    "this": "these two",
    "that": "those two",
    "another": "two other",
    "their": "their two",
    "its": "its two",
}
_PLURAL = {one: many for one, many, *_ in _NOUNS}
_SAME = re.compile(
    r"\b((?:(?:some|many|(?:a )?few|several|other) )?(?:people|children)|they) and \1\b"
)
_COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SUM = re.compile(r"\b(two|three|four|five) (people|children) and (two|three|four|five) \2\b")

_HE_AND_VERB = re.compile(
    r"\b(?:he|she)((?: (?:also|always|just|never|often|sometimes|still|then|\w+ly))*)"
    r"(?: ?('s)| (\w+s))\b"
)
_VERBS = {"is": "are", "'s": "are", "was": "were", "has": "have"}
_ENDINGS = ((r"(\w\w)ies$", r"\1y"), (r"(ss|zz|x|o|ch|sh)es$", r"\1"), (r"([^s])s$", r"\1"))


def neutral(text: str) -> str:
    """Return a lower-case English caption that does not say whether people are male or female."""
    if not re.search(rf"{_GENDERED.pattern}|\bher\b", text):
        return text
    text = _BEFORE_VERB.sub(r"\1person", text)
    text = _ADJECTIVE.sub(lambda match: _article(match[1], match[2]), text)
    text = re.sub(r"\bher\b", "their", _HER.sub("them", text))
    text = _HE_AND_VERB.sub(
        lambda match: f"they{match[1]} {_plural_verb(match[2] or match[3])}", text
    )
    text = _GENDERED.sub(lambda m: _article(m[1], _NEUTRAL[m[2]]) + _NEUTRAL[m[2]], text)
    text = _PAIR.sub(_two, text)
    text = _SUM.sub(_counted, text)
    return _SAME.sub(r"\1", text)


def _article(before: str | None, word: str) -> str:
    """Return the indefinite article and space before `word`, if there was one `before`."""
    if before is None:
        return ""
    return "an " if _VOWEL.match(word) else "a "


def _plural_verb(verb: str) -> str:
    """Return the form that follows "they" of a verb that follows "he": "catch" of "catches"."""
    if verb in _VERBS:
        return _VERBS[verb]
    for ending, plain in _ENDINGS:
        changed, count = re.subn(ending, plain, verb)
        if count:
            return changed
    return verb


def _two(pair: re.Match[str]) -> str:
    if pair[1] in ("each", "every", "no"):
        return f"{pair[1]} {pair[2]}{pair[3]}"
    return f"{_TWO.get(pair[1], 'two')} {pair[2]}{_PLURAL[pair[3]]}"


def _counted(both: re.Match[str]) -> str:
    count = _COUNTS.index(both[1]) + _COUNTS.index(both[3]) + 2
    return f"{_COUNTS[count - 1]} {both[2]}"
