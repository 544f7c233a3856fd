#!/usr/bin/env bash
# Fuzzes the decoder of image files (tests/fuzz/images.cpp) under AddressSanitizer and UndefinedBehaviorSanitizer, on all processors.
#
#   scripts/fuzz-images.sh [COUNT] [SEED]        default: 1000000 mutated files, seed 1
#
# The files that are mutated are those of tests/data/jpegs and tests/golden/ops/images.json (JPEG, PNG and WebP of every
# kind, some with EXIF data), and those of FUZZ_FILES, where it is set. A file that crashes, is decoded into the wrong memory
# or takes longer than 10 s is left in build/fuzz, and the script ends with 1.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
count="${1:-1000000}" seed="${2:-1}"
for number in "$count" "$seed"; do
  [[ "$number" =~ ^[1-9][0-9]*$ ]] || die "fuzz-images.sh: expected numbers from 1, got '$number'"
done

find_bun || die "not set up. Run: npm run setup"
[ -z "$(missing_image_packages)" ] || die "fuzz-images.sh: missing:" $(missing_image_packages)

mkdir -p build/fuzz
program="$root/build/fuzz/fuzz_images"
"${CXX:-c++}" -std=c++17 -O1 -g -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all \
  -fno-omit-frame-pointer -DDLFS_HAVE_LIBJPEG=1 -DDLFS_HAVE_LIBPNG=1 -DDLFS_HAVE_LIBWEBP=1 \
  -DDLFS_HEADER_HASH='"fuzz"' -Icsrc -Icsrc/include tests/fuzz/images.cpp csrc/common/{exif,image,jpeg_header,jpeg_turbo}.cpp \
  csrc/common/{orientation,png_file,status,webp_file}.cpp csrc/cuda/jpeg_route.cpp -ljpeg -lpng -lwebp -o "$program" ||
  die "fuzz-images.sh: the fuzzer cannot be built; it needs a compiler with AddressSanitizer and libjpeg-turbo's headers"
rm -rf build/fuzz/files
"$bun" -e '
  const { cases } = await Bun.file("tests/golden/ops/images.json").json();
  for (const [i, { arrays }] of cases.entries()) {
    await Bun.write(`build/fuzz/files/${i}`, Buffer.from(arrays.bytes.data, "base64"));
  }'

read -ra more <<<"${FUZZ_FILES:-}"
files=("$root"/tests/data/jpegs/*.jpg "$root"/build/fuzz/files/* "${more[@]}")
jobs=$(getconf _NPROCESSORS_ONLN)
[ "$count" -ge "$jobs" ] || jobs=1
cd build/fuzz
pids=()
for ((job = 0; job < jobs; ++job)); do
  first=$((count * job / jobs))
  ASAN_OPTIONS=hard_rss_limit_mb=2048:detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 \
    "$program" "$seed" "$first" $((count * (job + 1) / jobs - first)) "${files[@]}" &
  pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=1; done
[ $status -eq 0 ] || die "fuzz-images.sh: a file failed; it lies in build/fuzz"
