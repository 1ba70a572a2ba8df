#!/usr/bin/env bash
# What is still to be measured on a GPU (benchmarks.md), in about ten minutes of one: tests, encoding, exact search,
# training. Needs NEARKIN_DATA (see data/README.md) and this checkout installed; works in the folder it is started in.
# Each step stands alone; those that fail are named at the end. Results are FILE.parquet, what was printed NAME.log.
set -uo pipefail
: "${NEARKIN_DATA:?name the folder with corpora/ and tasks/}"
project=$(cd "$(dirname "$0")/.." && pwd)
corpora=$NEARKIN_DATA/corpora tasks=$NEARKIN_DATA/tasks
failed=()

step() {
  local name=$1
  shift
  echo "== $name: $*"
  local begun=$SECONDS
  timeout 300 "$@" 2>&1 | tee "$name.log" || failed+=("$name")
  echo "== $name took $((SECONDS - begun)) s"
}

step doctor nearkin doctor
step tests env NEARKIN_TEST_GPU=1 python -m pytest -q -p no:cacheprovider --rootdir "$project" \
  "$project/tests/selection/test_encoders.py" "$project/tests/selection/test_exact.py" \
  "$project/tests/selection/test_transport.py" "$project/tests/adaptation/test_mlm.py" \
  "$project/tests/adaptation/test_finetune.py"
# Shards are hashed and synced in the time that is measured, so a GPU needs many passages to be busy.
step encoding nearkin bench throughput "$corpora/biomed.parquet" --passages 32768 --paths exact bf16 compiled --out encoding.parquet
step build nearkin build store --precision bf16 --corpus biomed="$corpora/biomed.parquet" --corpus cs="$corpora/cs.parquet" \
  --corpus news="$corpora/news.parquet" --corpus reviews="$corpora/reviews.parquet"
step search nearkin bench search store "$tasks/chemprot" --passages 134105 1000000 --kinds stream --peers "FAISS IndexFlatIP" \
  --out search.parquet
step training nearkin bench training "$tasks/citation_intent" --steps 1000 --epochs 8 --seeds 1 --out training.parquet
step micro-batch nearkin adapt --model all-MiniLM-L6-v2 --text "$tasks/citation_intent" --micro-batch 256 --steps 200 \
  --out micro-batch --overwrite
echo "failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
