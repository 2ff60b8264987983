#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: tests, then the table of speeds, each with a limit of time.
#
#     OUT=folder tests/benchmarks/gpu.sh [--clone PEER]
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python} out=${OUT:-gpu}
mkdir -p "$out"
rows=(--device cuda --models updown --cells lstm --phases xe rl beam --images 10 50 100 --json --profile)

nvidia-smi > "$out/card.txt"
timeout 180 "$python" -m pytest -q -rA tests/decoder/test_cuda.py > "$out/tests.txt" 2>&1
for precision in float32 tf32 bfloat16; do
    timeout 90 "$python" -m tests.benchmarks.training "${rows[@]}" --precision "$precision" \
        > "$out/$precision.json" 2> "$out/$precision.log"
done
if [[ ${1:-} == --clone ]]; then
    timeout 150 "$python" -m tests.benchmarks.peer --clone "$2" --device cuda --precision tf32 --rounds 3 \
        > "$out/peer.txt" 2>&1
fi
tail -n 3 "$out"/*.txt "$out"/*.log
