import features  # noqa: F401 - before torch, see there
