#!/usr/bin/env bash
# On a machine with a GPU: builds, tests, checks memory accesses and measures in one go of under nine minutes.
#   bash benchmarks/gpu_check.sh RESULTS          the CUDA kernels
#   bash benchmarks/gpu_check.sh RESULTS triton   the Triton kernels, after that (what it built is used)
# Leaves in RESULTS: build.log, info.txt, tests.txt, sanitizer.txt, *.json and the tables as throughput.txt; of Triton
# triton_tests.txt, triton.txt and the configurations it chose.
# DBLR_FAST_CUDA_ARCHS defaults to this GPU's own, to save time.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: gpu_check.sh RESULTS_FOLDER [triton]}
part=${2:-cuda}
mkdir -p "$out"
python=${PYTHON:-python3}
if [ -z "${DBLR_FAST_CUDA_ARCHS:-}" ]; then
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
    [ "$capability" = 90 ] && capability=90a
    export DBLR_FAST_CUDA_ARCHS=$capability
fi
section() { echo "== $1 ($(date +%T))"; }

section build
installed() { (cd / && $python -c "import dblr_fast") 2>/dev/null; }
if [ "$part" != triton ] || ! installed; then
    DBLR_FAST_CUDA=on $python -m pip install --no-build-isolation --no-deps . >"$out/build.log" 2>&1 \
        || { tail -n 30 "$out/build.log"; exit 1; }
fi
cd "$out" || exit 1 # away from the checkout, whose dblr_fast is not built
root=$OLDPWD
$python -m dblr_fast info 2>&1 | tee info.txt

if [ "$part" = triton ]; then
    section tests
    timeout 240 $python -m pytest "$root/tests/test_triton_device.py" -q -x 2>&1 | tail -n 30 | tee triton_tests.txt
    section layers
    timeout 120 $python "$root/benchmarks/layers.py" --backend triton --json layers_triton.json 2>&1 | tee -a triton.txt
    section throughput # of every backend that runs here, in one run; the first calls measure configurations
    timeout 160 $python "$root/benchmarks/throughput.py" --device cuda --precision half --peers compile \
        --sizes 640x360 1280x720 --repeats 15 --json triton_half.json 2>&1 | tee -a triton.txt
    cp "${DBLR_FAST_CACHE:-$HOME/.cache/dblr_fast}"/triton-*.json . 2>/dev/null # what was chosen
    exit 0
fi

# The parity of every kernel comes first: nothing below counts if it fails.
section tests
timeout 150 $python -m pytest "$root/tests/test_cuda_device.py" -q -x 2>&1 | tail -n 30 | tee tests.txt

section "compute-sanitizer"
for tool in memcheck racecheck; do
    echo "-- $tool" | tee -a sanitizer.txt
    timeout 60 compute-sanitizer --tool $tool --error-exitcode 9 $python "$root/benchmarks/gpu_smoke.py" 2>&1 \
        | tail -n 12 | tee -a sanitizer.txt
done

section layers
for switch in off on; do
    DBLR_FAST_SM90=$switch timeout 40 $python "$root/benchmarks/layers.py" --json layers_sm90_$switch.json 2>&1 \
        | tee -a throughput.txt
done

section throughput
DBLR_FAST_SM90=on timeout 100 $python "$root/benchmarks/throughput.py" --device cuda --precision half --peers compile tensorrt \
    --sizes 1280x720 --repeats 30 --json cuda_half_sm90.json 2>&1 | tee -a throughput.txt
for precision in half bf16 fast exact; do
    timeout 40 $python "$root/benchmarks/throughput.py" --device cuda --precision $precision \
        --sizes 640x360 1280x720 --repeats 15 --json cuda_$precision.json 2>&1 | tee -a throughput.txt
done

section "training step"
timeout 60 $python "$root/benchmarks/train_step.py" --device cuda --autocast half --repeats 20 --json cuda_train.json 2>&1 \
    | tee -a throughput.txt
