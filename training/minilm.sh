#!/usr/bin/env bash
# Train the reader that ships: minilm, plain, decomposed and btr. A killed step goes on when run again.
#
#   training/minilm.sh DATA CORPUS RUNS [EVAL...]
#
# DATA: folder of the training files; CORPUS: passages, jsonl.gz, for the cloze questions that step 1 begins with;
# RUNS/minilm becomes the reader, with the btr checkpoint of RUNS/further in the place of its own; EVAL: question files whose passages are kept out of the cloze questions.
#
# The environment keeps freed memory in the process and asks for huge pages: a fifth faster on a CPU.
set -euo pipefail
data=$1 corpus=$2 runs=$3
shift 3
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

mkdir -p "$runs"
cloze=$runs/cloze.jsonl.gz
[ -f "$cloze" ] || python -m btr.train.cloze "$corpus" "$cloze" --exclude "$@"

btr train --stage reader -o "$runs/cloze" --from minilm-encoder --data "$cloze" --epochs 1 --lr 1.5e-4

# step OUTPUT ...
step() {
    btr train -o "$1" --score-on squad --score-on nq_bm25 \
        --data "$data/squad.jsonl.gz" --data "$data/nq_bm25.jsonl.gz" --data "$data/triviaqa_bm25.jsonl.gz" \
        --data "$data/webquestions_bm25.jsonl.gz" "${@:2}"
}
binarize=(--stage binarize --answer-weight 1 --state-weight 0 --recovery-weight 0.1)
step "$runs/minilm" --stage reader --from "$runs/cloze/plain" --epochs 3 --lr 1.5e-4 --data "$data/qamr.jsonl.gz=0.45"
step "$runs/minilm" --stage decompose --layout 4+3 --epochs 3 --lr 1.5e-4 --data "$data/qamr.jsonl.gz=0.35" \
    --data "$cloze=0.1" --answer-weight 1 --state-weight 0.2
step "$runs/minilm" "${binarize[@]}" --epochs 1 --lr 1.5e-4 --data "$data/qamr.jsonl.gz=0.35" --data "$cloze=0.1"

# Step 3 goes on from what it made; RUNS/further/btr is the reader's btr checkpoint.
step "$runs/further" "${binarize[@]}" --from "$runs/minilm/btr" --plain "$runs/minilm/plain" --epochs 2 --lr 1.2e-4 \
    --data "$data/qamr.jsonl.gz=0.2"
