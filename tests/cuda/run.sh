#!/usr/bin/env bash
# On a machine with an NVIDIA GPU that reaches no package index: the tests marked `cuda`, then benches.gpu.
#
#   tests/cuda/run.sh keep       which of the loads of `make cuda-parts` are here, and what the machine lacks
#   tests/cuda/run.sh RESULTS    put them together, install them into build/cuda/environment, run all;
#                                logs, RESULTS.md and results.json go into the folder RESULTS
#
# All ends within CUDA_SECONDS (540). Exit code 0: everything passed; 1: something failed, and the last lines say what;
# 2: the arguments are wrong. CUDA_FOLDER is where the loads are (build/cuda), CUDA_BENCH the options of the bench.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
if [ $# -ne 1 ] || [ -z "$1" ]; then
    echo "usage: tests/cuda/run.sh keep | tests/cuda/run.sh RESULTS" >&2
    exit 2
fi
if [ "$1" != keep ]; then
    mkdir -p "$1"
    results="$(cd "$1" && pwd)"
fi
cd "$root"
folder="${CUDA_FOLDER:-build/cuda}"

if [ "$1" = keep ]; then
    exec python3 tests/cuda/environment.py arrived "$folder"
fi

begun=$SECONDS
most="${CUDA_SECONDS:-540}"
failed=()

# step NAME MOST COMMAND...: run it, in at most MOST seconds and the time that is left, with its output in NAME.log too.
step() {
    local name="$1" limit="$2" left=$((most - (SECONDS - begun))) code=0
    shift 2
    if [ "$left" -lt "$limit" ]; then limit="$left"; fi
    if [ "$limit" -lt 1 ]; then
        failed+=("$name: not begun, no time was left")
        return 1
    fi
    echo "== $name, at most $limit s"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$results/$name.log" || code=$?
    if [ "$code" -eq 0 ]; then return 0; fi
    if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
        failed+=("$name: ended after $limit s")
    else
        failed+=("$name: exit code $code: $(tail -n 1 "$results/$name.log")")
    fi
    return 1
}

finish() {
    if [ ${#failed[@]} -eq 0 ]; then
        echo "all passed in $((SECONDS - begun)) s; the results are in $results"
        exit 0
    fi
    printf 'failed: %s\n' "${failed[@]}"
    echo "the logs are in $results"
    exit 1
}

step environment 150 python3 tests/cuda/environment.py build "$folder" || finish
python="$(tail -n 1 "$results/environment.log")"

if ! step gpu 120 "$python" -m benches.gpu.present; then
    # onnxruntime finds CUDA's libraries beside itself; where it does not, the loader is shown where they are.
    packages="$(dirname "$(dirname "$python")")/lib"
    nvidia="$(find -L "$packages" -maxdepth 5 -path '*/site-packages/nvidia/*/lib' -type d 2>/dev/null | paste -sd: -)" || nvidia=""
    if [ -z "$nvidia" ] || ! grep -q 'no CUDA: lib' "$results/gpu.log"; then finish; fi
    echo "once more, with LD_LIBRARY_PATH=$nvidia"
    export LD_LIBRARY_PATH="$nvidia${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    failed=()
    step gpu 120 "$python" -m benches.gpu.present || finish
fi

mapfile -t tests < <(grep -rlE --include='test_*.py' 'pytest\.mark\.cuda' tests | grep -v '^tests/cuda/' | sort)
step tests 150 "$python" -m pytest -m cuda "${tests[@]}" -p no:cacheprovider || true

read -ra options <<< "${CUDA_BENCH:-}"
left=$((most - (SECONDS - begun) - 45))
if [ "$left" -gt 300 ]; then left=300; fi
if [ "$left" -lt 30 ]; then left=30; fi
step bench $((left + 40)) "$python" -m benches.gpu --write --seconds "$left" "${options[@]}" || true
for file in RESULTS.md results.json; do
    if [ "benches/gpu/$file" -nt "$results/gpu.log" ]; then cp "benches/gpu/$file" "$results/$file"; fi
done
finish
