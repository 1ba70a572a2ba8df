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

# Tasks of one domain share its DAPT, so split a grid over processes by domain only. The first neighbours alone fill this
# budget, so that 1NN-TAPT would be kNN-TAPT's set.
nearkin bench frontier store --tasks tasks/citation_intent tasks/sciie tasks/imdb_500 \
  --methods kNN-TAPT dsir DAPT bm25 tsds ot --seeds 3 --budget-tokens 100000 \
  --model all-MiniLM-L6-v2 --recipe "$here/results/frontier.toml" --work work --out frontier.parquet --plot frontier.png
nearkin report frontier.parquet --sets work/steps --html frontier.html --plots plots
