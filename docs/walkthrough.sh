#!/usr/bin/env bash
# The commands of docs/walkthrough.md: from four corpora to F1. Takes about half an hour on two cores, nearly all of it the build.
# Needs NEARKIN_DATA (see data/README.md); works in the folder it is started in; run again to resume.
set -euo pipefail
: "${NEARKIN_DATA:?name the folder with corpora/ and tasks/}"
data=$NEARKIN_DATA
show() { echo "\$ $*" | sed "s|$data|\$NEARKIN_DATA|g"; "$@"; echo; }
task=$data/tasks/citation_intent

show nearkin build store --corpus biomed="$data/corpora/biomed.parquet" --corpus cs="$data/corpora/cs.parquet" \
  --corpus reviews="$data/corpora/reviews.parquet" --corpus news="$data/corpora/news.parquet" --precision bf16 --dry-run
show nearkin build store --precision bf16
show nearkin verify store
show nearkin query store "$task" -k 5 --limit 2
show nearkin query store "$data/tasks/chemprot" -k 5 --limit 1
for method in knn dsir random; do
  show nearkin select store "$task" --method $method --tokens 100000 --out "sets/$method" --overwrite
done
show nearkin inspect sets/knn --with sets/dsir sets/random --examples 3
show nearkin adapt --model all-MiniLM-L6-v2 --text "$task" sets/knn --held-out "$task/dev.jsonl" \
  --steps 40 --batch-size 32 --lr 3e-4 --max-tokens 128 --out adapted --overwrite
show nearkin finetune --model adapted --task "$task" --seeds 1 --epochs 2 --lr 2e-4 --max-tokens 128 --out result --overwrite
