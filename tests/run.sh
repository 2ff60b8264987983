#!/usr/bin/env bash
# Installs into .venv and runs every check: format, lint, types, tests. Arguments go to pytest.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# The processes that tests start read the bytecode that earlier ones wrote.
unset PYTHONDONTWRITEBYTECODE
source pipeline/install.sh
install fast train report test

.venv/bin/ruff format --config tests/ruff.toml --check .
.venv/bin/ruff check --config tests/ruff.toml .
# A minute of one core, which the tests do not always need; then the types that users of the Python API see.
{ .venv/bin/mypy && .venv/bin/mypy tests/decoder/typed_use.py; } &
types=$! status=0
# One thread in each process. Each process collects the tests again, so there are at most four.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@" || status=$?
wait "$types" || status=$?
exit $status
