"""The model card of a captioner: what it is, how well it does, where it fails, what it is not for.

Everything in it is taken from the run: no figure is written here.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from evaluation.validation import tokenize_without_java

# Terms as the data sets' makers give them.
_TERMS = {
    "flickr8k": "for non-commercial research and education only. The photographs belong to the "
    "people who put them on Flickr",
    "flickr30k": "for non-commercial research and education only. The photographs belong to the "
    "people who put them on Flickr",
    "coco": "captions CC BY 4.0; the photographs under the terms of Flickr and of the people who "
    "put them there",
    "shapes": "drawn by this project, under its MIT licence",
}
_UNKNOWN_TERMS = "not known here; they bind whoever passes this captioner on"

# Kinds of words that are easily right or wrong; in each, words that mean the same stand together.
_KINDS: dict[str, list[tuple[str, ...]]] = {
    "a colour": [
        *(("black",), ("white",), ("brown",), ("red",), ("blue",), ("green",), ("yellow",)),
        *(("orange",), ("pink",), ("purple",), ("gray", "grey")),
    ],
    "a man or boy, a woman or girl": [
        ("man", "men", "boy", "boys", "guy", "male", "gentleman"),
        ("woman", "women", "girl", "girls", "lady", "ladies", "female"),
    ],
    "a child": [
        ("boy", "girl", "child", "children", "kid", "kids", "boys", "girls", "baby", "toddler")
    ],
    "a number of two or more": [("two",), ("three",), ("four",), ("five",)],
    "a dog": [("dog", "dogs", "puppy", "puppies")],
    "water, snow, sand or grass": [
        ("water", "ocean", "lake", "river", "pool", "sea", "waves", "wave"),
        *(("snow", "snowy"), ("sand", "sandy", "beach"), ("grass", "grassy", "field", "lawn")),
    ],
}


def claims(
    captions: Mapping[int, str], references: Mapping[int, list[str]]
) -> dict[str, tuple[int, int]]:
    """Count what captions claim and people confirm.

    Returns:
        For each kind of word, how many captions have one, and of how many of these every such word
        is in some reference caption too, or another that means the same.
    """
    written = tokenize_without_java({image: [text] for image, text in captions.items()})
    said = tokenize_without_java(dict(references))
    counts = {}
    for kind, groups in _KINDS.items():
        claimed = confirmed = 0
        for image, (caption,) in written.items():
            words, known = set(caption.split()), set(" ".join(said[image]).split())
            meant = [group for group in groups if words.intersection(group)]
            claimed += bool(meant)
            confirmed += bool(meant) and all(known.intersection(group) for group in meant)
        if claimed:
            counts[kind] = (claimed, confirmed)
    return counts


def markdown(captioner: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the card.

    Args:
        captioner: what captioner.json says.
        config: the run's config.
    """
    options = config["options"]
    model = options["decoder"]
    lines = [
        f"# Model card: {captioner['name']}",
        "",
        "Writes one short English sentence about a photograph.",
        "",
        "## What it is",
        "",
        f"- A decoder of {captioner['parameters']:,} parameters ({model['model']}, "
        f"{model['cell']} cells, hidden size {model['hidden']}) of {captioner['words']:,} words, "
        f"in {captioner['bits']} bits.",
        f"- It looks through {captioner['features']['backbone'].replace('+', ', ')}, trained on "
        "ImageNet and not in this folder; the fingerprint of the features that it must see is "
        f"`{captioner['fingerprint'][:16]}`.",
        *_choice(captioner["reranks"]),
        "- Use: `python -m decoder.caption --run THIS_FOLDER photo.jpg`",
        "",
        "## Data",
        "",
        *_data(captioner["data"]),
        "",
        "## Training",
        "",
        f"- {options['xe']['epochs']} epochs of cross-entropy at most, at a learning rate of "
        f"{options['xe']['learning_rate']} with label smoothing of "
        f"{options['xe']['label_smoothing']}.",
        _reinforce(options["rl"], captioner["weights"], config["reward"]),
        f"- Batches of {options['batch_size']} images with all their captions, seed "
        f"{options['seed']}; every option is in config.json.",
        "",
        "## Scores",
        "",
        *_scores(captioner["scores"]),
        "",
        "## Confidence",
        "",
        *_confidence(captioner["confidence"]),
        "",
        "## What it gets wrong",
        "",
        *_wrong(captioner["claims"], captioner["scores"]),
        "- It describes what is frequent in its data. What it never or seldom saw there it takes "
        "for something else, and says so in the same tone.",
        "- It sees the whole picture at a small size: text, small things and faces are lost on it. "
        "It reads nothing, recognises nobody and does not count beyond a few.",
        "- Drawings, charts, screenshots, documents and pictures of anything but everyday scenes "
        "get a sentence, too. It means nothing.",
        "",
        "## Not for",
        "",
        "- Anything that someone's safety, health, rights or money depends on.",
        "- Telling who or of what kind people are. Its words for sex and age are guesses by "
        "clothes and hair, with the habits of the people who wrote the captions.",
        "- Alternative texts that nobody looks through: mark them as generated, and let a person "
        "mend them.",
        "- Uses that the terms of its data exclude.",
    ]
    return "\n".join(lines) + "\n"


