#!/usr/bin/env bash
# From pictures to scored captions and a report:
#
#     ./run_all.sh [DATASET] [--root DIR] [--captions FILE] [--download] [--images N] [--work WORK]
#                  [-- TRAINING OPTIONS]
#
# DATASET is shapes (built in, the default), flickr8k, flickr30k, coco, karpathy or folder; DIR is where
# its files are, FILE its captions (karpathy, folder), N how many scenes of shapes to draw. Everything
# is written to WORK, by default work/DATASET. What follows "--" goes to decoder.train. Run again, it
# skips what is done and goes on where it was stopped.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/pipeline/install.sh"

dataset=shapes source=() work=
if [[ $# -gt 0 && $1 != -* ]]; then dataset=$1; shift; fi
while [[ $# -gt 0 ]]; do
    case $1 in
        --download) source+=("$1"); shift ;;
        --root | --captions | --images | --work)
            [[ $# -gt 1 ]] || { echo "error: $1 needs a value" >&2; exit 2; }
            if [[ $1 = --work ]]; then work=$2; else source+=("$1" "$2"); fi
            shift 2 ;;
        --) shift; break ;;
        -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
        *) echo "error: unknown option $1; try --help" >&2; exit 2 ;;
    esac
done
work=${work:-work/$dataset} run=${work:-work/$dataset}/runs/$dataset

# Small drawn scenes need less of everything; the defaults are for photographs.
case $dataset in
    shapes) backbone=efficientnet_lite0 settings=(--hidden 256 --attention 256 --xe.epochs 8) ;;
    *) backbone=efficientnet_lite2 settings=() ;;
esac

install
stage() { printf '\n== %s\n' "$1"; "$VENV_PYTHON" -m "$@"; }

stage pipeline.prepare --dataset "$dataset" "${source[@]}" --work "$work"
stage pipeline.extract --work "$work" --backbone "$backbone"
stage decoder.train --work "$work" --run "$dataset" --resume --force "${settings[@]}" "$@"
split=$(grep -Eq '"split": ?"test"' "$work/captions.json" && echo test || echo val)
caption_and_score() {
    stage decoder.caption --run "$run" --split "$split" --weights "$1"
    stage evaluation.score --captions "$work/captions.json" --results "$run/captions_$split$2.json" --partial
}
if [[ -f $run/best_xe.safetensors ]] && grep -q '"phase": "rl"' "$run/metrics.jsonl"; then
    caption_and_score best_xe _xe  # before REINFORCE, to compare
fi
caption_and_score best ""
stage evaluation.report --run "$run" --split "$split"
