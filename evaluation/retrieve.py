"""Measure how well a search ranks a split: `python -m evaluation.retrieve`."""

import sys
from collections.abc import Sequence
from typing import Any

from evaluation.options import RetrieveOptions
from evaluation.outputs import check_out, retrieval_path
from evaluation.recall import CUTOFFS, PASSES, read, summarize
from features.files import write_json
from pipeline.command import run

Recalls = dict[str, tuple[float | None, ...]]

# R@1, 5, 10 on the 1,000 test images of Flickr8k: Vinyals et al. 2015 (NIC, arXiv 1411.4555) and
# Mao et al. 2014 (m-RNN, arXiv 1410.1090).
PUBLISHED: dict[str, Recalls] = {
    "NIC": {"image to text": (0.20, None, 0.61), "text to image": (0.19, None, 0.64)},
    "m-RNN": {"image to text": (0.145, 0.372, 0.485), "text to image": (0.115, 0.310, 0.424)},
}


def retrieve(options: RetrieveOptions) -> None:
    """Report recall and median rank of a split that decoder.search ranked, in both directions."""
    out = options.out or retrieval_path(options.ranking)
    check_out(out, {"ranking": options.ranking}, options.out is not None, "image to text")
    images, captions, candidates, ranks = read(options.ranking)
    record: dict[str, Any] = {"ranking": str(options.ranking)}
    record |= {"images": images, "captions": captions, "candidates": candidates}
    for (direction, stage), of_pass in ranks.items():
        summary = summarize(of_pass, images, options.bootstrap, options.seed)
        record.setdefault(direction, {})[stage] = summary
    write_json(out, record)
    print(_as_table(record))
    print(f"written to {out}")


def _as_table(record: dict[str, Any]) -> str:
    lines = [
        f"{record['images']} images, {record['captions']} captions; the decoder ranks the best "
        f"{record['candidates']} candidates"
    ]
    head = "".join(f"{f'R@{cutoff}':>7}" for cutoff in CUTOFFS)
    for direction in ("text to image", "image to text"):
        lines.append(f"{direction:36}{head}   median rank")
        for stage, name in PASSES.items():
            summary = record[direction][stage]
            recall = "".join(f"{100 * summary[f'R@{cutoff}']:7.1f}" for cutoff in CUTOFFS)
            rank = summary["median_rank"]
            shown = f"{rank:g}" if rank is not None else f"over {record['candidates']}"
            if (bounds := summary.get("R@10 interval")) is not None:
                low, high = (100 * bound for bound in bounds)
                shown += f"   (R@10 {low:.1f} to {high:.1f})"
            lines.append(f"  {name:34}{recall}   {shown}")
        for name, published in PUBLISHED.items():
            recall = "".join(
                f"{'-' if share is None else f'{100 * share:.1f}':>7}"
                for share in published[direction]
            )
            lines.append(f"  {f'{name}, Flickr8k test':34}{recall}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run(retrieve, RetrieveOptions, "evaluation.retrieve", argv)


if __name__ == "__main__":
    sys.exit(main())
