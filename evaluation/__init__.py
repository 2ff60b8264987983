"""From captions to scores: the official toolkit, confidence intervals, tables and the report."""

import sys
from pathlib import Path

# The features of this project, not a features.py of the current folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import features  # noqa: F401 - before torch, see there

del sys.path[0]
