#!/usr/bin/env bash
# Builds, tests and measures on this machine's GPU, the most valuable first, and writes one directory with a report (docs/gpu-check.md).
#
#   launchers/gpu_check.sh                                   every part but quality and sanitizer, within 9 minutes
#   launchers/gpu_check.sh --parts build,tests,kernels       some parts; --list shows the commands of each
#   launchers/gpu_check.sh --wheels DIR                      takes missing Python packages from there, not from a registry
#   launchers/gpu_check.sh --store DIR                       trains on a prepared token store; --data DIR: on text as OPUS-100's
#   launchers/gpu_check.sh --device cpu --quick              a rehearsal in small, without a GPU
#
# PYTHON: the interpreter that has PyTorch (python3); its environment stays as it is. GPU_CHECK_PLACE: where what it lacks and temporary
# files go (build/gpu-check). Exit code: 0, 1 where a part failed or was stopped, 2 for a wrong option.
set -uo pipefail

declare -A share=([environment]=15 [build]=90 [doctor]=20 [tests]=70 [kernels]=90 [train-base]=75 [methods]=45 [train-presets]=55
    [decode]=40 [affinity]=15 [data]=15 [quality]=480 [sanitizer]=240) # seconds; what one leaves goes to those after it
parts=environment,build,doctor,tests,kernels,train-base,methods,train-presets,decode,affinity,data
arguments=("$@")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out='' minutes=9 wheels='' device=cuda quick='' list='' text=() data=()
wrong() { echo "gpu_check.sh: $*" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=yes; shift; continue ;;
    --list) list=yes; shift; continue ;;
    --parts | --out | --minutes | --wheels | --device | --data | --store) [ $# -gt 1 ] || wrong "$1 needs a value" ;;
    *) wrong "no option $1; there are --parts --out --minutes --wheels --data --store --device --quick --list" ;;
    esac
    case $1 in
    --parts) parts=$2 ;;
    --out) out=$2 ;;
    --minutes) minutes=$2; [[ $2 =~ ^[1-9][0-9]*$ ]] || wrong "--minutes takes a whole number, not $2" ;;
    --device) device=$2; [[ $2 =~ ^(cpu|cuda)$ ]] || wrong "--device is cpu or cuda, not $2" ;;
    *) [ -d "$2" ] || wrong "$1: there is no directory $2" ;;&
    --wheels) wheels=$(realpath "$2") ;;
    --data) data=(--data "$(realpath "$2")") ;;
    --store) text=(--store "$(realpath "$2")") ;;
    esac
    shift 2
