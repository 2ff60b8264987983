"""Neutral words for people: a captioner guesses from clothes and hair who is a man or a woman."""

import re

_PEOPLE = {
    "person": "man woman guy lady gentleman dude male female bride groom",
    "people": "men women guys ladies gentlemen dudes males females bridesmaids groomsmen",
    "child": "boy girl son daughter",
    "children": "boys girls sons daughters",
    "parent": "mother father mom dad",
    "parents": "mothers fathers moms dads",
    "sibling": "brother sister",
    "siblings": "brothers sisters",
    "police officer": "policeman policewoman",
    "police officers": "policemen policewomen",
    "firefighter": "fireman firewoman",
    "firefighters": "firemen firewomen",
    "fisher": "fisherman fisherwoman",
    "camera operator": "cameraman camerawoman",
    "batter": "batsman batswoman",
    "rider": "cowboy cowgirl",
    "riders": "cowboys cowgirls",
    "their": "his",
    "them": "him",
    "they": "he she",
    "themselves": "himself herself",
}
_NEUTRAL = {word: plain for plain, words in _PEOPLE.items() for word in words.split()}
_GENDERED = re.compile(rf"\b(?:{'|'.join(_NEUTRAL)})\b")

# What follows a noun, after which "male" and "female" are nouns; before others they are adjectives.
_AFTER_NOUN = (
    "in|on|at|with|and|is|are|of|to|by|from|who|near|next|wearing|holding|standing|sitting|riding|"
    "walking|running|playing|jumping|looking|doing|performing"
)
_ADJECTIVE = re.compile(rf"\b(an? )?(?:fe)?male (?!(?:{_AFTER_NOUN})\b)(?=([a-z]+))")
_VOWEL = re.compile(r"[aeio]|u(?!ni)")
# "Her" is an object at the end and before a preposition, else a possessive.
_HER = re.compile(r"\bher\b(?= (?:in|on|at|with|and|as|while|to|from|by|near|is)\b|$)")
# Pairs that would read "a person and a person".
_PAIR = re.compile(r"\ban? ((?:\w+ )?)(person|child) and an? (?:\1)\2\b")
_PLURAL = {"person": "people", "child": "children"}
_SAME = re.compile(r"\b(people|children) and \1\b")
_VERBS = {"they is": "they are", "they was": "they were", "they has": "they have"}


def neutral(text: str) -> str:
    """Return a lower-case English caption that does not say whether people are male or female."""
    if not re.search(rf"{_GENDERED.pattern}|\bhers?\b", text):
        return text
    text = _ADJECTIVE.sub(_article, text)
    text = re.sub(r"\bher\b", "their", _HER.sub("them", text))
    text = _GENDERED.sub(lambda match: _NEUTRAL[match[0]], text)
    text = _PAIR.sub(lambda match: f"two {match[1]}{_PLURAL[match[2]]}", text)
    text = _SAME.sub(r"\1", text)
    for wrong, right in _VERBS.items():
        text = text.replace(wrong, right)
    return text


def _article(adjective: re.Match[str]) -> str:
    """Return the article that remains, for the word that follows now."""
    if adjective[1] is None:
        return ""
    return "an " if _VOWEL.match(adjective[2]) else "a "
