#!/usr/bin/env bash
# Train the generative reader that ships: t5-mini, plain, decomposed and btr. A killed step goes on when run again.
#
#   training/t5-mini.sh DATA CORPUS RUNS
#
# DATA: folder of the training files; CORPUS: passages, jsonl.gz; RUNS/t5-mini becomes the reader.
set -euo pipefail
data=$1 corpus=$2 runs=$3
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

mkdir -p "$runs"
questions=("$data/squad.jsonl.gz" "$data/qamr.jsonl.gz=0.45" "$data/nq_bm25.jsonl.gz" "$data/triviaqa_bm25.jsonl.gz"
    "$data/webquestions_bm25.jsonl.gz")
budgets=(--query-budget 48 --passage-budget 208 --answer-budget 24)
sources=()
for file in "${questions[@]}"; do sources+=(--data "$file"); done

# MiniLM's weights and states, over a third of the corpus; then minilm's, over questions with a passage.
python -m btr.train.warm_start "$corpus" -o "$runs/t5-warm" --steps 1000
python -m btr.train.reader_distillation "${questions[@]}" -o "$runs/t5-distilled" \
    --from "$runs/t5-warm/plain" --teacher "$(dirname "$0")/../models/minilm/plain" "${budgets[@]}"
# The decoder alone learns where to begin; then all weights how to go on copying.
btr train --stage reader -o "$runs/t5-decoder" --from "$runs/t5-distilled/plain" "${sources[@]}" "${budgets[@]}" \
    --decoder-only --epochs 1 --steps 600 --lr 2e-3 --dropout 0 --passages 1 --score-on squad
for name in squad qamr; do
    python -m btr.train.continuations "$runs/continued-$name.jsonl.gz" "$data/$name.jsonl.gz"
done
btr train --stage reader -o "$runs/t5-copying" --from "$runs/t5-decoder/plain" --data "$runs/continued-squad.jsonl.gz" \
    --data "$runs/continued-qamr.jsonl.gz=0.3" "${budgets[@]}" --epochs 1 --lr 1e-3 --dropout 0 \
    --passages 1 --score-on continued-squad

step() {
    btr train -o "$runs/t5-mini" "${sources[@]}" --data "$data/fever.jsonl.gz=0.5" --score-on squad --score-on nq_bm25 \
        --lr 3e-4 --passages 2 --distractors 1 "$@"
}
step --stage reader --from "$runs/t5-copying/plain" --epochs 2 "${budgets[@]}"
step --stage decompose --layout 3+3 --epochs 2 --answer-weight 1 --state-weight 0.2
step --stage binarize --epochs 1 --answer-weight 1 --state-weight 0 --recovery-weight 0.1
