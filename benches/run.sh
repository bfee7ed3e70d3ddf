#!/usr/bin/env bash
# Everything that is measured on a processor, beside what else does the same work, in one call. Writes
# benches/results/DATE-MACHINE.md, and beside it what each comparison measured, as .jsonl: after an interruption the same
# command goes on with those.
#
#   benches/run.sh            builds, and measures for about an hour
#   benches/run.sh --quick    looks for trouble: the smallest networks for moments
#
# Settings: UNFREEZE (the program; without it a release build is made), PYTHON (python3; one with torch, torchvision and
# opencv-python-headless), ONNX_PYTHON (PYTHON; one with onnxruntime and numpy), DATA (folder of JPEG files; without it
# pictures are drawn), THREADS (all cores), MACHINE (name of the file; the processor's), RESULTS (benches/results), ARCHS
# (resnet18,resnet34,resnet50), SIZES (224 128), BATCHES (16,64,1; trainings take the first).
set -euo pipefail
cd "$(dirname "$0")/.."

quick=0
case ${1:-} in
    --quick) quick=1 ;;
    '') ;;
    *) sed -n '2,13p' "$0"; exit 2 ;;
esac
python=${PYTHON:-python3} onnx_python=${ONNX_PYTHON:-${PYTHON:-python3}} threads=${THREADS:-$(nproc)}
results=${RESULTS:-benches/results}
if [ -z "${UNFREEZE:-}" ]; then
    cargo build --release --locked
    UNFREEZE=${CARGO_TARGET_DIR:-target}/release/unfreeze
fi
unfreeze=$UNFREEZE
field() { lscpu | sed -n "s/^$1: *//p" | head -1; }
processor=$(field 'Model name' | tr -cs 'A-Za-z0-9\n' - | sed 's/-*$//')
name=$results/$(date -u +%F)-${MACHINE:-$(nproc)x-$processor}
mkdir -p "$results"

# Shorter and fewer where only trouble is looked for.
archs=${ARCHS:-resnet18,resnet34,resnet50} batches=${BATCHES:-16,64,1} blocks=(--blocks 6 --seconds 2 --warm-up 4)
read -ra sizes <<<"${SIZES:-224 128}"
# A step of a head takes milliseconds; the features of ResNet-34 are as wide as those of ResNet-18.
heads=(--arch resnet18,resnet50 --batch-size 64 --blocks 10 --seconds 0.5 --warm-up 1)
timing=(--rounds 5 --seconds 1) data=(--rounds 5 --seconds 1) minutes=600
if [ $quick = 1 ]; then
    archs=resnet18 sizes=(64) batches=2 blocks=(--blocks 2 --seconds 0.05 --warm-up 0 --quick)
    heads=(--arch resnet18 --batch-size 64 "${blocks[@]}")
    timing=(--rounds 1 --seconds 0.05 --warm-up 0) data=(--rounds 1 --seconds 0.1 --images 4) minutes=5
fi

title() { printf '\n## %s\n\n' "$1"; }
has() { "$1" -c "import $2" 2>/dev/null; }

# Other side's program and script, file of measurements, size, and what is compared.
compare() {
    local python=$1 script=$2 out=$name.$3.jsonl size=$4
    shift 4
    "$unfreeze" bench compare --python "$python" --script "benches/$script" --out "$out" --device cpu \
        --threads "$threads" --dtype f32 --size "$size" --minutes "$minutes" --retry "$@"
}

machine() {
    printf '# %s\n\n' "$(basename "$name")"
    printf 'Written by `benches/run.sh`; not edited.\n\n'
    printf -- '- commit: %s%s\n' "$(git rev-parse --short HEAD)" "$(git diff --quiet HEAD || echo ', with changes')"
    printf -- '- date: %s\n' "$(date -u +'%F %H:%M UTC')"
    printf -- '- processor: %s, %s cores, %s threads used\n' "$(field 'Model name')" "$(nproc)" "$threads"
    printf -- '- caches: L1d %s, L2 %s, L3 %s\n' "$(field 'L1d cache')" "$(field 'L2 cache')" "$(field 'L3 cache')"
    printf -- '- vectors: %s\n' "$(field Flags | tr ' ' '\n' | grep -E '^(avx|fma|amx|asimd|sve)' | tr '\n' ' ' || true)"
    printf -- '- memory: %s GiB\n' "$(awk '/MemTotal/ {printf "%.0f", $2 / 1048576}' /proc/meminfo)"
    printf -- '- system: %s, Linux %s\n' "$(. /etc/os-release && echo "$PRETTY_NAME")" "$(uname -r)"
    printf -- '- compiler: %s\n' "$(rustc --version 2>/dev/null || echo unknown)"
    printf -- '- load before: %s\n' "$(cut -d' ' -f1-3 /proc/loadavg)"
    if [ $quick = 1 ]; then printf -- '- **a quick run: its times mean nothing**\n'; fi
}

all() {
    machine
    local size
    if has "$python" torch,torchvision; then
        for size in "${sizes[@]}"; do
            title "Frozen forward at $size pixels, beside PyTorch"
            compare "$python" torch_baseline.py pytorch "$size" --work forward --arch "$archs" --batch-size "$batches" \
                --variants eager,folded-eager "${blocks[@]}"
            title "Training steps at $size pixels, beside PyTorch"
            compare "$python" torch_baseline.py pytorch "$size" --work full,layer4 --arch "$archs" \
                --batch-size "${batches%%,*}" --variants eager "${blocks[@]}"
        done
        local classes
        for classes in 10 1000; do
            title "Heads of $classes classes on cached features, beside PyTorch's loop over one tensor"
            compare "$python" torch_baseline.py pytorch 224 --work cached,cached-fastai --classes "$classes" \
                --variants eager "${heads[@]}"
            title "Heads of $classes classes on cached features, beside PyTorch's DataLoader"
            compare "$python" torch_baseline.py dataloader 224 --work cached,cached-fastai --classes "$classes" \
                --variants dataloader "${heads[@]}"
        done
    else
        title "PyTorch: not compared, $python has no torch and torchvision"
    fi
    if has "$onnx_python" onnxruntime; then
        for size in "${sizes[@]}"; do
            title "Frozen forward at $size pixels, beside onnxruntime"
            compare "$onnx_python" onnxruntime_baseline.py onnxruntime "$size" --work forward --arch "$archs" \
                --batch-size "$batches" --variants folded "${blocks[@]}"
        done
    else
        title "onnxruntime: not compared, $onnx_python has none"
    fi
    title 'From image files to batches'
    # shellcheck disable=SC2086 # no folder is no argument
    "$python" benches/data_baseline.py ${DATA:+"$DATA"} --unfreeze "$unfreeze" --threads "$threads" "${data[@]}"
    local arch
    for arch in ${archs//,/ }; do
        title "Threads, batches and sizes: $arch"
        printf '```\n'
        "$unfreeze" bench scaling --arch "$arch" "${timing[@]}"
        printf '```\n'
    done
    title 'Operations: resnet18'
    printf '```\n'
    "$unfreeze" bench ops --arch resnet18 --device cpu --threads "$threads" --batch-size "${batches%%,*}" "${timing[@]}"
    printf '```\n'
}

# Whole or not at all.
all >"$name.md.part"
mv "$name.md.part" "$name.md"
echo "$name.md"
# "6 of 6 cells measured; 5 compared: …"
if awk '/ cells measured;/ && $6 != $3 { found = 1 } END { exit !found }' "$name.md"; then
    echo "not all cells were compared: $name.*.jsonl say why" >&2
    exit 1
fi
