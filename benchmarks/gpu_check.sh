#!/usr/bin/env bash
# On a machine with a GPU: builds, tests, checks memory accesses and measures in one go of under nine minutes.
#   bash benchmarks/gpu_check.sh RESULTS          the CUDA kernels, and what users have beside them
#   bash benchmarks/gpu_check.sh RESULTS triton   the Triton kernels, after that (what it built is used)
# Leaves in RESULTS: build.log, info.txt, *.log of tests and sanitizers, summary.txt, *.json and the tables as
# throughput.txt; of Triton its tests' log, triton.txt and the configurations it chose.
# DBLR_FAST_WHEEL is installed instead of building. DBLR_FAST_CUDA_ARCHS defaults to this GPU's own, to save time.
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

# In the background, side by side with others: NAME SECONDS COMMAND...
beside() {
    local name=$1 limit=$2
    shift 2
    {
        timeout -k 3 "$limit" "$@" >"$name.log" 2>&1
        echo "$name: exit status $?, $(tail -n 1 "$name.log" | cut -c1-120)" | tee -a summary.txt
    } &
}

section build
installed() { (cd / && $python -c "import dblr_fast") 2>/dev/null; }
if [ "$part" != triton ] || ! installed; then
    what=${DBLR_FAST_WHEEL:-.}
    DBLR_FAST_CUDA=on $python -m pip install --no-build-isolation --no-deps --force-reinstall "$what" \
        >"$out/build.log" 2>&1 || { tail -n 30 "$out/build.log"; exit 1; }
fi
root=$PWD
cd "$out" || exit 1 # away from the checkout, whose dblr_fast is not built
$python -m dblr_fast info 2>&1 | tee info.txt
test="$python -m pytest -q --tb=short -p no:cacheprovider"

if [ "$part" = triton ]; then
    section tests
    beside triton_tests 400 $test "$root/tests/test_triton_device.py"
    wait
    section layers
    timeout 120 $python "$root/benchmarks/layers.py" --backend triton --json layers_triton.json 2>&1 | tee triton.txt
    cp "${DBLR_FAST_CACHE:-$HOME/.cache/dblr_fast}"/triton-*.json . 2>/dev/null # what was chosen
    exit 0
fi

# Parity comes first: nothing below counts if it fails. One process a group, for a fault in a kernel ends its process.
section "tests and compute-sanitizer"
device=$root/tests/test_cuda_device.py
export OMP_NUM_THREADS=2
beside test_float32 150 $test "$device" -k test_float32
beside test_16_bits 150 $test "$device" -k "test_float16_and_bfloat16 or test_portable_kernels"
beside test_network 150 $test "$device" -k "network or engine or graphs"
beside test_others 150 $test "$device" \
    -k "not test_float32 and not test_float16 and not test_portable and not network and not engine and not graphs"
for tool in memcheck racecheck; do
    for what in train infer; do
        beside ${tool}_$what 150 \
            compute-sanitizer --tool $tool --error-exitcode 9 $python "$root/benchmarks/gpu_smoke.py" $what
    done
done
wait
unset OMP_NUM_THREADS

section layers
for switch in off on; do
    DBLR_FAST_SM90=$switch timeout 40 $python "$root/benchmarks/layers.py" --json layers_sm90_$switch.json 2>&1 \
        | tee -a throughput.txt
done

section "training step"
timeout 60 $python "$root/benchmarks/train_step.py" --device cuda --autocast bf16 --repeats 20 \
    --json cuda_train.json 2>&1 | tee -a throughput.txt

section throughput # of every backend that runs here, in one run; Triton's first calls measure configurations
timeout 240 $python "$root/benchmarks/throughput.py" --device cuda --precision half --peers compile tensorrt \
    --sizes 1280x720 640x360 --repeats 11 --json cuda_half.json 2>&1 | tee -a throughput.txt
for precision in bf16 fast exact; do
    timeout 40 $python "$root/benchmarks/throughput.py" --device cuda --precision $precision --backends cuda \
        --sizes 1280x720 --repeats 5 --json cuda_$precision.json 2>&1 | tee -a throughput.txt
done
