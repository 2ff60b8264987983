"""The model card of a captioner: what it is, its scores, its errors, and what not to use it for.

Every figure is taken from the run; none is written here.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from decoder.sharing import calibration
from decoder.sharing.front_matter import (
    front_matter,
    inherited_sources,
    scored_rows,
    sources_of,
)
from features.backbones import FILES, from_files
from pipeline.vocabulary import SPECIAL


def markdown(captioner: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the model card as Markdown, with Hugging Face's metadata at the start.

    Args:
        captioner: the content of captioner.json.
        config: the run's config.json.
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
        f"- A decoder with {captioner['parameters']:,} parameters ({model['model']}, "
        f"{model['cell']} cells, hidden size {model['hidden']}) and a vocabulary of "
        f"{captioner['words'] - len(SPECIAL):,} words, stored in {captioner['bits']} bits.",
        f"- It reads features of {_networks(captioner['features'])} not included in this folder. "
        f"The fingerprint of these features is `{captioner['fingerprint'][:16]}`.",
        *_reranking(captioner["reranks"]),
        f"- Use it with `python -m decoder.caption --run THIS_FOLDER {_pictures(captioner)}`.",
        "",
        "## Data",
        "",
        *_data(captioner, config),
        "",
        "## Training",
        "",
        _cross_entropy(options["xe"]),
        _reinforce(options["rl"], captioner["weights"], config["reward"]),
        f"- Batches of {options['batch_size']} images with all their captions; seed "
        f"{options['seed']}. Every option is in config.json.",
        "",
        "## Scores",
        "",
        *_scores(captioner),
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
        "- What it writes about drawings, charts, screenshots and documents means nothing. "
        + (
            "Most of these pictures are marked as unlike a photograph."
            if (captioner["confidence"] or {}).get("novelty") is not None
            else "It does not recognise them."
        ),
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
    return front_matter(captioner, config) + "\n".join(lines) + "\n"


def _networks(features: Mapping[str, Any]) -> str:
    """Return the CNNs of features, with their weights unless these are the published ones."""
    names = features["backbone"].split("+")
    if from_files(features):
        return f"{features['backbone'].removeprefix(FILES)}, files of another program,"
    if ":" not in features["backbone"] and "weights_file" not in features:
        return f"{', '.join(names)}, trained on ImageNet and"  # as torchvision publishes them, too
    return f"{', '.join(names)} with the weights {features['weights'].replace('+', ', ')},"


def _pictures(captioner: Mapping[str, Any]) -> str:
    return "--split test --work WORK" if from_files(captioner["features"]) else "photo.jpg"


def _reranking(reranks: bool) -> Iterable[str]:
    if reranks:
        yield (
            "- It reranks candidate captions by what people would write about the picture. That is "
            "predicted by a regression from pictures to the n-grams of the training captions, "
            "which is included in this folder."
        )


def _data(captioner: Mapping[str, Any], config: Mapping[str, Any]) -> Iterable[str]:
    sources = sources_of(captioner)
    if not sources:
        yield "- Not known: the training captions were missing when this captioner was exported."
    own = {(source["name"], source["terms"]) for source in sources}
    for source in sources:
        name, images, captions = source["name"], source["images"], source["captions"]
        if images:
            yield f"- Trained on {name}: {images:,} images with {captions:,} captions."
            yield f"- Terms of {name}: {source['terms']}."
    if init := config.get("init"):
        inherited = inherited_sources(config)
        names = ", ".join(source["name"] for source in inherited) or "unknown data"
        yield f"- Training started from the captioner {init['name']}, trained on {names}."
        for source in inherited:
            name, terms = source["name"], source["terms"]
            if (name, terms) not in own:
                yield f"- Terms of {name}, which apply here too: {terms}."
    yield "- This folder contains none of these images or captions."


def _cross_entropy(xe: Mapping[str, Any]) -> str:
    if xe["epochs"] == 0:
        return "- No cross-entropy."
    return (
        f"- Cross-entropy for at most {xe['epochs']} epochs, with a learning rate of "
        f"{xe['learning_rate']} and label smoothing of {xe['label_smoothing']}."
    )


def _reinforce(rl: Mapping[str, Any], weights: str, reward: str) -> str:
    if weights == "best_xe" or not rl["epochs"]:
        return "- No REINFORCE."
    return (
        f"- REINFORCE for at most {rl['epochs']} epochs, with a learning rate of "
        f"{rl['learning_rate']}. Reward: {reward}."
    )


def _scores(captioner: Mapping[str, Any]) -> Iterable[str]:
    scores = captioner["scores"]
    if not scores:
        yield "None: its captions had not been scored when this captioner was exported."
        return
    rows = list(scored_rows(captioner))
    names = list(dict.fromkeys(name for _, _, of in rows for name in of["corpus"]))
    level = next(iter(scores.values()))["confidence"]
    yield f"By the official COCO toolkit, with {level:.0%} bootstrap intervals in brackets."
    yield ""
    yield "| data | split | images | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 3) + "|"
    for dataset, split, of in rows:
        cells = [_with_interval(of, name) for name in names]
        yield f"| {dataset} | {split} | {of['images']:,} | " + " | ".join(cells) + " |"


def _with_interval(scores: Mapping[str, Any], name: str) -> str:
    value, (low, high) = scores["corpus"].get(name), scores["intervals"].get(name) or (None, None)
    if value is None:
        return ""
    return f"{value:.3f}" if low is None else f"{value:.3f} ({low:.3f}-{high:.3f})"


# What a signal of the confidence is, by its name in captioner.json.
_SIGNALS = {
    "log_probability": "the log-probability per word",
    "expectation": "the CIDEr that a regression on the picture expects of the caption",
    "consensus": "the agreement with the other candidates",
    "cosine": "the similarity of picture and caption in the joint embedding",
    "novelty": "how unlike the training pictures the picture is",
}


def _confidence(confidence: Mapping[str, Any] | None) -> Iterable[str]:
    if confidence is None:
        yield (
            "None: there were not enough scored validation captions, good ones and others, to "
            "calibrate it on."
        )
        return
    weights = confidence.get("weights", {"log_probability": None})
    yield (
        "The confidence of a caption is the estimated probability that its CIDEr is "
        f"{confidence['good']} or more, which we call good. It depends on "
        f"{'; '.join(_SIGNALS.get(name, name) for name in weights)}. It is calibrated on "
        f"{confidence['images']:,} validation captions. It is not the probability that a caption "
        "is true."
    )
    # Before 0.3 the table was that of the captions that it was fitted to.
    checks = confidence.get("checks", {"": {"table": confidence.get("table", [])}})
    for source, of in checks.items():
        yield ""
        if "error" in of:
            yield (
                f"Captions{f' of {source}' if source else ''} that it was not fitted to, in ten "
                f"parts: calibration error {of['error']:.3f}; perfect calibration would have "
                f"{of['perfect']:.3f} at this number of captions."
            )
            yield ""
        yield "| confidence | validation captions | good | mean CIDEr |"
        yield "|---|---|---|---|"
        for row in of["table"]:
            yield (
                f"| {row['from']:.1f} to {row['to']:.1f} | {row['captions']} | {row['good']:.0%} | "
                f"{row['CIDEr']:.3f} |"
            )
    if confidence.get("novelty") is not None:
        yield ""
        yield (
            "A picture that is too unlike the training pictures is marked as unlike a photograph, "
            "and its caption as unsure. The limit is set so that this happens to about "
            f"{calibration.UNFAMILIAR:.1%} of the validation pictures of a data set, or to fewer."
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
