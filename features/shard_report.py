"""What a command prints of the shards that it has made."""

import sys
from collections import Counter
from collections.abc import Sequence

from features.errors import counted
from features.folders import passed_over_note
from features.shard_outputs import Outcome

_NUMBERS = ("pictures", "captions", "failed", "passing")


def report_shards(what: str, outcomes: Sequence[Outcome]) -> int:
    """Print what became of shards, and name the broken ones on standard error.

    Args:
        what: the name of the command, such as "extract".
        outcomes: of the shards. The facts of those that were made have the numbers of "pictures",
            those that "failed" and those of these whose reasons are "passing", perhaps that of
            "captions", and what was "passed_over" (see `features.folders.passed_over_note`).

    Returns:
        The exit status: 1 if a shard is broken, else 0.
    """
    made = [outcome.facts for outcome in outcomes if outcome.state == "made"]
    broken = [outcome for outcome in outcomes if outcome.state == "broken"]
    for outcome in broken:
        print(f"broken shard: {outcome.shard}: {outcome.reason}", file=sys.stderr)
    total = Counter[str]()
    passed_over = Counter[str]()
    for facts in made:
        total.update({name: facts.get(name, 0) for name in _NUMBERS})
        passed_over.update(facts["passed_over"])
    numbers = [f"{counted(len(made), 'shard')} made", counted(total["pictures"], "picture")]
    if any("captions" in facts for facts in made):
        numbers.append(counted(total["captions"], "caption"))
    parts = [", ".join(numbers)]
    if total["failed"]:
        parts.append(f"{counted(total['failed'], 'picture')} could not be read")
    if broken:
        parts.append(f"{counted(len(broken), 'broken shard')}, listed above")
    print(f"{what}: {'; '.join(parts)}")
    if total["passing"]:
        print(
            f"{what}: {counted(total['passing'], 'picture')} failed for reasons that may pass; run "
            "again with --retry"
        )
    if passed_over:
        print(f"{what}: passed over in these shards: {passed_over_note(passed_over)}")
    return 1 if broken else 0
