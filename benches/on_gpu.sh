#!/usr/bin/env bash
# Everything that needs a GPU, in one call, with a short table at the end.
#
#   benches/on_gpu.sh              builds and runs on this machine (Rust, a CUDA driver, NVRTC)
#   benches/on_gpu.sh build DIR    builds only: programs that need no Rust and no source, to carry to a GPU machine
#   benches/on_gpu.sh run DIR      runs what was built, on the GPU machine
#
# Settings: DEVICE (cuda:0), OUT (where logs go; a temporary folder), STEP_SECONDS (limit of each step, 240), SKIP
# (words separated by spaces: tests sanitizer bench compare), DTYPES of the benchmarks (bf16 tf32 f32; before compute
# capability 8.0 f32 alone). Of the comparison with PyTorch: PYTHON (python3; one with torch and torchvision), MINUTES
# (25), COMPARE (further flags of `unfreeze bench compare`), RESULTS (where DATE-DEVICE.md and .jsonl go,
# benches/results or the built folder's results; a second run of a day goes on there).
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
# The programs in which tests touch the GPU; the library's own tests are all of its operations.
suites="golden_ops golden_networks gpu graphs conformance"

build() {
    mkdir -p "$1"
    local folder
    folder=$(cd "$1" && pwd)
    cd "$here"
    export RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=$here=. --remap-path-prefix=$HOME=~ -C strip=symbols"
    cargo build --release --locked
    cp "${CARGO_TARGET_DIR:-target}/release/unfreeze" "$folder/"
    local executables
    # shellcheck disable=SC2046 # one flag per suite
    executables=$(cargo test --release --locked --no-run --lib $(printf -- '--test %s ' $suites) 2>&1 |
        tee /dev/stderr | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
    for executable in $executables; do
        local name
        name=$(basename "$executable")
        cp "$executable" "$folder/test-${name%-*}"
    done
    cp "$here"/benches/{on_gpu.sh,baseline.py,torch_baseline.py} "$folder/"
    git rev-parse --short HEAD >"$folder/COMMIT" 2>/dev/null || echo unknown >"$folder/COMMIT"
    if [ -d "${UNFREEZE_SHARED:-../shared}/golden" ]; then
        mkdir -p "$folder/shared/golden"
        cp "${UNFREEZE_SHARED:-../shared}"/golden/{ops.safetensors,networks.json} "$folder/shared/golden/"
    fi
    du -sh "$folder"
}

run() {
    cd "$1"
    local device=${DEVICE:-cuda:0} out=${OUT:-$(mktemp -d)} limit=${STEP_SECONDS:-240} skip=" ${SKIP:-} "
    local results=${RESULTS:-results}
    mkdir -p "$out" "$results"
    out=$(cd "$out" && pwd)
    results=$(cd "$results" && pwd)
    export UNFREEZE_TEST_DEVICE=$device UNFREEZE_SHARED=$PWD/shared UNFREEZE_REQUIRE_NVRTC=1
    # One thread: what the sanitizer and the memory tests see is then one test's doing.
    export RUST_TEST_THREADS=1
    local table=$out/table.txt failed=0
    {
        nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || echo "nvidia-smi is missing"
        date -u +%F
    } | tee "$table"

    step() { # name, command …
        local name=$1 begin=$SECONDS verdict
        shift
        if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then verdict=passed; else verdict="FAILED ($?)" failed=1; fi
        printf '%-34s %-12s %4d s   %s\n' "$name" "$verdict" $((SECONDS - begin)) \
            "$(grep -E '^test result|images/s|cells measured|ERROR SUMMARY|RACECHECK SUMMARY' "$out/$name.log" | tail -1 | cut -c1-90)" |
            tee -a "$table"
        if [ "$verdict" != passed ]; then tail -40 "$out/$name.log"; fi
    }

    # What may slow the GPU down: clocks, power, temperature, reasons.
    state() {
        nvidia-smi --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active \
            --format=csv,noheader 2>/dev/null || echo unknown
    }

    compare() {
        local python=${PYTHON:-python3} minutes=${MINUTES:-25} name before
        if ! "$python" -c 'import torch, torchvision' 2>/dev/null; then
            echo "$python has no torch and torchvision: not compared" | tee -a "$table"
            return
        fi
        name=$results/$(date -u +%F)-$(head -1 "$table" | cut -d, -f1 | tr -cs 'A-Za-z0-9\n' - | sed 's/-*$//')
        # shellcheck disable=SC2206 # flags, separated by spaces
        local command=(./unfreeze bench compare --python "$python" --script torch_baseline.py --device "$device"
            --out "$name.jsonl" ${COMPARE:-})
        before=$(state)
        # The cell that is under way when the time is up may have to compile.
        limit=$((${minutes%.*} * 60 + 900)) step compare "${command[@]}" --minutes "$minutes"
        {
            printf '# %s\n\n' "$(basename "$name")"
            printf -- '- GPU, driver: %s\n- commit: %s\n' "$(head -1 "$table")" "$(cat COMMIT)"
            printf -- '- clocks, power, temperature, throttling: before %s; after %s\n\n' "$before" "$(state)"
            "${command[@]}" --minutes 0
        } >"$name.md"
        echo "results: $name.md" | tee -a "$table"
    }

    step devices ./unfreeze devices
    if [[ $skip != *" tests "* ]]; then
        step test-unfreeze ./test-unfreeze
        for suite in $suites; do step "test-$suite" "./test-$suite"; done
    fi
    local sanitizer
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1 || true)
    if [[ $skip != *" sanitizer "* ]] && [ -n "$sanitizer" ]; then
        # The operations' tests launch every kernel; whole networks would take hours under it.
        for tool in memcheck racecheck initcheck; do
            step "sanitizer-$tool" "$sanitizer" --tool "$tool" --error-exitcode 9 \
                ./test-unfreeze ops::
        done
    elif [ -z "$sanitizer" ]; then
        echo "compute-sanitizer is missing: not run" | tee -a "$table"
    fi
    if [[ $skip != *" bench "* ]]; then
        local arch dtype what
        for dtype in ${DTYPES:-bf16 tf32 f32}; do
            for arch in resnet18 resnet34 resnet50; do
                local flags=(--arch "$arch" --dtype "$dtype" --batch-size 64 --device "$device")
                for what in forward train; do
                    step "bench-$what-$arch-$dtype" ./unfreeze bench "$what" "${flags[@]}"
                done
                step "bench-train-$arch-$dtype-launched" ./unfreeze bench train --graphs off "${flags[@]}"
                step "explain-$arch-$dtype" ./unfreeze bench train --explain "${flags[@]}"
                if [ "$arch" = resnet34 ]; then continue; fi # its shapes are those of resnet18
                step "ops-$arch-$dtype" ./unfreeze bench ops --rounds 3 --seconds 0.05 "${flags[@]}"
            done
        done
        local calls
        for calls in on off; do
            step "bench-cache-graphs-$calls" ./unfreeze bench cache --graphs "$calls" --arch resnet50 --batch-size 64 \
                --device "$device"
        done
    fi
    if [[ $skip != *" compare "* ]]; then compare; fi
    printf '\nlogs: %s\n\n' "$out"
    cat "$table"
    return $failed
}

case ${1:-} in
    build) build "${2:?folder to build into}" ;;
    run) run "${2:?folder that was built}" ;;
    '')
        folder=$(mktemp -d)
        build "$folder"
        RESULTS=${RESULTS:-$here/benches/results} run "$folder"
        ;;
    *)
        sed -n '2,12p' "$0"
        exit 2
        ;;
esac
