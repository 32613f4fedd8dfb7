#!/usr/bin/env bash
# How well each kind of a reader answers, task by task: score, share of plain kept, questions a second, bytes a token; one JSON line a row. Rows
# that OUT has are left out.
#
#   results/task-rows.sh READER STORE COMPRESSED EVAL OUT.jsonl
#
# STORE: the corpus, read by READER; COMPRESSED: the same, compressed. EVAL: folder of the question files, with their retrieval runs in retrieved/.
# TASKS="squad nq-top20" makes rows of these tasks only; LIMIT=500 reads the first 500 questions of each. DECOMPOSED: a store of READER's continuous
# states; without one the decomposed reader encodes passages while it is timed; "none" leaves that reader out. MERGING: options of btr eval for the
# compressed row, such as "--intra 0.2 --cross 0.2" for a generative reader.
set -euo pipefail
reader=$1 store=$2 compressed=$3 eval=$4 out=$5

# row TASK NAME STORE OPTIONS...
row() {
    local task=$1 name=$2 from=$3
    shift 3
    if grep -qs "\"task\": \"$task\", \"row\": \"$name\"" "$out"; then return; fi
    btr eval --reader "$reader" --task "$task" --limit "${LIMIT:-0}" --json "$out.$task.$name.json" --store "$from" "$@"
    btr info "$from" --json "$out.info.json" >/dev/null
    python - "$task" "$name" "$out" <<'PYTHON'
import json
import sys

task, name, out = sys.argv[1:]
found, store = (json.load(open(f"{out}.{part}.json")) for part in (f"{task}.{name}", "info"))
keys = ("reader", "n", "f1", "f1_interval", "em", "em_interval", "accuracy", "accuracy_interval", "kept", "queries_per_s", "cpu_s_per_correct", "recall")
line = {"task": task, "row": name} | {key: found[key] for key in keys if found.get(key) is not None}
if name.startswith(store["fingerprint"]["mode"]):
    line["state_bytes_per_token"] = store["state_bytes_per_token"]
print(json.dumps(line), file=open(out, "a"), flush=True)
PYTHON
}

decomposed=${DECOMPOSED:-$store}
for task in ${TASKS:-squad nq squad-top20 nq-top20 triviaqa-top20 webquestions-top20}; do
    data=${task%-top20}
    options=(--data "$eval/$data.jsonl.gz")
    if [ "$task" != "$data" ]; then options+=(--retrieved "$eval/retrieved/$data.bm25top20.jsonl.gz"); fi
    if [ "$data" = fever ]; then options+=(--classes); fi
    row "$task" plain "$store" --mode plain "${options[@]}"
    plain=(--against "$out.$task.plain.json")
    if [ "$decomposed" != none ]; then row "$task" decomposed "$decomposed" --mode decomposed "${options[@]}" "${plain[@]}"; fi
    row "$task" btr "$store" --mode btr "${options[@]}" "${plain[@]}"
    row "$task" btr-compressed "$compressed" --mode btr "${options[@]}" "${plain[@]}" ${MERGING:-}
    rm -f "$out.$task".*.json "$out.info.json"
done
