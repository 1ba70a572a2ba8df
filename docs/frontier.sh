#!/usr/bin/env bash
# The commands of docs/frontier.md. Needs NEARKIN_DATA (see data/README.md); works in the folder it is started in.
# Run again to resume: cells that are in frontier.parquet are not run again.
set -euo pipefail
: "${NEARKIN_DATA:?name the folder with corpora/ and tasks/}"
here=$(cd "$(dirname "$0")" && pwd)
ln -sfn "$NEARKIN_DATA/tasks" tasks
corpora=$NEARKIN_DATA/corpora
nearkin build store --precision bf16 --corpus biomed="$corpora/biomed.parquet" --corpus cs="$corpora/cs.parquet" \
  --corpus news="$corpora/news.parquet" --corpus reviews="$corpora/reviews.parquet"

# A base with a trained masked-LM head: all-MiniLM-L6-v2 has none. Random passages of the store, none of any task's texts.
evaluated=()
for task in chemprot citation_intent imdb_500 reuters_r8; do evaluated+=("tasks/$task/dev.jsonl" "tasks/$task/test.jsonl"); done
[ -d base-text ] || nearkin select store tasks/sciie --method random --tokens 3000000 --seed 9 \
  --exclude "${evaluated[@]}" --out base-text
[ -d base ] || nearkin adapt --model all-MiniLM-L6-v2 --text base-text --steps 800 --batch-size 32 --lr 5e-4 \
  --max-tokens 128 --bf16 on --out base

nearkin bench frontier store --tasks tasks/citation_intent tasks/sciie tasks/imdb_500 \
  --methods kNN-TAPT dsir DAPT bm25 1NN-TAPT tsds ot --seeds 3 --budget-tokens 300000 \
  --model base --recipe "$here/results/frontier.toml" --work work --out frontier.parquet --plot frontier.png
nearkin report frontier.parquet --sets work/steps --html frontier.html --plots plots
