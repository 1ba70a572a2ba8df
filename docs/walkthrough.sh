#!/usr/bin/env bash
# The commands of docs/walkthrough.md: two real tasks, from four corpora to F1. Takes about an hour on two cores.
# Needs NEARKIN_DATA (see data/README.md); works in the folder it is started in; run again to resume.
set -euo pipefail
: "${NEARKIN_DATA:?name the folder with corpora/ and tasks/}"
data=$NEARKIN_DATA
show() { echo "\$ $*" | sed "s|$data|\$NEARKIN_DATA|g"; "$@"; echo; }

show nearkin build store --corpus biomed="$data/corpora/biomed.parquet" --corpus cs="$data/corpora/cs.parquet" \
  --corpus reviews="$data/corpora/reviews.parquet" --corpus news="$data/corpora/news.parquet" --max-tokens 64
show nearkin verify store

for task in citation_intent chemprot; do
  show nearkin query store "$data/tasks/$task" -k 5 --limit 2
  show nearkin select store "$data/tasks/$task" --method knn -k 5 --out "sets/$task-5nn" --overwrite
  tokens=$(python3 -c "import json; print(json.load(open('sets/$task-5nn/manifest.json'))['tokens'])")
  show nearkin select store "$data/tasks/$task" --method random --tokens "$tokens" --out "sets/$task-rand" --overwrite
  for set in 5nn rand; do
    show nearkin adapt --model all-MiniLM-L6-v2 --text "$data/tasks/$task" "sets/$task-$set" \
      --steps 40 --batch-size 24 --micro-batch 24 --lr 3e-4 --max-tokens 96 --held-out "$data/tasks/$task/dev.jsonl" --out "models/$task-$set" --overwrite
  done
  epochs=4
  if [ "$task" = chemprot ]; then epochs=1; fi
  for model in all-MiniLM-L6-v2 "models/$task-5nn" "models/$task-rand"; do
    show nearkin finetune --model "$model" --task "$data/tasks/$task" --seeds 1 --epochs $epochs --lr 1e-4 \
      --max-tokens 96 --out "results/$task-$(basename "$model")" --overwrite
  done
done
