#!/usr/bin/env bash
# Measures the first five sections of README.md in one run: 45 minutes on two idle cores.
# Time to quality takes another hour and a half: tests/benchmarks/speedrun.py.
#   tests/benchmarks/speed.sh PEER WORK RUN
# PEER: a clone of ImageCaptioning.pytorch (see tests/benchmarks/peer.py). WORK: a work directory with the features of Flickr8k.
# RUN: a run of Up-Down with LSTM cells, in its work directory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

peer=$(realpath "$1") work=$(realpath "$2") run=$(realpath "$3")

benchmark() {
    printf '\n$ %s -m tests.benchmarks.%s\n' "${OMP_NUM_THREADS:+OMP_NUM_THREADS=$OMP_NUM_THREADS }python" "$*"
    .venv/bin/python -W ignore -m "tests.benchmarks.$1" "${@:2}"
}

grep -m 1 'model name' /proc/cpuinfo
benchmark training --rounds 2
OMP_NUM_THREADS=1 benchmark training --models updown --cells lstm --phases xe rl beam --rounds 3 --profile
benchmark training --phases start --rounds 3 --work "$work"
benchmark growth
benchmark company
OMP_NUM_THREADS=1 benchmark peer --clone "$peer" --rounds 3
OMP_NUM_THREADS=1 benchmark peer --clone "$peer" --rounds 3 --run "$run"
benchmark processes --images 50 --rounds 1
