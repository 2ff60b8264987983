#!/usr/bin/env bash
# Installs into .venv and runs every check: format, lint, types, tests. Arguments go to pytest.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source pipeline/install.sh
install fast train report test

.venv/bin/ruff format --config tests/ruff.toml --check .
.venv/bin/ruff check --config tests/ruff.toml .
.venv/bin/mypy
# One thread in each process. Every process makes the shared fixtures again, so there are at most four.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@"
