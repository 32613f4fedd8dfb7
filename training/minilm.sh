#!/usr/bin/env bash
# Train the reader that ships: minilm, plain, decomposed and btr. A killed step goes on when run again.
#
#   training/minilm.sh DATA CORPUS RUNS [EVAL...]
#
# DATA: folder of the training files (docs/training.md); CORPUS: passages, jsonl.gz, for the cloze questions
# that step 1 begins with; EVAL: question files whose passages are kept out of those.
#
# The environment keeps freed memory in the process and asks for huge pages: a fifth faster on a CPU.
set -euo pipefail
data=$1 corpus=$2 runs=$3
shift 3
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

mkdir -p "$runs"
[ -f "$runs/cloze.jsonl.gz" ] || python -m btr.train.cloze "$corpus" "$runs/cloze.jsonl.gz" --exclude "$@"

step() { python -m btr.train.extractive --data "$data" "$runs" --negative-share 0.12 --lr 1.5e-4 "$@"; }

step --stage reader --output "$runs/cloze" --mix cloze:1 --epochs 1
step --stage reader --output "$runs/plain" --epochs 3 --start "$runs/cloze/checkpoint"
step --stage decompose --output "$runs/decomposed" --epochs 3 --plain "$runs/plain/checkpoint" \
    --lower 4 --joint 3 --answer-weight 1 --state-weight 0.2
step --stage binarize --output "$runs/btr" --epochs 2 --plain "$runs/plain/checkpoint" \
    --decomposed "$runs/decomposed/checkpoint" --answer-weight 1 --recovery-weight 0.1
