# Sourced by run_all.sh: `preset NAME` sets the options that suit a data set, in the arrays `prepare`,
# `extract` and `train`, one for each stage, and `best`, with which decoder.caption writes the best that
# the run can. An option that is not here has the stage's default.
# shellcheck shell=bash
# shellcheck disable=SC2034  # run_all.sh reads the arrays

PRESETS='shapes, flickr8k, flickr30k, coco or coco_att2in'

preset() {
    prepare=() extract=() train=() best=()
    case $1 in
        # Small drawn scenes need less of everything.
        shapes)
            extract=(--backbone efficientnet_lite0)
            train=(--initial random --hidden 256 --attention 256 --batch-size 10 --dropout 0.5)
            train+=(--xe.epochs 8 --xe.learning-rate 1.5e-3 --xe.label-smoothing 0.1)
            train+=(--rl.epochs 3 --rl.learning-rate 1e-4 --rl.temperature 0.5)
            ;;
        # Three small CNNs side by side, each of seven views of a picture: 6 GB. decoder/EXPERIMENTS.md
        # has what led here.
        flickr8k)
            extract=(--backbone efficientnet_lite0+efficientnet_lite1+efficientnet_lite2 --views 7)
            train=(--hidden 320 --dropout 0.5 --xe.epochs 9 --xe.learning-rate 2e-3 --rl.epochs 9)
            best=(--rerank --beam 50)
            ;;
        # The defaults: one CNN, one view, a quick start with your own photographs.
        karpathy | folder) ;;
        # Five times as many pictures, and not tuned: no figures were measured on it.
        flickr30k) ;;
        # What Up-Down (Anderson et al. 2018, arXiv 1707.07998) and Att2in (Rennie et al. 2017,
        # arXiv 1612.00563; CIDEr 1.140 with ResNet-101) are trained with on COCO. The values are those of
        # R. Luo's ruotianluo/ImageCaptioning.pytorch, configs/updown.yml, updown_nsc.yml, a2i2.yml and
        # a2i2_nsc.yml over captioning/utils/opts.py, in which REINFORCE has the mean of the other samples
        # as its baseline (Luo 2020, arXiv 2003.09971).
        # Otherwise here: the whole picture at 224 x 224 gives 7 x 7 regions, where the papers have more of
        # a larger picture; the rate falls linearly to 0, where theirs falls by 0.8 every three epochs and
        # stays in REINFORCE; scheduled sampling rises with every step, not every five epochs; the norm of
        # the gradient is clipped, not each value; averaged weights are validated. COCO was never trained
        # on with this project, so no score is promised.
        coco | coco_att2in)
            prepare=(--min-count 6 --max-length 16)
            extract=(--backbone resnet101 --grid 7)
            train=(--batch-size 10 --dropout 0.5 --attention 512)
            train+=(--xe.epochs 30 --xe.learning-rate 5e-4 --xe.scheduled-sampling 0.25)
            train+=(--xe.label-smoothing 0 --warmup 0 --initial random)
            train+=(--rl.epochs 20 --rl.learning-rate 5e-5 --rl.samples 5 --rl.baseline mean)
            train+=(--rl.temperature 1)
            case $1 in
                coco) train+=(--model updown --hidden 1000) ;;
                coco_att2in) train+=(--model att2in --hidden 512) ;;
            esac
            ;;
        *) return 1 ;;
    esac
}
