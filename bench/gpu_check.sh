#!/usr/bin/env bash
# What only a machine with a GPU can show: parity and latency of every GPU backend, in FP16 on random weights.
#
# usage: bash bench/gpu_check.sh [--preset tiny|b|l] [--rounds N] [--out DIR] [--allow-cpu]
#
# Each command writes NAME.json and NAME.log to DIR; a failing command does not stop the others.
# Exit codes: 0 all passed, 1 a command failed, 2 no backend works on a GPU (--allow-cpu checks the CPU instead).
set -u
preset=tiny rounds=30 out=gpu_check allow_cpu=
while (($#)); do
    case $1 in
        --preset) preset=$2; shift 2 ;;
        --rounds) rounds=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --allow-cpu) allow_cpu=yes; shift ;;
        *) echo "gpu-check: unknown option '$1'" >&2; exit 2 ;;
    esac
done
python=${RSREFSEG_PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" || exit 2
failed=0 table=()

step() { # NAME COMMAND...
    local name=$1 start=$SECONDS outcome=passed
    shift
    echo "gpu-check: rsrefseg $*" >&2
    if ! "$python" -m rsrefseg "$@" --json >"$out/$name.json" 2>"$out/$name.log"; then
        outcome="FAILED: $(tail -n 1 "$out/$name.log")" failed=1
    fi
    table+=("$(printf '%-28s %6d s  %s' "$name" $((SECONDS - start)) "$outcome")")
    [[ $outcome == passed ]]
}

works() { # BACKEND: whether the doctor says so
    "$python" -c 'import json, sys
abilities = json.load(open(sys.argv[1]))["abilities"]
sys.exit(not any(one["works"] and one["name"].endswith(f"({sys.argv[2]})") for one in abilities))' "$out/doctor.json" "$1"
}

step doctor doctor
backends=()
for backend in onnxruntime-cuda tensorrt; do works "$backend" && backends+=("$backend"); done
if ((${#backends[@]} == 0)); then
    [[ $allow_cpu ]] || { echo "gpu-check: no backend works on a GPU here, see $out/doctor.json" >&2; exit 2; }
    backends=(onnxruntime)
fi
bundle=(--bundle "$work/bundle")
if step export export "$work/run" --random-weights "$preset" --fp16 --out "$work/bundle"; then
    for backend in "${backends[@]}"; do
        if [[ $backend == tensorrt ]] && ! step build build "${bundle[@]}"; then continue; fi
        step "parity-$backend" parity "${bundle[@]}" --backend "$backend"
        step "bench-$backend" bench "${bundle[@]}" --backends "$backend" --run "$work/run" --rounds "$rounds"
    done
fi
printf '%s\n' "${table[@]}"
exit $failed
