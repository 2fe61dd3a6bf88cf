#!/usr/bin/env bash
# On a machine with a GPU: builds, tests and measures in one go; results go to the folder given.
#   bash benchmarks/gpu_check.sh RESULTS
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: gpu_check.sh RESULTS_FOLDER}
mkdir -p "$out"
pip install --no-build-isolation --no-deps . >"$out/build.log" 2>&1 || { tail -n 30 "$out/build.log"; exit 1; }
dblr-fast info 2>&1 | tee "$out/info.txt" || python -m dblr_fast.info | tee "$out/info.txt"
timeout 240 pytest tests -q -x --deselect tests/test_build.py 2>&1 | tail -n 40 | tee "$out/tests.txt"
for precision in exact fast half bf16; do
    timeout 60 python benchmarks/throughput.py --device cuda --precision $precision --sizes 640x360 1280x720 \
        --json "$out/cuda_$precision.json" 2>&1 | tee -a "$out/throughput.txt"
done
