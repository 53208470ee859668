#!/usr/bin/env bash
# What only a machine with a GPU can show: parity and latency of every GPU backend and form of attention beside
# PyTorch's fastest, and training. Random weights.
#
# usage: bash bench/gpu_check.sh [--preset tiny|b|l] [--rounds N] [--out DIR] [--allow-cpu]
#
# Each command writes NAME.json and NAME.log to DIR; a failing command does not stop the others. gpu_check.json has all
# of them. Run again, it continues after the commands that passed. A DIR with results of other options, backends or code
# is refused. DIR/work, with bundles and runs, may be removed.
# Exit codes: 0 all passed, 1 a command failed, 2 no backend works on a GPU (--allow-cpu checks the CPU instead), or an
# option or DIR was refused.
set -u
refuse() { echo "gpu-check: $*" >&2; exit 2; }

preset=tiny rounds=30 out=gpu_check allow_cpu=
while (($#)); do
    case $1 in
        --preset | --rounds | --out) (($# > 1)) || refuse "$1 needs a value"; printf -v "${1#--}" %s "$2"; shift 2 ;;
        --allow-cpu) allow_cpu=yes; shift ;;
        *) refuse "unknown option '$1'" ;;
    esac
done
python=${RSREFSEG_PYTHON:-.venv/bin/python}
work=$out/work
[[ -d $work ]] || rm -f "$out"/{export,build}-*.passed "$out"/{scenes,tensorrt-rtx-build}.passed
mkdir -p "$work" || exit 2
failed=0 table=()

record() { # NAME COMMAND...: run a command, unless it passed before; succeeds if the command did
    local name=$1 start=$SECONDS outcome=passed
    shift
    if [[ -f $out/$name.passed ]]; then
        outcome="passed before"
    else
        echo "gpu-check: rsrefseg $*" >&2
        if "$python" -m rsrefseg "$@" --json >"$out/$name.json" 2>"$out/$name.log"; then
            touch "$out/$name.passed"
        else
            outcome="FAILED: $(tail -n 1 "$out/$name.log")"
        fi
    fi
    table+=("$(printf '%-28s %6d s  %s' "$name" $((SECONDS - start)) "$outcome")")
    [[ $outcome == passed* ]]
}

step() { record "$@" || { failed=1; return 1; }; }

works() { # BACKEND: whether the doctor says so
    "$python" -c 'import json, sys
abilities = json.load(open(sys.argv[1]))["abilities"]
sys.exit(not any(one["works"] and one["name"].endswith(f"({sys.argv[2]})") for one in abilities))' "$out/doctor.json" "$1"
}

rm -f "$out/doctor.passed" # the machine may have changed
step doctor doctor
backends=() cuda=onnxruntime-cuda baselines=torch-cuda,torch-compile-cuda
for backend in onnxruntime-cuda tensorrt; do works "$backend" && backends+=("$backend"); done
if ((${#backends[@]} == 0)); then
    [[ $allow_cpu ]] || refuse "no backend works on a GPU here, see $out/doctor.json"
    backends=(onnxruntime) cuda=onnxruntime baselines=torch
fi
code=$(cd "${0%/*}" && git rev-parse HEAD 2>/dev/null && git diff HEAD) || code=$("$python" -m rsrefseg --version)
settings="$preset $rounds ${backends[*]} $(sha256sum <<<"$code")"
[[ ! -f $out/settings || $settings == "$(cat "$out/settings")" ]] ||
    refuse "$out has results of other options, backends or code: remove it, or name another folder with --out"
echo "$settings" >"$out/settings"

for precision in fp16 fp32; do
    bundle=(--bundle "$work/$precision")
    half=() && [[ $precision == fp16 ]] && half=(--fp16)
    model=("$work/run") && [[ ! -f $work/run/merged.safetensors ]] && model+=(--random-weights "$preset")
    step "export-$precision" export "${model[@]}" "${half[@]}" --no-check --out "$work/$precision" || continue
    for backend in "${backends[@]}"; do
        if [[ $backend == tensorrt ]] && ! step "build-$precision" build "${bundle[@]}"; then continue; fi
        step "parity-$precision-$backend" parity "${bundle[@]}" --backend "$backend"
        [[ $precision == fp32 ]] ||
            step "bench-$backend" bench "${bundle[@]}" --backends "$backend" --run "$work/run" --rounds "$rounds"
    done
done

# Forms of attention of ONNX Runtime on CUDA; the first is the target's own, measured beside PyTorch.
for form in padded additive folded; do
    bundle=(--bundle "$work/$form") names=$cuda
    [[ $form == padded ]] && names=$baselines,$cuda
    step "export-$form" export "$work/run" --fp16 --target onnxruntime-cuda --out "$work/$form" \
        --attention "windowed=$form,global=$form" || continue
    step "parity-$form" parity "${bundle[@]}" --backend "$cuda"
    step "bench-$form" bench "${bundle[@]}" --backends "$names" --run "$work/run" --rounds "$rounds"
done

# Training: the log has images/s of every step.
train=(--data "$work/scenes" --preset "$preset" --random-weights --epochs 1 --batch-size 2 --resume)
if step scenes data synth "$work/scenes" --train 8 --val 2 --test 0 --overwrite; then
    for precision in fp32 bf16; do
        step "train-$precision" train "${train[@]}" --precision "$precision" --out "$work/train-$precision"
    done
    step train-checkpointing train "${train[@]}" --gradient-checkpointing --out "$work/train-checkpointing"
    step train-compile train "${train[@]}" --precision fp32 --compile --out "$work/train-compile"
fi

# An answer, not a check: TensorRT-RTX may not support this GPU. Engines for compute capability 8.0 are tried on any.
record tensorrt-rtx parity --bundle "$work/fp16" --backend tensorrt-rtx
record tensorrt-rtx-build build --bundle "$work/fp16" --runtime tensorrt-rtx --gpus sm80 --out "$work/engines" &&
    RSREFSEG_ENGINES=$work/engines record tensorrt-rtx-sm80 parity --bundle "$work/fp16" --backend tensorrt-rtx

"$python" - "$out" "${table[@]}" <<'PYTHON'
import json
import sys
from pathlib import Path

out, steps = Path(sys.argv[1]), []
for line in sys.argv[2:]:
    name, seconds, _, outcome = line.split(None, 3)
    try:
        report = json.loads((out / f"{name}.json").read_text())
    except json.JSONDecodeError:  # of a command that was killed
        report = None
    steps.append({"name": name, "seconds": int(seconds), "outcome": outcome, "report": report})
(out / "gpu_check.json").write_text(json.dumps(steps, indent=1) + "\n")
PYTHON
printf '%s\n' "${table[@]}"
exit $failed
