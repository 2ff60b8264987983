"""The metadata of a model card as Hugging Face reads it, and the terms of the data.

See https://huggingface.co/docs/hub/model-cards.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.terms import terms_of

# The licence of the weights by data set, as Hugging Face spells it. A licence that is not in its
# list is "other", with a name and the file LICENSE.
_OTHER = "other"
_LICENCES = {"coco": "cc-by-4.0", "shapes": "mit"}
_NON_COMMERCIAL = {"flickr8k", "flickr30k"}
# Stands for data that were not recorded, whose terms nobody knows.
_UNRECORDED = {"name": "data that its card does not name", "dataset": "", "terms": terms_of("")}
# Hugging Face's names of the metrics, and how the card calls them.
_METRICS = {
    **{f"Bleu_{n}": ("bleu", f"BLEU-{n}") for n in range(1, 5)},
    "METEOR": ("meteor", "METEOR"),
    "ROUGE_L": ("rouge", "ROUGE-L"),
    "CIDEr": ("cider", "CIDEr-D"),
    "SPICE": ("spice", "SPICE"),
}


def sources_of(captioner: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the data sets that a captioner was trained on.

    Args:
        captioner: the content of captioner.json.

    Returns:
        For each, its "name", the "dataset" as which it was read, the numbers of "images" and
        "captions", and its "terms" as the end of a sentence.
    """
    data = captioner["data"]
    if data is None:
        return []
    sources = data.get("sources") or [{"name": data["dataset"], **data}]
    return [{**of, "terms": terms_of(of["dataset"], of.get("terms"))} for of in sources]


def inherited_sources(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the data sets of the captioner that training started from (--init), if any.

    Args:
        config: the run's config.json.

    Returns:
        For each, its "name", "dataset" and "terms" as in `sources_of`.
    """
    init = config.get("init") or {"data": []}
    return [
        {
            "name": of.get("name", of["dataset"]),
            "dataset": of["dataset"],
            "terms": terms_of(of["dataset"], of.get("terms")),
        }
        for of in init["data"]
    ]


def _all_sources(captioner: Mapping[str, Any], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all data whose terms apply to the weights, with `_UNRECORDED` for what is missing."""
    own = sources_of(captioner) or [_UNRECORDED]
    inherited = inherited_sources(config) or ([_UNRECORDED] if config.get("init") else [])
    named = {(of["name"], of["terms"]) for of in own}
    return own + [of for of in inherited if (of["name"], of["terms"]) not in named]


def _licence(sources: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the licence of weights trained on these data sets, and its name if it is "other"."""
    datasets = {of["dataset"] for of in sources}
    each = {_LICENCES.get(dataset, _OTHER) for dataset in datasets}
    if len(each) == 1 and _OTHER not in each:
        return each.pop(), ""
    known = datasets & _NON_COMMERCIAL
    return _OTHER, "non-commercial-research-and-education" if known else "unknown"


def front_matter(captioner: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the metadata of the card as YAML, between two lines of three dashes.

    Args:
        captioner: the content of captioner.json.
        config: the run's config.json.
    """
    sources = _all_sources(captioner, config)
    licence, name = _licence(sources)
    lines = ["language: en", f"license: {licence}"]
    if licence == _OTHER:
        lines += [f"license_name: {name}", "license_link: LICENSE"]
    lines += ["library_name: caption-pipeline", "pipeline_tag: image-to-text"]
    lines += ["tags:", "- image-captioning"]
    names = [_identifier(of["name"]) for of in sources if of is not _UNRECORDED]
    if names:
        lines += ["datasets:", *(f"- {name}" for name in dict.fromkeys(names))]
    if captioner["scores"]:
        lines += _results(captioner)
    return "\n".join(["---", *lines, "---", "", ""])


def _results(captioner: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the metrics, and of the scores as a model index."""
    rows = list(scored_rows(captioner))
    corpora = [of["corpus"].items() for _, _, of in rows]
    names = [name for corpus in corpora for name, value in corpus if value is not None]
    yield "metrics:"
    yield from (f"- {name}" for name in dict.fromkeys(_metric(name)[0] for name in names))
    yield "model-index:"
    yield f"- name: {_quoted(captioner['name'])}"
    yield "  results:"
    for dataset, split, of in rows:
        yield "  - task:"
        yield "      type: image-to-text"
        yield "      name: Image captioning"
        yield "    dataset:"
        yield f"      type: {_identifier(dataset)}"
        yield f"      name: {_quoted(dataset)}"
        yield f"      split: {split}"
        yield "    metrics:"
        for name, value in of["corpus"].items():
            if value is not None:
                kind, shown = _metric(name)
                yield f"    - type: {kind}"
                yield f"      name: {_quoted(shown)}"
                yield f"      value: {value:.4f}"


def scored_rows(captioner: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the data set, split and scores of all images of a split, then of each source."""
    sources = sources_of(captioner)
    for split, of in captioner["scores"].items():
        yield " and ".join(source["name"] for source in sources) or "unknown", split, of
        for name, own in of.get("sources", {}).items():
            yield name, split, own


def _metric(name: str) -> tuple[str, str]:
    return _METRICS.get(name, (_identifier(name).lower(), name))


def _identifier(name: str) -> str:
    """Return a name as Hugging Face allows it for a data set: at most 96 letters, digits, _.-"""
    allowed = re.sub(r"(?:[^\w.]|\.\.)+", "-", name, flags=re.ASCII)[:96].strip("-.")
    return _quoted(allowed or "unknown")


def _quoted(text: str) -> str:
    """Return text as a quoted YAML string, which JSON is as well."""
    return json.dumps(text, ensure_ascii=False)


def licence(captioner: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """Return the text of LICENSE; None if the weights are under a licence that the card names.

    Args:
        captioner: the content of captioner.json.
        config: the run's config.json.
    """
    sources = _all_sources(captioner, config)
    if _licence(sources)[0] != _OTHER:
        return None
    names = " and ".join(dict.fromkeys(of["name"] for of in sources))
    terms = "".join(f"The terms of {of['name']}: {of['terms']}.\n" for of in sources)
    return (
        f"The weights in this folder were trained on {names}.\n"
        f"{terms}These terms apply to the weights too.\n"
    )
