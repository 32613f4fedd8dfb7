#!/usr/bin/env bash
# Compare layouts (lower + joint layers) by short, equal runs of step 2, to choose the split of a reader.
#
#   training/layouts.sh DATA RUNS      RUNS/plain/checkpoint must exist (training/minilm.sh)
set -euo pipefail
data=$1 runs=$2
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

for layout in 2+4 3+3 4+3 6+3 4+2 6+2 5+1; do
    python -m btr.train.extractive --stage decompose --data "$data" --plain "$runs/plain/checkpoint" \
        --output "$runs/layout-$layout" --lower "${layout%+*}" --joint "${layout#*+}" \
        --epochs 1 --share 0.25 --negative-share 0.12 --lr 1.5e-4 \
        --answer-weight 1 --state-weight 0.2
done
