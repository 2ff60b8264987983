# Sourced by run_all.sh, tests/run.sh and .ci/run: `install [EXTRA ...]` creates .venv beside setup.cfg if
# there is none, and installs the project with these extras into it, in place, again whenever setup.cfg changes or
# the project moves.
# Without an NVIDIA GPU, PyTorch comes from TORCH_INDEX, an index of its builds for the CPU; if that cannot be
# reached or is set to nothing, pip takes its default, which is much larger on Linux. Modules are compiled when
# they are first imported: compiling all of them takes pip half a minute, those of captioning two seconds.
# shellcheck shell=bash

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV_PYTHON=$PROJECT/.venv/bin/python
TORCH_INDEX=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}

install() {
    make_environment || return
    local extra missing=()
    for extra in base "$@"; do
        installed_state | cmp -s - "$PROJECT/.venv/.installed-$extra" || missing+=("$extra")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    install_cpu_torch "$@" || return
    local extras
    extras=$(IFS=,; echo "$*")
    "$VENV_PYTHON" -m pip install --quiet --no-compile --disable-pip-version-check --editable "$PROJECT${extras:+[$extras]}" ||
        return
    for extra in base "$@"; do installed_state > "$PROJECT/.venv/.installed-$extra"; done
}

# What an installation depends on: a project that was moved is not found where it was.
installed_state() {
    echo "$PROJECT"
    cat "$PROJECT/setup.cfg"
}

make_environment() {
    if "$VENV_PYTHON" -m pip --version > /dev/null 2>&1; then return; fi
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
}

# Say what will be installed, with its size, and install PyTorch's build for the CPU where that is enough.
install_cpu_torch() {
    local packages=(torch) size="1.3 GB" larger=""
    [[ " $* " != *" train "* ]] || { packages+=(torchvision) size="2 GB"; }
    if are_installed "${packages[@]}"; then
        echo "updating the installation in .venv"
    elif [[ $(uname) != Linux || -z $TORCH_INDEX ]] || nvidia-smi > /dev/null 2>&1; then
        [[ $(uname) != Linux ]] || larger=", and 4.5 GB for NVIDIA GPUs"
        echo "installing into .venv: about $size$larger; some minutes the first time"
    elif can_open "$TORCH_INDEX/torch/"; then
        echo "installing into .venv: about $size, with PyTorch for the CPU; some minutes the first time"
        "$VENV_PYTHON" -m pip install --quiet --no-compile --disable-pip-version-check --index-url "$TORCH_INDEX" "${packages[@]}"
    else
        larger=", and 4.5 GB for NVIDIA GPUs, since PyTorch's index of CPU builds cannot be reached"
        echo "installing into .venv: about $size$larger; some minutes the first time"
    fi
}

are_installed() {
    local package
    for package in "$@"; do
        "$VENV_PYTHON" -m pip show --quiet --disable-pip-version-check "$package" > /dev/null 2>&1 || return
    done
}

can_open() {
    "$VENV_PYTHON" -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=10)' "$1" > /dev/null 2>&1
}
