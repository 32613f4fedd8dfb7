#!/usr/bin/env bash
# What every way to shrink a store costs: bytes a token and answers, one JSON line a row. Rows that OUT has are left out.
#
#   results/store-rows.sh STORE READER OUT.jsonl DATA...
#
# STORE stays as it is; each row is a copy beside OUT, removed afterwards. DATA: question files with gold passages that STORE has; none for
# bytes alone. ROWS="none default" makes these rows only.
set -euo pipefail
store=$1 reader=$2 out=$3
shift 3

# row NAME OPTIONS...: without options the store as it is
row() {
    local name=$1 copy=$out.$1.btr
    shift
    if [ -n "${ROWS:-}" ] && [[ " $ROWS " != *" $name "* ]]; then return; fi
    if grep -qs "\"row\": \"$name\"" "$out"; then return; fi
    rm -rf "$copy"
    cp -r "$store" "$copy"
    if [ $# -gt 0 ]; then btr compress "$copy" "$@" --json "$out.compress.json"; else echo '{}' >"$out.compress.json"; fi
    btr info "$copy" --json "$out.info.json" >/dev/null
    local parts=("$out.compress.json" "$out.info.json")
    for data in "${files[@]}"; do
        btr eval --reader "$reader" --mode btr --data "$data" --store "$copy" --json "$out.$(basename "$data").json"
        parts+=("$out.$(basename "$data").json")
    done
    python - "$name" "$*" "$out" "${parts[@]}" <<'PYTHON'
import json
import sys

name, options, out, compressed, info, *scores = sys.argv[1:]
made, found = (json.load(open(path)) for path in (compressed, info))
line = {
    "row": name,
    "options": options,
    "state_bytes_per_token": found["state_bytes_per_token"],
    "bytes": found["bytes"],
    "seconds": made.get("seconds"),
    "peak_rss_mb": made.get("peak_rss_mb"),
}
for path in scores:
    score = json.load(open(path))
    line[score["task"]] = {key: score[key] for key in ("n", "f1", "f1_interval", "em", "em_interval")}
print(json.dumps(line), file=open(out, "a"), flush=True)
PYTHON
    rm -rf "$copy" "${parts[@]}"
}

files=("$@")
row none
row lossless --ratio 0 --keep-stop-words --lossless
row stop-words --ratio 0
row default --ratio 0.2
row ratio-26 --ratio 0.26
row ratio-20-lossless --ratio 0.2 --lossless
row ratio-30-lossless --ratio 0.3 --lossless
row ratio-32-lossless --ratio 0.32 --lossless
row top-500 --top 500
row top-1000 --top 1000
row top-2000 --top 2000
row paper-stop-words --paper --ratio 0
row paper --paper
row paper-lossless --paper --lossless
