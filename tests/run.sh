#!/usr/bin/env bash
# Sets up .venv and runs everything that must hold: format, lint, types, tests. Arguments go to pytest.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source pipeline/install.sh
install test

.venv/bin/ruff format --config tests/ruff.toml --check .
.venv/bin/ruff check --config tests/ruff.toml .
.venv/bin/mypy
# A process for each core, so one thread in each; more processes make more of what tests share anew.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@"
