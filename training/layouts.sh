#!/usr/bin/env bash
# Compare layouts (lower + joint layers) by short, equal runs of step 2, to choose the split of a reader.
#
#   training/layouts.sh DATA PLAIN RUNS      PLAIN: a checkpoint of step 1, as models/minilm/plain
set -euo pipefail
data=$1 plain=$2 runs=$3
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

for layout in 2+4 4+3 6+3 4+2 5+1; do
    btr train --stage decompose -o "$runs/layout-$layout" --from "$plain" --layout "$layout" \
        --steps 270 --lr 1.5e-4 --score-on squad --score-on nq_bm25 --answer-weight 1 --state-weight 0.2 \
        --data "$data/squad.jsonl.gz" --data "$data/qamr.jsonl.gz=0.45" --data "$data/nq_bm25.jsonl.gz" \
        --data "$data/triviaqa_bm25.jsonl.gz" --data "$data/webquestions_bm25.jsonl.gz"
done
