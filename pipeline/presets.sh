# Sourced by run_all.sh: `preset NAME` sets the options for a data set in four arrays: `prepare`,
# `extract` and `train` for the stages, and `best` for the best captions that decoder.caption can write.
# All other options keep their defaults.
# shellcheck shell=bash
# shellcheck disable=SC2034  # run_all.sh reads the arrays

PRESETS='shapes, flickr8k, flickr30k, coco, coco_att2in or transfer'

preset() {
    prepare=() extract=() train=() best=()
    case $1 in
        # Small drawn scenes need a smaller CNN, a smaller decoder and a shorter training.
        shapes)
            extract=(--backbone efficientnet_lite0)
            train=(--initial random --hidden 256 --attention 256 --batch-size 10 --dropout 0.5)
            train+=(--xe.epochs 8 --xe.learning-rate 1.5e-3 --xe.label-smoothing 0.1)
            train+=(--rl.epochs 3 --rl.learning-rate 1e-4 --rl.temperature 0.5)
            ;;
        # Features of three small CNNs, concatenated, for seven views of each picture: 6 GB. The
        # experiments behind this are in decoder/EXPERIMENTS.md.
        flickr8k)
            extract=(--backbone efficientnet_lite0+efficientnet_lite1+efficientnet_lite2 --views 7)
            train=(--hidden 320 --dropout 0.5 --xe.epochs 9 --xe.learning-rate 2e-3 --rl.epochs 9)
            best=(--rerank --beam 50)
            ;;
        # The defaults (one CNN, one view), for a quick start with your own pictures.
        karpathy | folder) ;;
        # A small folder: start from the included captioner, which was trained on the same features.
        transfer)
            extract=(--backbone efficientnet_lite0+efficientnet_lite1+efficientnet_lite2)
            train=(--init packaged --rl.epochs 0)
            ;;
        # The defaults: nobody has trained on Flickr30k with this project yet.
        flickr30k) ;;
        # The published settings of Up-Down (Anderson et al. 2018, arXiv 1707.07998) and Att2in (Rennie et
        # al. 2017, arXiv 1612.00563; CIDEr 1.140 with ResNet-101) for COCO. The values are from
        # ruotianluo/ImageCaptioning.pytorch: configs/updown.yml, updown_nsc.yml, a2i2.yml and a2i2_nsc.yml,
        # with the defaults of captioning/utils/opts.py. The REINFORCE baseline is the mean of the other
        # samples (Luo 2020, arXiv 2003.09971).
        # Differences here: a picture is resized to 224 x 224, which gives 7 x 7 regions; the papers use
        # larger pictures and more regions. The learning rate falls linearly to 0; theirs is multiplied by
        # 0.8 every three epochs and is constant in REINFORCE. Scheduled sampling increases every step, not
        # every five epochs. The norm of the gradient is clipped, not each value. Averaged weights are
        # validated. Nobody has trained on COCO with this project yet, so no score is promised.
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