def _choice(reranks: bool) -> Iterable[str]:
    if reranks:
        yield (
            "- Of the captions that it finds it takes the one that people would most likely have "
            "written, as far as a regression of the training captions on their pictures tells, "
            "which is in this folder."
        )


def _data(data: Mapping[str, Any] | None) -> Iterable[str]:
    if data is None:
        yield "- Not known: the captions were not there when this captioner was made."
        return
    dataset, images, captions = data["dataset"], data["images"], data["captions"]
    yield f"- Trained on {dataset}: {images:,} images with {captions:,} captions by people."
    yield f"- Terms of {dataset}: {_TERMS.get(dataset, _UNKNOWN_TERMS)}."
    yield "- None of its images or captions are in this folder."


def _reinforce(rl: Mapping[str, Any], weights: str, reward: str) -> str:
    if weights == "best_xe" or not rl["epochs"]:
        return "- No REINFORCE."
    return (
        f"- Then {rl['epochs']} epochs of REINFORCE at most, at a learning rate of "
        f"{rl['learning_rate']}: {reward}."
    )


def _scores(scores: Mapping[str, Any]) -> Iterable[str]:
    if not scores:
        yield "None: its captions had not been scored when this captioner was made."
        return
    names = list(dict.fromkeys(name for of in scores.values() for name in of["corpus"]))
    level = next(iter(scores.values()))["confidence"]
    yield f"By the official COCO toolkit; in brackets the {level:.0%} bootstrap interval."
    yield ""
    yield "| split | images | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 2) + "|"
    for split, of in scores.items():
        cells = [_with_interval(of, name) for name in names]
        yield f"| {split} | {of['images']:,} | " + " | ".join(cells) + " |"


def _with_interval(of: Mapping[str, Any], name: str) -> str:
    value, (low, high) = of["corpus"].get(name), of["intervals"].get(name) or (None, None)
    if value is None:
        return ""
    return f"{value:.3f}" if low is None else f"{value:.3f} ({low:.3f}-{high:.3f})"


def _confidence(confidence: Mapping[str, Any] | None) -> Iterable[str]:
    if confidence is None:
        yield "None: there were no scored validation captions to learn it from."
        return
    yield (
        f"A caption's confidence is the probability that its CIDEr is {confidence['good']} or "
        f"more, judged by its log-probability per word as learnt from {confidence['images']:,} "
        "validation captions. It says how usual such a success is, not that a caption is true."
    )
    yield ""
    yield "| confidence | validation captions | of these good | mean CIDEr |"
    yield "|---|---|---|---|"
    for row in confidence["table"]:
        yield (
            f"| {row['from']:.1f} to {row['to']:.1f} | {row['captions']} | {row['good']:.0%} | "
            f"{row['CIDEr']:.3f} |"
        )


def _wrong(claims: Mapping[str, Any], scores: Mapping[str, Any]) -> Iterable[str]:
    if "val" in scores:
        figures = scores["val"]["diagnostics"]
        yield (
            f"- Its {scores['val']['images']:,} validation captions use {figures['distinct_words']}"
            f" different words and are {figures['distinct_captions']:.0%} different captions; "
            f"{figures['bad_endings']:.1%} end in mid-air."
        )
    if claims:
        yield (
            "- How often it names what nobody named of the people who described the same "
            "validation picture, which is mostly, not always, an error:"
        )
        yield ""
        yield "  | its caption names | captions | nobody did |"
        yield "  |---|---|---|"
        for kind, (claimed, confirmed) in claims.items():
            yield f"  | {kind} | {claimed} | {1 - confirmed / claimed:.0%} |"
        yield ""
