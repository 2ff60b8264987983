"""Words that say the same: colours, numbers, men, women, boys and girls, each with its class."""

COLOURS = {
    **{name: name for name in ("red", "orange", "yellow", "green", "blue", "purple", "pink")},
    **{name: name for name in ("brown", "black", "white", "gray")},
    "grey": "gray",
    "violet": "purple",
}
NUMBERS = {
    **{name: name for name in ("two", "three", "four", "five", "six", "seven", "eight", "nine")},
    "2": "two",
    "3": "three",
    "4": "four",
    "5": "five",
    "6": "six",
    "7": "seven",
    "8": "eight",
    "9": "nine",
    "couple": "two",
    "pair": "two",
    "twin": "two",
}
PEOPLE = {
    **dict.fromkeys(("man", "men", "guy", "guys", "gentleman", "gentlemen", "male"), "man"),
    **dict.fromkeys(("woman", "women", "lady", "ladies", "female"), "woman"),
    **dict.fromkeys(("boy", "boys"), "boy"),
    **dict.fromkeys(("girl", "girls"), "girl"),
}
