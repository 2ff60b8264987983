"""From a data set to a work directory: readers, caption table, vocabulary and stages."""

import features  # noqa: F401 - before torch, see features/__init__.py
