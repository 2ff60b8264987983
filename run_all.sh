#!/usr/bin/env bash
# From pictures to scored captions and a report:
#
#     ./run_all.sh [DATASET] [--root DIR] [--work WORK]
#
# DATASET is shapes (built in, the default), flickr8k, flickr30k, coco, karpathy or folder; DIR is where
# its files are. Everything is written to WORK, by default work/DATASET. Run again, it skips what is
# done and goes on where it was stopped. What follows "--" goes to decoder.train.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/pipeline/install.sh"

dataset=shapes root=() work=
if [[ $# -gt 0 && $1 != -* ]]; then dataset=$1; shift; fi
while [[ $# -gt 0 ]]; do
    case $1 in
        --root) root=(--root "${2:?--root needs a folder}"); shift 2 ;;
        --work) work=${2:?--work needs a folder}; shift 2 ;;
        --) shift; break ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
        *) echo "error: unknown option $1; try --help" >&2; exit 2 ;;
    esac
done
work=${work:-work/$dataset} run=$dataset

# Small drawn scenes need less of everything; the defaults are for photographs.
case $dataset in
    shapes) backbone=efficientnet_lite0 settings=(--hidden 256 --attention 256 --xe.epochs 8 --rl.epochs 4) ;;
    *) backbone=efficientnet_lite2 settings=() ;;
esac

install
stage() { printf '\n== %s\n' "$1"; "$VENV_PYTHON" -m "$@"; }

stage pipeline.prepare --dataset "$dataset" "${root[@]}" --work "$work"
stage pipeline.extract --work "$work" --backbone "$backbone"
stage decoder.train --work "$work" --run "$run" --resume --force "${settings[@]}" "$@"
split=$(grep -Eq '"split": ?"test"' "$work/captions.json" && echo test || echo val)
stage decoder.caption --run "$work/runs/$run" --split "$split"
stage decoder.caption --run "$work/runs/$run" --split "$split" --weights best_xe
stage evaluation.score --captions "$work/captions.json" --results "$work/runs/$run/captions_$split.json" --split "$split"
stage evaluation.report --run "$work/runs/$run" --split "$split"
