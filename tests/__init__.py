import features  # noqa: F401 - before torch, see features/__init__.py
