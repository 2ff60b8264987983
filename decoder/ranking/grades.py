"""Scores in words, by how often results with such scores are right on validation captions."""

from typing import NamedTuple

GOOD, FAIR, WEAK = "good", "fair", "weak"


class Grades(NamedTuple):
    """From which score on a result is good or fair; the others are weak."""

    good: float
    fair: float
    precision: dict[str, float]
    """The share of right results of each grade."""

    def of(self, score: float) -> str:
        """Return the grade of a score."""
        return GOOD if score >= self.good else FAIR if score >= self.fair else WEAK
