"""Named settings for data sets, from presets.toml: the options that --preset sets.

`python -m pipeline.presets NAME STAGE` prints the options of a stage, such as "extract".
"""

import argparse
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

from features.errors import unknown_name


@cache
def _presets() -> dict[str, dict[str, Any]]:
    """Return the options of each stage, by preset."""
    return tomllib.loads(resources.files("pipeline").joinpath("presets.toml").read_text("utf-8"))


def names() -> list[str]:
    """Return the names of the presets."""
    return list(_presets())


def check_name(name: str | None) -> None:
    """Raise UserError if there is no preset `name`."""
    if name is not None and name not in names():
        raise unknown_name("preset", name, names())


def arguments(name: str, stage: str) -> list[str]:
    """Return the command line options that a preset sets for a stage; none if it has none."""
    return list(_options(_presets().get(name, {}).get(stage, {})))


def _options(values: Mapping[str, Any], prefix: str = "--") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _options(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}" if value is True else f"{prefix}{name}={value}"


def with_preset(stage: str, argv: list[str]) -> list[str]:
    """Put the options of the preset that --preset names before those in `argv`.

    Later options override earlier ones, so what is typed counts.

    An unknown name is left for the options of the stage to refuse, with `check_name`.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")  # the options of the stage ask for the name
    name = parser.parse_known_args(argv)[0].preset
    return argv if name is None else [*arguments(name, stage), *argv]


if __name__ == "__main__":
    print(*arguments(*sys.argv[1:]))