done
IFS=, read -ra parts <<<"$parts"
for part in "${parts[@]}"; do [ -n "${share[$part]:-}" ] || wrong "no part $part; there are: ${!share[*]}"; done
[ ${#text[@]} -gt 0 ] || text=(${data[@]+"${data[@]}"})
out=$(realpath -m "${out:-gpu-check-$(date +%Y-%m-%d-%H%M)}")
python=${PYTHON:-python3} place=$(realpath -m "${GPU_CHECK_PLACE:-$root/build/gpu-check}")
[ -z "$list" ] || { out=$(mktemp -d) place=$out; trap 'rm -r "$out"' EXIT; }
venv=$place/venv/bin/python
cd "$root" || exit 2
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
[ "$device" = cuda ] || export MNMT_DEVICE=cpu

do_() { # one command, also a line of the log
    printf '+ %s\n' "$*"
    [ -n "$list" ] || "$@"
}
mnmt_() { do_ "$venv" -m mnmt_scale "$@"; }
ask() { [ -n "$list" ] || "$venv" -m mnmt_scale.bench.summary "$@"; }
worse() { [ "$1" -eq 0 ] || code=$1; }

bench() { # '' or a folder in the part's, the words of `mnmt bench`; once more on the references where kernels of ours failed
    local into=$out/$part${1:+/$1}
    shift
    mnmt_ bench "$@" --device "$device" --out "$into"; worse $?
    [ "$(ask failed "$into")" != yes ] || [ -n "${MNMT_KERNELS:-}" ] ||
        MNMT_KERNELS=reference mnmt_ bench "$@" --device "$device" --out "$into-reference"
}

part_environment() {
    if [ "$device" = cuda ]; then
        do_ nvidia-smi; worse $?
        do_ nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total,clocks.sm,clocks.mem,ecc.mode.current --format=csv
    fi
    for tool in nvcc c++ cmake ninja; do do_ $tool --version; done
    do_ "$python" -c 'import sys, torch; print(sys.version, torch.__version__, torch.version.cuda, torch.cuda.is_available())'; worse $?
    do_ "$python" -m pip list
}

part_build() {
    do_ "$python" launchers/gpu_check_venv.py make "$place/venv" || exit # the rest rests on it
    {
        do_ "$venv" launchers/gpu_check_venv.py fill --pip "$python" ${wheels:+--wheels "$wheels"} &&
            { [ ${#text[@]} -gt 0 ] || prepare_text; }
    } >"$place/fill.log" 2>&1 &
    local filling=$! cap=''
    PATH=$PATH:$(dirname "$("$python" -c 'import sys; print(sys.executable)')") # cmake of a virtual environment that is not active
    [ "$device" = cpu ] || cap=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
    do_ env ${cap:+"MNMT_CUDA_ARCHITECTURES=$cap-real"} "$venv" setup.py -q build_ext --inplace; worse $?
    wait $filling; worse $?
    cat "$place/fill.log"
    do_ "$venv" -c 'from mnmt_scale.kernels import native as n; print("problem:", n.problem, n.problem_on("'$device'"))'; worse $?
}

part_doctor() { mnmt_ doctor; worse $?; }

part_tests() { # together, then what failed once more, each in a process of its own: a lost CUDA context fails all after it
    local files which n=0
    mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests) # four workers that import all the others take 10 s more
    which=(-m gpu "${files[@]}")
    [ -z "$quick" ] || which=(tests/kernels/test_backend.py)
    do_ timeout --foreground --signal=INT --kill-after=15 $((limit * 2 / 3)) "$venv" -m pytest "${which[@]}" -n 4 -vv --timeout 90 \
        --continue-on-collection-errors --tb long -o console_output_style=classic -rsfE --junitxml "$out/tests/junit.xml" 2>&1 | tee "$out/tests/pytest.log"
    worse "${PIPESTATUS[0]}"
    sed -nE 's/^\[gw[0-9]+\] (FAILED|ERROR) (tests.*[^ ]) *$/\2/p' "$out/tests/pytest.log" | sort -u | head -n 24 >"$place/failed.txt"
    while IFS= read -r id; do
        if CUDA_LAUNCH_BLOCKING=1 timeout --foreground --kill-after=5 60 "$venv" -m pytest -m '' --tb long --timeout 50 "$id" \
            >"$out/tests/alone-$n.log" 2>&1; then echo "PASSED $id"; else echo "FAILED $id"; fi >>"$out/tests/alone.txt" &
        (((n += 1) % 4)) || wait
    done <"$place/failed.txt"
    wait
    [ "$n" -eq 0 ] || { tail -n +1 "$out"/tests/alone-*.log; rm "$out"/tests/alone-*.log; }
}

part_kernels() {
    local op size=()
    [ -z "$quick" ] || size=(--quick)
    mnmt_ bench kernels --targets ${size[@]+"${size[@]}"} --device "$device" --out "$out/kernels"; worse $?
    for op in $(ask lost "$out/kernels"); do
        mnmt_ bench kernels --targets ${size[@]+"${size[@]}"} --device "$device" --ops "$op" --out "$out/kernels/$op"
    done
}

small=(--preset tiny --batch-tokens 512 --rounds 2 --dtype fp32)
large=(--batch-tokens 32768 --dtype bf16)
train() { # '' or a folder, the words of `mnmt bench train` without its text
    [ "${text[0]:-}" = --store ] || prepare_text && bench "$1" train "${@:2}" ${text[@]+"${text[@]}"}
}
prepare_text() { # once for all trainings: of --data or, without it, of constructed languages
    local place=$place/constructed size=4000
    [ ${#data[@]} -eq 0 ] || { place=${place%/*}/text-$(basename "${data[1]}") size=32000; }
    local make="import sys; from pathlib import Path; from mnmt_scale.bench.train_data import constructed, prepared"
    make+="; place, *data = map(Path, sys.argv[1:]); prepared(data[0] if data else constructed(place), place, $size)"
    [ -f "$place/store-$size/store.json" ] || { mkdir -p "$place" && do_ "$venv" -c "$make" "$place" ${data[1]+"${data[1]}"}; } || worse $?
    [ -n "$list" ] || [ ! -f "$place/store-$size/store.json" ] || text=(--store "$place/store-$size")
}
part_train-base() {
    if [ -n "$quick" ]; then train '' "${small[@]}"; return; fi
    train '' --preset base --vocabulary-size 64000 "${large[@]}" --compile --compile-seconds 50
}
part_train-presets() {
    if [ -n "$quick" ]; then train '' "${small[@]}"; return; fi
    train m2m418 --preset m2m418 --vocabulary-size 128112 "${large[@]}" --rounds 3
    train others --preset big --preset ted --vocabulary-size 64000 "${large[@]}"
}
methods() { # '' or a folder, then what is measured and how
    local sizes=(--preset base --vocabulary-size 64000 "${large[@]}")
    [ -z "$quick" ] || sizes=("${small[@]}")
    train "$1" "${sizes[@]}" "${@:2}"
}
part_methods() {
    methods cats --method cats --seconds 10
    [ -n "$quick" ] || methods others --method gradnorm --method gramian --method multidds --method chi_ibr \
        --directions 11 --seconds 12
}
part_affinity() { methods '' --method affinity --tasks 4 --seconds 10; }
part_decode() {
    if [ -n "$quick" ]; then bench '' decode --preset tiny --vocabulary-size 500 --sentences 4 --repetitions 1 --beam 2; return; fi
    bench '' decode --preset base --vocabulary-size 64000 --sentences 500 --batch-tokens 32768 --beam 5 --dtype bf16 --dtype fp32 \
        --repetitions 5 --seconds 12
}
part_data() {
    local pairs=1000000
    [ -z "$quick" ] || pairs=2000
    mnmt_ bench data --pairs $pairs --repetitions 3 ${data[@]+"${data[@]}"} --out "$out/data"; worse $?
}
part_sanitizer() {
    do_ env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 "$venv" -m pytest -m gpu -vv -x \
        --timeout 200 tests/kernels/test_cuda.py; worse $?
}
# shellcheck source=launchers/gpu_check_quality.sh
source launchers/gpu_check_quality.sh

if [ -n "${GPU_CHECK_PART:-}" ]; then # the inner call: one part, under the outer one's clock
    part=$GPU_CHECK_PART limit=$GPU_CHECK_LIMIT code=0
    trap 'exit 124' TERM # once the running command has written what it has
    mkdir -p "$out/$part" "$place"
    "part_$part"
    exit "$code"
fi
if [ -n "$list" ]; then
    limit=600
    for part in "${parts[@]}"; do mkdir -p "$out/$part"; echo "# $part"; "part_$part"; done 2>&1 |
        sed "s|$venv -m mnmt_scale|mnmt|; s|$out/venv|VENV|g; s|$out|OUT|g; s|$root/||g"
    exit 0
fi

[ ! -e "$out/parts.json" ] || wrong "$out holds an earlier check, whose tables would be taken for those of this one"
[[ " ${parts[*]} " == *" build "* ]] || [ -x "$venv" ] || wrong "part build has not run yet: there is no $venv"
mkdir -p "$out/logs" || exit 2
noted=() failed=0 stopped='' child='' whole=0 due=0
trap 'stopped=yes; [ -z "$child" ] || kill -TERM "$child"' TERM INT
note() { # part, exit code, seconds, limit
    local command
    command=$(sed -n 's/^+ //p' "$out/logs/$1.log" | sed 's/[\\"]/\\&/g; s/[[:cntrl:]]/ /g' | paste -sd ';')
    noted+=("{\"part\": \"$1\", \"command\": \"$command\", \"rc\": $2, \"seconds\": $3, \"limit\": $4}")
    (IFS=,; printf '[%s]\n' "${noted[*]}") >"$out/parts.json"
    [ "$2" -eq 0 ] || failed=1
    printf '%-14s exit code %3d, %3d s of %3d\n' "$1" "$2" "$3" "$4"
}
for part in "${parts[@]}"; do whole=$((whole + ${share[$part]})); done
for part in "${parts[@]}"; do
    due=$((due + ${share[$part]}))
    limit=$((due * (minutes * 60 - 15) / whole - SECONDS)) began=$SECONDS # 15 s for the report and for ending what is stopped
    if [ -n "$stopped" ] || [ "$limit" -lt 3 ]; then : >"$out/logs/$part.log"; note "$part" 124 0 0; continue; fi
    # what runs in the background ignores an interrupt unless told otherwise
    env --default-signal=INT GPU_CHECK_PART="$part" GPU_CHECK_LIMIT="$limit" timeout --kill-after=10 "$limit" \
        bash "${BASH_SOURCE[0]}" ${arguments[@]+"${arguments[@]}"} --out "$out" >"$out/logs/$part.log" 2>&1 &
    child=$!
    wait "$child" 2>/dev/null; rc=$?
    [ -z "$stopped" ] || { wait "$child"; rc=124; } # the first wait ended with our own signal
    child=''
    note "$part" "$rc" $((SECONDS - began)) "$limit"
done
ask report "$out" || failed=1
exit "$failed"
