"""Score captions with the toolkit's own wrappers: JSON in, JSON out.

A program of its own, because the wrappers leave pipes and processes open, and print. Reads
{"references": {id: [text]}, "candidates": {id: text}} from the standard input and writes
{"tokens", "corpus", "per_image"} as the last line of the standard output.
"""

import json
import sys

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer


def main() -> None:
    given = json.load(sys.stdin)
    tokenize = PTBTokenizer().tokenize
    references = tokenize(
        {i: [{"caption": text} for text in texts] for i, texts in given["references"].items()}
    )
    candidates = tokenize({i: [{"caption": text}] for i, text in given["candidates"].items()})
    corpus, per_image = {}, {}
    for name, scorer in {"METEOR": Meteor(), "ROUGE_L": Rouge(), "CIDEr": Cider()}.items():
        corpus[name], values = scorer.compute_score(references, candidates)
        per_image[name] = dict(zip(references, map(float, values), strict=True))
    values, segments = Bleu(4).compute_score(references, candidates)
    for n in range(4):
        corpus[f"Bleu_{n + 1}"] = values[n]
        per_image[f"Bleu_{n + 1}"] = dict(zip(references, segments[n], strict=True))
    print(json.dumps({"tokens": candidates, "corpus": corpus, "per_image": per_image}))


if __name__ == "__main__":
    main()
