"""The model card of a captioner: what it is, its scores, its errors, and what not to use it for.

Every figure is taken from the run; none is written here. The card begins with the YAML that
Hugging Face reads: https://huggingface.co/docs/hub/model-cards
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# The licence of the weights by data set, as Hugging Face spells it. A licence that is not in its
# list is "other", with a name and the file LICENSE.
_OTHER = "other"
_LICENCES = {"coco": "cc-by-4.0", "shapes": "mit"}
_OTHER_NAMES = {
    "flickr8k": "non-commercial-research-and-education",
    "flickr30k": "non-commercial-research-and-education",
}
# Hugging Face's names of the metrics, and how the card calls them.
_METRICS = {
    **{f"Bleu_{n}": ("bleu", f"BLEU-{n}") for n in range(1, 5)},
    "METEOR": ("meteor", "METEOR"),
    "ROUGE_L": ("rouge", "ROUGE-L"),
    "CIDEr": ("cider", "CIDEr-D"),
    "SPICE": ("spice", "SPICE"),
}

# The terms that the makers of each data set state.
_FLICKR = (
    "for non-commercial research and education only. The photographs belong to the people who "
    "published them on Flickr"
)
_TERMS = {
    "flickr8k": _FLICKR,
    "flickr30k": _FLICKR,
    "coco": "captions CC BY 4.0; the photographs under the terms of Flickr and of the people who "
    "published them there",
    "shapes": "drawn by this project, under its MIT licence",
}
_UNKNOWN_TERMS = "not known to this project. Check them before you share this captioner"


def front_matter(captioner: Mapping[str, Any]) -> str:
    """Return the metadata of the card as YAML, between two lines of three dashes.

    Args:
        captioner: the content of captioner.json.
    """
    dataset = _dataset(captioner)
    licence = _LICENCES.get(dataset or "", _OTHER)
    lines = ["language: en", f"license: {licence}"]
    if licence == _OTHER:
        lines += [
            f"license_name: {_OTHER_NAMES.get(dataset or '', 'unknown')}",
            "license_link: LICENSE",
        ]
    lines += ["library_name: caption-pipeline", "pipeline_tag: image-to-text"]
    lines += ["tags:", "- image-captioning"]
    if dataset is not None:
        lines += ["datasets:", f"- {_identifier(dataset)}"]
    if captioner["scores"]:
        lines += _results(captioner, dataset)
    return "\n".join(["---", *lines, "---", "", ""])


def _results(captioner: Mapping[str, Any], dataset: str | None) -> Iterator[str]:
    """Yield the lines of the metrics, and of the scores as a model index."""
    scores = captioner["scores"]
    corpora = [of["corpus"].items() for of in scores.values()]
    names = [name for corpus in corpora for name, value in corpus if value is not None]
    yield "metrics:"
    yield from (f"- {name}" for name in dict.fromkeys(_metric(name)[0] for name in names))
    yield "model-index:"
    yield f"- name: {_quoted(captioner['name'])}"
    yield "  results:"
    for split, of in scores.items():
        yield "  - task:"
        yield "      type: image-to-text"
        yield "      name: Image captioning"
        yield "    dataset:"
        yield f"      type: {_identifier(dataset or 'unknown')}"
        yield f"      name: {_quoted(dataset or 'unknown')}"
        yield f"      split: {split}"
        yield "    metrics:"
        for name, value in of["corpus"].items():
            if value is not None:
                kind, shown = _metric(name)
                yield f"    - type: {kind}"
                yield f"      name: {_quoted(shown)}"
                yield f"      value: {value:.4f}"


def _dataset(captioner: Mapping[str, Any]) -> str | None:
    """Return the name of the training data; None if it was not recorded."""
    data = captioner["data"]
    return None if data is None else data["dataset"]


def _metric(name: str) -> tuple[str, str]:
    return _METRICS.get(name, (_identifier(name).lower(), name))


def _identifier(name: str) -> str:
    """Return a name as Hugging Face allows it for a data set: at most 96 letters, digits, _.-"""
    allowed = re.sub(r"(?:[^\w.]|\.\.)+", "-", name, flags=re.ASCII)[:96].strip("-.")
    return _quoted(allowed or "unknown")


def _quoted(text: str) -> str:
    """Return text as a quoted YAML string, which JSON is as well."""
    return json.dumps(text, ensure_ascii=False)


def licence(captioner: Mapping[str, Any]) -> str | None:
    """Return the text of LICENSE; None if the weights are under a licence that the card names.

    Args:
        captioner: the content of captioner.json.
    """
    dataset = _dataset(captioner)
    if dataset in _LICENCES:
        return None
    name = dataset or "data that its card does not name"
    return (
        f"The weights in this folder were trained on {name}.\n"
        f"The terms of {name}: {_TERMS.get(dataset or '', _UNKNOWN_TERMS)}.\n"
        "They apply to these weights too.\n"
    )


def markdown(captioner: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the model card as Markdown, with Hugging Face's metadata at the start.

    Args:
        captioner: the content of captioner.json.
        config: the run's config.json.
    """
    options = config["options"]
    model, xe = options["decoder"], options["xe"]
    lines = [
        f"# Model card: {captioner['name']}",
        "",
        "Writes one short English sentence about a photograph.",
        "",
        "## What it is",
        "",
        f"- A decoder with {captioner['parameters']:,} parameters ({model['model']}, "
        f"{model['cell']} cells, hidden size {model['hidden']}) and a vocabulary of "
        f"{captioner['words']:,} words, stored in {captioner['bits']} bits.",
        f"- It reads features of {captioner['features']['backbone'].replace('+', ', ')}, trained "
        "on ImageNet and not included in this folder. The fingerprint of these features is "
        f"`{captioner['fingerprint'][:16]}`.",
        *_reranking(captioner["reranks"]),
        "- Use it with `python -m decoder.caption --run THIS_FOLDER photo.jpg`.",
        "",
        "## Data",
        "",
        *_data(captioner["data"]),
        "",
        "## Training",
        "",
        f"- Cross-entropy for at most {xe['epochs']} epochs, with a learning rate of "
        f"{xe['learning_rate']} and label smoothing of {xe['label_smoothing']}.",
        _reinforce(options["rl"], captioner["weights"], config["reward"]),
        f"- Batches of {options['batch_size']} images with all their captions; seed "
        f"{options['seed']}. Every option is in config.json.",
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
        *_errors(captioner["claims"], captioner["scores"]),
        "- It describes what is frequent in its data. It misnames what is rare there, in the same "
        "tone.",
        "- It sees the picture at a low resolution, so it misses text, small objects and faces. It "
        "cannot read, recognise people or count beyond a few.",
        "- It also writes a sentence about drawings, charts, screenshots and documents. Such "
        "sentences mean nothing.",
        "",
        "## What not to use it for",
        "",
        "- Decisions that affect anyone's safety, health, rights or money.",
        "- Identifying or classifying people. Its words for sex and age are guesses from clothes "
        "and hair, and repeat the habits of the people who wrote the captions.",
        "- Alternative texts that nobody checks. Mark them as generated, and have a person correct "
        "them.",
        "- Uses that the terms of its data exclude.",
    ]
    return front_matter(captioner) + "\n".join(lines) + "\n"


