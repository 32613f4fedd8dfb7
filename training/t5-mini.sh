#!/usr/bin/env bash
# Train the generative reader that ships: t5-mini, plain, decomposed and btr. A killed step goes on when run again.
#
#   training/t5-mini.sh DATA RUNS
#
# DATA: folder of the training files; RUNS/t5-mini becomes the reader. Not run yet from this beginning: the rates of the steps after the
# first are those that went with a slower one (docs/experiments.md), made relative.
set -euo pipefail
data=$1 runs=$2
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

mkdir -p "$runs"
distant=("$data/nq_bm25.jsonl.gz" "$data/triviaqa_bm25.jsonl.gz" "$data/webquestions_bm25.jsonl.gz")
squad=$data/squad.jsonl.gz qamr=$data/qamr.jsonl.gz fever=$data/fever.jsonl.gz
budgets=(--query-budget 48 --passage-budget 208 --answer-budget 24)

# What minilm sees in questions with a passage: by least squares, then by training.
python -m btr.train.reader_distillation "$squad" "$qamr=0.45" "${distant[@]}" -o "$runs/t5-distilled" \
    --teacher "$(dirname "$0")/../models/minilm/plain" "${budgets[@]}" --epochs 1

# Answers that go on in their passage, to copy; with a mark, so that they may stand beside questions.
python -m btr.train.continuations "$runs/continued-squad.jsonl.gz" "$squad"
python -m btr.train.continuations "$runs/continued-qamr.jsonl.gz" "$qamr"
python -m btr.train.continuations "$runs/marked-squad.jsonl.gz" "$squad" --mark " ..."

# step NAME START OPTIONS...: a part of step 1
step() {
    btr train --stage reader -o "$runs/$1" --from "$runs/$2/plain" "${budgets[@]}" --epochs 1 --dropout 0 --relative-lr --lr 2e-3 "${@:3}"
}
asked=("${distant[@]/#/--data=}" --data "$squad")
step t5-decoder t5-distilled "${asked[@]}" --data "$qamr=0.45" --decoder-only --steps 600 --lr 3e-2 --passages 1 --score-on squad
step t5-copying t5-decoder --data "$runs/continued-squad.jsonl.gz" --data "$runs/continued-qamr.jsonl.gz=0.3" \
    --passages 1 --score-on continued-squad
step t5-asked t5-copying "${asked[@]}" --data "$qamr=0.3" --data "$runs/marked-squad.jsonl.gz=0.5" --passages 1 \
    --score-on squad
step t5-mini t5-asked "${asked[@]}" --data "$qamr=0.2" --data "$fever=0.4" --passages 2 --score-on squad

# Steps 2 and 3.
further() {
    btr train -o "$runs/t5-mini" "${asked[@]}" --data "$qamr=0.2" --data "$fever=0.4" --score-on squad --score-on nq_bm25 \
        --relative-lr --lr 1e-3 --passages 2 --distractors 1 --answer-weight 1 "$@"
}
further --stage decompose --layout 3+3 --epochs 2 --state-weight 0.2
further --stage binarize --epochs 1 --state-weight 0 --recovery-weight 0.1
