# Sourced by run_all.sh and tests/run.sh: `install [EXTRA]` creates .venv beside setup.cfg if there is none,
# and installs the project into it in place, again whenever setup.cfg changes.
# shellcheck shell=bash

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV_PYTHON=$PROJECT/.venv/bin/python

install() {
    local stamp=$PROJECT/.venv/.installed${1:-}
    if ! "$VENV_PYTHON" -m pip --version > /dev/null 2>&1; then
        local python
        python=${PYTHON:-$(command -v python3.11 || command -v python3)} || {
            echo "error: expected Python 3.11 or newer, found none; on Debian: apt-get install python3-venv" >&2
            return 2
        }
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "error: expected Python 3.11 or newer, found $("$python" --version); set PYTHON to a newer one" >&2
            return 2
        }
        "$python" -m venv "$PROJECT/.venv" || {
            rm -rf "$PROJECT/.venv"
            echo "error: $python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2
            return 2
        }
    fi
    if ! cmp -s "$PROJECT/setup.cfg" "$stamp"; then
        echo "installing into .venv (some minutes the first time; up to 7 GB on Linux, with CUDA)"
        "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check --editable "$PROJECT${1:+[$1]}"
        cp "$PROJECT/setup.cfg" "$stamp"
    fi
}
