#!/usr/bin/env bash
# Run every stage, from pictures to scored captions and a report:
#
#     ./run_all.sh [DATASET] [--root DIR] [--captions FILE] [--columns COLUMNS] [--download]
#                  [--skip-missing] [--name NAME] [--terms TEXT] [--also OPTIONS] [--images N]
#                  [--work WORK] [--preset NAME] [--backbone NAME] [--grid N] [--views N] [--dtype TYPE]
#                  [--min-count N] [--max-length N] [-- TRAINING OPTIONS]
#     ./run_all.sh install        # only install what captions pictures, into .venv
#
# DATASET is shapes (built in, the default), flickr8k, flickr30k, coco, karpathy or folder. DIR is the data
# set's folder, FILE its captions (karpathy, folder), COLUMNS the columns of a table with unusual names
# (image=NAME,caption=NAME), OPTIONS those of a further data set (--dataset NAME --root DIR) in quotes, and
# --images the number of shapes scenes to draw.
# Everything is written to WORK, by default work/DATASET. The settings come from the data set's preset in
# pipeline/presets.toml, or from preset NAME (such as coco_att2in). Options given here override them, and so
# do the options after "--", which go to decoder.train. Run it again: finished stages are skipped, and a
# stopped one continues.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/pipeline/install.sh"

if [[ ${1:-} == install ]]; then
    [[ $# -eq 1 ]] || { echo "error: install takes no options, found $2" >&2; exit 2; }
    install fast
    echo "installed in $PROJECT/.venv; now try: .venv/bin/caption photo.jpg"
    exit
fi

# Arrays are never empty: the bash of macOS takes an empty one for an unset variable.
dataset=shapes prepare=(pipeline.prepare) extract=(pipeline.extract) work= preset=
if [[ $# -gt 0 && $1 != -* ]]; then dataset=$1; shift; fi
while [[ $# -gt 0 ]]; do
    if [[ $1 == --*=* ]]; then option=$1; shift; set -- "${option%%=*}" "${option#*=}" "$@"; fi
    case $1 in
        --download | --skip-missing) prepare+=("$1"); shift ;;
        --root | --captions | --columns | --name | --terms | --also | --images | --min-count | --max-length | \
            --work | --preset | --backbone | --grid | --views | --dtype)
            [[ -n ${2:-} ]] || { echo "error: $1 needs a value" >&2; exit 2; }
            case $1 in
                --work) work=$2 ;;
                --preset) preset=$2 ;;
                --backbone | --grid | --views | --dtype) extract+=("$1" "$2") ;;
                *) prepare+=("$1" "$2") ;;
            esac
            shift 2 ;;
        --) shift; break ;;
        -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
        *) echo "error: unknown option $1; try --help" >&2; exit 2 ;;
    esac
done
if [[ $dataset == shards ]]; then
    echo "error: run_all.sh does not read shards: run the stages by hand, see features/README.md#many-stores-as-one" >&2
    exit 2
fi
work=${work:-work/$dataset} run=${work:-work/$dataset}/runs/$dataset preset=(--preset "${preset:-$dataset}")

install fast train report
stage() { printf '\n== %s\n' "$1"; "$VENV_PYTHON" -m "$@"; }

stage "${prepare[@]}" --dataset "$dataset" "${preset[@]}" --work "$work"
stage "${extract[@]}" --work "$work" "${preset[@]}"
stage decoder.train --work "$work" --run "$dataset" --resume --force "${preset[@]}" "$@"
best=$("$VENV_PYTHON" -m pipeline.presets "${preset[1]}" caption)  # options of the best captions, if any
split=$(grep -Eq '"split": ?"test"' "$work/captions.json" && echo test || echo val)
caption_and_score() {
    local out=$run/captions_$split$1.json
    shift
    stage decoder.caption --run "$run" --split "$split" --out "$out" "$@"
    stage evaluation.score --captions "$work/captions.json" --results "$out" --partial
}
reranked=(_reranked "${preset[@]}")
if [[ -f $run/best_xe.safetensors ]] && grep -q '"phase": "rl"' "$run/metrics.jsonl"; then
    caption_and_score _xe --weights best_xe  # before REINFORCE, for comparison
    reranked+=(--weights both)
fi
caption_and_score ""
[[ -z $best ]] || caption_and_score "${reranked[@]}"
stage evaluation.report --run "$run" --split "$split"
