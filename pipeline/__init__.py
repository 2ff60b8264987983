"""From somebody's data set to a work directory: formats, caption table, vocabulary, stages."""

import features  # noqa: F401 - before torch, see there