def _reranking(reranks: bool) -> Iterable[str]:
    if reranks:
        yield (
            "- It reranks candidate captions by what people would write about the picture. That is "
            "predicted by a regression from pictures to the n-grams of the training captions, "
            "which is included in this folder."
        )


def _data(data: Mapping[str, Any] | None) -> Iterable[str]:
    if data is None:
        yield "- Not known: the training captions were missing when this captioner was exported."
        return
    dataset, images, captions = data["dataset"], data["images"], data["captions"]
    yield f"- Trained on {dataset}: {images:,} images with {captions:,} captions."
    yield f"- Terms of {dataset}: {_TERMS.get(dataset, _UNKNOWN_TERMS)}."
    yield "- This folder contains none of its images or captions."


def _reinforce(rl: Mapping[str, Any], weights: str, reward: str) -> str:
    if weights == "best_xe" or not rl["epochs"]:
        return "- No REINFORCE."
    return (
        f"- Then REINFORCE for at most {rl['epochs']} epochs, with a learning rate of "
        f"{rl['learning_rate']}. Reward: {reward}."
    )


def _scores(scores: Mapping[str, Any]) -> Iterable[str]:
    if not scores:
        yield "None: its captions had not been scored when this captioner was exported."
        return
    names = list(dict.fromkeys(name for of in scores.values() for name in of["corpus"]))
    level = next(iter(scores.values()))["confidence"]
    yield f"By the official COCO toolkit, with {level:.0%} bootstrap intervals in brackets."
    yield ""
    yield "| split | images | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 2) + "|"
    for split, of in scores.items():
        cells = [_with_interval(of, name) for name in names]
        yield f"| {split} | {of['images']:,} | " + " | ".join(cells) + " |"


def _with_interval(scores: Mapping[str, Any], name: str) -> str:
    value, (low, high) = scores["corpus"].get(name), scores["intervals"].get(name) or (None, None)
    if value is None:
        return ""
    return f"{value:.3f}" if low is None else f"{value:.3f} ({low:.3f}-{high:.3f})"


def _confidence(confidence: Mapping[str, Any] | None) -> Iterable[str]:
    if confidence is None:
        yield "None: there were no scored validation captions to calibrate it on."
        return
    yield (
        "The confidence of a caption is the estimated probability that its CIDEr is "
        f"{confidence['good']} or more, which we call good. It depends on the log-probability per "
        f"word and is calibrated on {confidence['images']:,} validation captions. It is not the "
        "probability that a caption is true."
    )
    yield ""
    yield "| confidence | validation captions | good | mean CIDEr |"
    yield "|---|---|---|---|"
    for row in confidence["table"]:
        yield (
            f"| {row['from']:.1f} to {row['to']:.1f} | {row['captions']} | {row['good']:.0%} | "
            f"{row['CIDEr']:.3f} |"
        )


def _errors(claims: Mapping[str, Any], scores: Mapping[str, Any]) -> Iterable[str]:
    if "val" in scores:
        figures = scores["val"]["diagnostics"]
        yield (
            f"- Its {scores['val']['images']:,} validation captions use "
            f"{figures['distinct_words']} different words. Of the captions, "
            f"{figures['distinct_captions']:.0%} are distinct and {figures['bad_endings']:.1%} end "
            "in the middle of a phrase."
        )
    if claims:
        yield (
            "- Its captions name things that no reference caption of the same validation picture "
            "names. Most of these are errors, but not all:"
        )
        yield ""
        yield "  | the caption names | captions | no reference does |"
        yield "  |---|---|---|"
        for kind, (claimed, confirmed) in claims.items():
            yield f"  | {kind} | {claimed} | {1 - confirmed / claimed:.0%} |"
        yield ""
