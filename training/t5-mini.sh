#!/usr/bin/env bash
# Train the generative reader that ships: t5-mini, plain, decomposed and btr. A killed step goes on when run again.
#
#   training/t5-mini.sh DATA CORPUS RUNS EVAL...
#
# DATA: folder of the training files; CORPUS: passages, jsonl.gz; RUNS/t5-mini becomes the reader; EVAL: question files
# whose passages are kept out of the cloze questions.
set -euo pipefail
data=$1 corpus=$2 runs=$3
shift 3
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

mkdir -p "$runs"
cloze=$runs/cloze.jsonl.gz
[ -f "$cloze" ] || python -m btr.train.cloze "$corpus" "$cloze" --exclude "$@"

# Weights and states of MiniLM, over a third of the corpus; then cloze questions.
python -m btr.train.warm_start "$corpus" -o "$runs/t5-warm" --steps 1000
budgets=(--query-budget 48 --passage-budget 208 --answer-budget 24)
btr train --stage reader -o "$runs/t5-cloze" --from "$runs/t5-warm/plain" --data "$cloze" --epochs 1 --lr 7e-4 \
    --passages 1 "${budgets[@]}"

step() {
    btr train -o "$runs/t5-mini" --lr 3e-4 --score-on squad --score-on nq_bm25 --passages 2 --distractors 1 \
        --data "$data/squad.jsonl.gz" --data "$data/qamr.jsonl.gz=0.45" --data "$data/nq_bm25.jsonl.gz" \
        --data "$data/triviaqa_bm25.jsonl.gz" --data "$data/webquestions_bm25.jsonl.gz" \
        --data "$data/fever.jsonl.gz=0.5" "$@"
}
step --stage reader --from "$runs/t5-cloze/plain" --epochs 3 "${budgets[@]}"
step --stage decompose --layout 3+3 --epochs 2 --answer-weight 1 --state-weight 0.2
step --stage binarize --epochs 1 --answer-weight 1 --state-weight 0 --recovery-weight 0.1
