#!/usr/bin/env bash
# Train the generative reader that ships: t5-mini, plain, decomposed and btr. A killed step goes on when run again.
#
#   training/t5-mini.sh DATA RUNS [PRECISION]
#
# DATA: folder of the training files; RUNS/t5-mini becomes the reader. PRECISION: fp32 on a CPU without bf16.
set -euo pipefail
data=$1 runs=$2 precision=${3:-bf16}
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

mkdir -p "$runs"
distant=("$data/nq_bm25.jsonl.gz" "$data/triviaqa_bm25.jsonl.gz" "$data/webquestions_bm25.jsonl.gz")
squad=$data/squad.jsonl.gz qamr=$data/qamr.jsonl.gz
budgets=(--query-budget 48 --passage-budget 208 --answer-budget 24)

# What minilm sees in questions with a passage, by least squares and then by training; a decoder that copies.
python -m btr.train.reader_distillation "$squad" "$qamr=0.45" "${distant[@]}" -o "$runs/t5-distilled" \
    --teacher "$(dirname "$0")/../models/minilm/plain" "${budgets[@]}" --epochs 1 --steps 400 --precision "$precision"

# step OUTPUT ...
step() {
    btr train -o "$1" "${distant[@]/#/--data=}" --data "$squad" --data "$qamr=0.3" --score-on squad --dev-share 0.03 --dropout 0 \
        --relative-lr --lr 1e-3 --warmup 30 --epochs 1 --precision "$precision" "${@:2}"
}

# Step 1, a passage a question, then several.
step "$runs/t5-first" --stage reader --from "$runs/t5-distilled/plain" "${budgets[@]}" --passages 1 --steps 420
step "$runs/t5-second" --stage reader --from "$runs/t5-first/plain" "${budgets[@]}" --passages 1 --steps 600 --seed 2
several=(--score-on nq_bm25 --passages 4 --distractors 1 --lr 5e-4)
step "$runs/t5-mini" --stage reader --from "$runs/t5-second/plain" "${budgets[@]}" "${several[@]}" --steps 420 --seed 3

# Steps 2 and 3: not run yet.
step "$runs/t5-mini" --stage decompose --layout 3+3 "${several[@]}" --state-weight 0.2 --answer-weight 1 --seed 4
step "$runs/t5-mini" --stage binarize "${several[@]}" --state-weight 0 --answer-weight 1 --recovery-weight 0.1 --seed 5
