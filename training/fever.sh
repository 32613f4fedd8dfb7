#!/usr/bin/env bash
# minilm for FEVER, two ways: all three steps of its own, and adapted above the cut, so that minilm's stores stay valid.
#
#   training/fever.sh DATA RUNS      DATA: folder of the training files
#
# RUNS/full is the reader with steps of its own, RUNS/adapted/btr the adapted one: btr eval --reader RUNS/adapted --mode btr --classes --data FILE
set -euo pipefail
data=$1 runs=$2 shipped=$(dirname "$0")/../models/minilm
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

# step OUTPUT ...
step() {
    btr train -o "$1" --classes --data "$data/fever.jsonl.gz" --data "$data/fever_symmetric.jsonl.gz" --score-on fever --warmup 50 --lr 1e-4 "${@:2}"
}
step "$runs/full" --stage reader --from "$shipped/plain" --epochs 3
step "$runs/full" --stage decompose --layout 4+3 --epochs 2 --answer-weight 1 --state-weight 0.2
step "$runs/full" --stage binarize --epochs 2 --answer-weight 1 --state-weight 0 --recovery-weight 0.1
step "$runs/adapted" --stage adapt --from "$shipped/btr" --plain "$runs/full/plain" --epochs 3 --answer-weight 1 --state-weight 0
