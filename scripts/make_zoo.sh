#!/usr/bin/env bash
# Make the models of pipeline/zoo as the shipped ones were made, and write them there:
#
#   scripts/make_zoo.sh /data/Task04_Hippocampus [WORK]
#
# The data are the Medical Segmentation Decathlon's Task04. Every fifth case is held out: nothing is trained, chosen or
# stopped by it, and all scores of the model card are of these. One thread and a number of epochs instead of a time, so
# that the same machine and versions of libraries give the same weights again. It takes about an hour; a run that was
# ended goes on where it was.
set -euo pipefail

if [[ $# -lt 1 || ! -f $1/dataset.json ]]; then
    echo "dataset: expected the folder of Task04_Hippocampus with dataset.json, got ${1:-none}. Give it." >&2
    exit 1
fi
root=$(cd "$(dirname "$0")/.." && pwd)
data=$(cd "$1" && pwd)
work=${2:-zoo_work}
name=hippocampus
config=$root/configs/hippocampus.yaml
export PYTHONPATH=$root:$root/benchmarks OMP_NUM_THREADS=1
volseg() { python -m pipeline "$@"; }

# As the benchmarks do: held-out cases move to imagesTs and labelsTs of a copy.
mkdir -p "$work"
python - "$data" "$work/dataset" <<'HOLD_OUT'
import sys
from pathlib import Path

from helpers.splits import every_fifth, hold_out

data, copy = map(Path, sys.argv[1:])
hold_out(data, every_fifth(data)[0], copy)
HOLD_OUT

# Of twenty folds the first: nine cases to watch the training by, all others train. The weights are those of the last
# step, which no case chose.
volseg preprocess "$work/dataset" -o "$work/prepared" -c "$config" --set sample.folds=20
# The shipped model saw 6 patches per batch, as the recipe had then.
volseg train "$work/prepared" -o "$work/model" -c "$config" --device cpu --set sample.batch_size=6 \
    --set train.epochs=44 --set train.validate_every=11 --set train.select=last

# The model as it ships, and beside it the same in 32 bits, to see what rounding does.
for bits in 16 32; do
    half=--half
    [[ $bits = 16 ]] || half=
    volseg share "$work/model" -o "$work/share_$bits" $half
    volseg predict "$work/share_$bits" "$work/dataset/imagesTs" -o "$work/masks_$bits" --device cpu
    volseg evaluate "$work/masks_$bits" "$work/dataset/labelsTs" -o "$work/scores_$bits"
done

python "$root/scripts/zoo_card.py" "$name" "$work"
