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
squad=$data/squad.jsonl.gz qamr=$data/qamr.jsonl.gz fever=$data/fever.jsonl.gz
budgets=(--query-budget 48 --passage-budget 208 --answer-budget 24)

# What minilm sees in questions with a passage, by least squares and then by training; a decoder that copies.
python -m btr.train.reader_distillation "$squad" "$qamr=0.45" "${distant[@]}" -o "$runs/t5-distilled" \
    --teacher "$(dirname "$0")/../models/minilm/plain" "${budgets[@]}" --epochs 1 --steps 400 --precision "$precision"

# step OUTPUT ...
step() {
    btr train -o "$1" "${distant[@]/#/--data=}" --data "$squad" --data "$qamr=0.3" --score-on squad --dev-share 0.03 --dropout 0 \
        --relative-lr --warmup 30 --epochs 1 --precision "$precision" "${@:2}"
}

# Step 1: a passage a question, then several, then with claims; on from the mean of these; slower, from the mean of all; and the mean with that.
single=(--passages 1 --lr 1e-3)
several=(--score-on nq_bm25 --passages 4 --distractors 1)
step "$runs/t5-first" --stage reader --from "$runs/t5-distilled/plain" "${budgets[@]}" "${single[@]}" --steps 420
step "$runs/t5-second" --stage reader --from "$runs/t5-first/plain" "${budgets[@]}" "${single[@]}" --steps 600 --seed 2
step "$runs/t5-third" --stage reader --from "$runs/t5-second/plain" "${budgets[@]}" "${several[@]}" --lr 5e-4 --steps 420 --seed 3
step "$runs/t5-fourth" --stage reader --from "$runs/t5-third/plain" "${budgets[@]}" "${several[@]}" --lr 8e-4 --steps 800 --seed 7 \
    --data "$fever" --score-on fever

# mean OUTPUT CHECKPOINT...
mean() {
    if [ ! -d "$1" ]; then python -m btr.train.average "$@"; fi
}
three=("$runs"/t5-{second,third,fourth}/plain) fifth=$runs/t5-fifth/plain two=(--passages 2)
mean "$runs/t5-three/plain" "${three[@]}"
step "$runs/t5-fifth" --stage reader --from "$runs/t5-three/plain" "${budgets[@]}" "${several[@]}" "${two[@]}" --lr 8e-4 --steps 560 --seed 11 --average 0.4
mean "$runs/t5-six/plain" "${three[@]}" "$fifth" "$fifth" "$fifth"
step "$runs/t5-sixth" --stage reader --from "$runs/t5-six/plain" "${budgets[@]}" "${several[@]}" "${two[@]}" --lr 2.5e-4 --steps 600 --seed 13 --average 0.5
mean "$runs/t5-mini/plain" "$runs/t5-six/plain" "$runs/t5-sixth/plain"

# Steps 2 and 3.
several+=("${two[@]}" --warmup 20 --average 0.4)
step "$runs/t5-mini" --stage decompose --layout 2+4 "${several[@]}" --lr 6e-4 --state-weight 0.2 --answer-weight 1 --steps 240 --seed 8
step "$runs/t5-mini" --stage binarize --rule words "${several[@]}" --lr 2.5e-4 --state-weight 0 --task-weight 0.5 --answer-weight 2 --recovery-weight 1 --steps 440 --seed 9
