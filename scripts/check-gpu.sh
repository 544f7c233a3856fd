#!/usr/bin/env bash
# What machines without a GPU cannot check, in parts that are run by name, each with its time; all where none is named:
#
#   bash scripts/check-gpu.sh [tests] [memcheck] [racecheck] [initcheck] [decoding] [data] [peers] [training] [inference] [ranks]
#
#   tests      the whole suite on the CUDA backend
#   memcheck   compute-sanitizer over the tests of operations; racecheck and initcheck over those that use shared memory
#              and those that write all of their result
#   decoding   the decoding of JPEGs against libjpeg-turbo's, for shares of the JPEG engines, and its rate beside torchvision's
#   data       the data path's rates and memory, beside torchvision's pipelines
#   peers      outputs of torchvision's detectors, layers' times beside PyTorch's
#   training   a training step in each precision, what saves cost, the largest batch, and, where DATA names a data set with images
#              of 480x640 and the splits train and val, convergence beside torchvision's: half an hour
#   inference  images a second of dlfs predict and of dlfs serve, beside torchvision's
#   ranks      training on all GPUs: correctness, faults, and how a step scales, with other buckets and fewer of NCCL's blocks
#
# PYTHON (default python3) has PyTorch and torchvision; results go to the folder OUT (default: a new one under /tmp). The status is 1
# where a part failed; the others are run all the same.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
python=${PYTHON:-python3}
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
export DLFS_BACKEND=cuda
find_bun || die "no Bun found: run npm run setup"
failed=()

# run NAME COMMAND...: its output goes to the terminal's last lines and, whole, to a file.
run() {
  local name=$1 start=$SECONDS status=0
  shift
  say "$name"
  "$@" >"$out/$name.log" 2>&1 || status=$?
  grep -aE '^\(fail\)|^ *[0-9]+ (pass|fail|skip)|ERROR SUMMARY|^error|hazard|^(alone|together):|standard error' "$out/$name.log" | tail -n 40
  say "$name: status $status after $((SECONDS - start)) s, all of it in $out/$name.log"
  [ "$status" -eq 0 ] || failed+=("$name")
}

ops() { printf 'tests/ops/%s.test.ts ' "$@"; }

sanitize() {
  local tool=$1
  shift
  # Kernels of our own alone: the libraries' are not ours to judge.
  run "$tool" compute-sanitizer --tool "$tool" --kernel-name kns=dlfs --error-exitcode 1 "$bun" test --timeout 600000 "$@"
}

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(tests memcheck racecheck initcheck decoding data peers training inference ranks)
for part in "${parts[@]}"; do
  # shellcheck disable=SC2046 # names without spaces
  case $part in
    tests) run tests "$bun" test --timeout 120000 ;;
    memcheck) sanitize memcheck tests/ops ;;
    racecheck) sanitize racecheck $(ops postprocess quantize optimizer) ;;
    initcheck) sanitize initcheck $(ops elementwise preprocess images augment activation channel dropout init optimizer) ;;
    decoding)
      run compare-decoders "$bun" run scripts/compare-decoders.ts --hardware 0,50,100 --files 128
      run bench-decode "$bun" run lib/cli/main.ts bench decode --sweep --files 512 --repetitions 5 --peers "$python" --out "$out/decode.json"
      ;;
    data)
      run bench-data "$bun" run lib/cli/main.ts bench data --repetitions 5 --peers "$python" --out "$out/data.json"
      run loader-memory "$bun" run scripts/check-loader-memory.ts
      run records-memory "$bun" run scripts/check-loader-memory.ts --records
      ;;
    peers)
      for model in retinanet fcos ssdlite; do
        run "torchvision-$model" "$bun" run scripts/compare-torchvision.ts --python "$python" --model "$model"
      done
      run bench-layers "$bun" run lib/cli/main.ts bench layers --peers "$python" --out "$out/layers.json"
      ;;
    training)
      for precision in bf16 fp16 tf32 fp32; do
        run "train-$precision" "$bun" run lib/cli/main.ts bench train --precision "$precision" --batch 8 --repetitions 5
      done
      run saves "$bun" run scripts/bench-saves.ts
      run batch-auto "$bun" run lib/cli/main.ts train --data demo --model retinanet_resnet50_fpn --size 640 --batch auto --dry-run
      [ -z "${DATA:-}" ] || run convergence "$bun" run scripts/compare-convergence.ts --python "$python" --data "$DATA" --jobs 3 \
        --iterations 1500 --out "$out/convergence"
      ;;
    inference)
      run bench-predict "$bun" run scripts/bench-predict.ts --images 8192 --python "$python" --json "$out/predict.json"
      run bench-service "$bun" run scripts/bench-service.ts --clients 32,64,128 --processes 4 --peers "$python" --json "$out/service.json"
      ;;
    ranks)
      gpus=$(nvidia-smi -L | wc -l)
      scaling() { run "$1" "$bun" run lib/cli/main.ts launch --gpus "$gpus" -- scripts/bench-ranks.ts --steps 40 "${@:2}"; }
      # What NCCL says of itself would stand among what these tests read.
      unset NCCL_DEBUG
      run ranks "$bun" test --timeout 60000 tests/tensor/communicator.test.ts tests/train/data-parallel.test.ts \
        tests/train/train-ranks.test.ts tests/distributed
      scaling scaling
      scaling scaling-sync-bn --sync-bn
      scaling scaling-50-mib --bucket-mib 50
      scaling scaling-100-mib --bucket-mib 100
      NCCL_MAX_CTAS=8 scaling scaling-8-ctas
      ;;
    *) die "unknown part $part" ;;
  esac
done
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
