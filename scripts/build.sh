#!/usr/bin/env bash
# Builds the native libraries: build/libdlfs_cpu.so and build/libdlfs_cuda.so.
#
#   scripts/build.sh [cpu|cuda|all] [--release]
#
# Without a name: whatever can be built on this machine. With one: that library, or an error that says what is missing.
# --release: for other machines; a portable CPU baseline, and CUDA code for compute capabilities 75, 80, 86, 89 and 90
# plus PTX. Otherwise for this machine: its processor, and its cards (90 where there is none).
# Environment: DLFS_CUDA_ARCHS, such as "80 90a", replaces the CUDA architectures; CUDA_HOME and others say where CUDA
# is (see find-cuda.sh); DLFS_WERROR=1 makes compiler warnings errors; DLFS_JOBS is the number of parallel compilers.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
. "$root/scripts/find-cuda.sh"

usage() { sed -n '2,/^set -e/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

which=auto
release=OFF
for argument in "$@"; do
  case "$argument" in
    cpu | cuda | all) which="$argument" ;;
    --release) release=ON ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      usage >&2
      die "build.sh: unknown argument '$argument'"
      ;;
  esac
done

cd "$root"
cxx="${CXX:-c++}"
generator=()
tools=$(missing_tools | paste -sd ' ' -)
[ -z "$tools" ] || die "no library can be built without: $tools (the names of Debian's and Ubuntu's packages)"
if command -v ninja >/dev/null; then generator=(-G Ninja); fi

# Joins lines with a comma.
joined() { paste -sd, | sed 's/,/, /g'; }

# Joins arguments with semicolons: a CMake list.
cmake_list() {
  local IFS=";"
  echo "$*"
}

# Configures and builds one library. Arguments: its name, CMake's arguments...
build() {
  local name="$1" tree="build/$1" log
  shift
  # A tree configured for another folder, by another generator or compilers cannot be reused.
  local identity="$root ${generator[*]} $cxx"
  [ "$name" = cpu ] || identity="$identity $cuda_nvcc"
  if [ -f "$tree/identity" ] && [ "$(cat "$tree/identity")" != "$identity" ]; then
    rm -rf "$tree"
  fi
  mkdir -p "$tree"
  echo "$identity" >"$tree/identity"
  log="$tree/configure.log"
  if ! cmake -S . -B "$tree" "${generator[@]}" -DDLFS_BACKEND="$name" -DDLFS_RELEASE="$release" \
    -DDLFS_WERROR="${DLFS_WERROR:-OFF}" -DCMAKE_CXX_COMPILER="$cxx" "$@" >"$log" 2>&1; then
    cat "$log" >&2
    die "configuring the $name library failed"
  fi
  sed -n 's/^-- dlfs: //p' "$log" | while read -r line; do say "$line"; done
  cmake --build "$tree" --parallel "${DLFS_JOBS:-$(getconf _NPROCESSORS_ONLN)}" || die "building the $name library failed"
}

build_cpu() {
  build cpu
}

build_cuda() {
  local wanted arch archs=() ptx="" known newest why
  if [ -n "${DLFS_CUDA_ARCHS:-}" ]; then
    wanted="${DLFS_CUDA_ARCHS//[;,]/ }"
  elif [ "$release" = ON ]; then
    wanted="75 80 86 89 90" ptx=90
  else
    wanted=$(cuda_card_capabilities)
    wanted="${wanted:-90}"
  fi
  known=$("$cuda_nvcc" --list-gpu-arch | sed -n 's/^compute_\([0-9]*\)$/\1/p' | sort -n)
  newest=$(tail -n 1 <<<"$known")
  for arch in $wanted; do
    if [ "${arch%[af]}" -gt "$newest" ]; then
      # The driver compiles PTX of the newest known architecture for a card that is newer.
      archs+=("$newest")
      ptx="$newest"
    elif ! grep -qx "${arch%[af]}" <<<"$known"; then
      why="CUDA $cuda_version compiles for compute capabilities $(joined <<<"$known"), not for $arch"
      [ "$which" = auto ] || die "$why"
      say "the CUDA library is left out: $why"
      return
    elif [ "$arch" = 90 ]; then
      # 90a is 90 with Hopper's own instructions, and runs on every card of capability 9.0.
      archs+=(90a)
    else
      archs+=("$arch")
    fi
  done
  mapfile -t archs < <(printf '%s\n' "${archs[@]}" | sort -uV)
  build cuda -DCMAKE_CUDA_COMPILER="$cuda_nvcc" -DCMAKE_CUDA_HOST_COMPILER="$(command -v "$cxx")" \
    -DDLFS_CUDA_INCLUDE_DIRS="$(cmake_list "${cuda_includes[@]}")" \
    -DDLFS_CUDA_LIBRARIES="$(cmake_list "${cuda_libraries[@]}")" \
    -DDLFS_CUDA_PRELOADS="$(cmake_list "${cuda_preloads[@]}")" \
    -DDLFS_CUDA_RPATH="$(cmake_list "${cuda_rpaths[@]}")" \
    -DDLFS_NCCL_INCLUDE_DIR="$cuda_nccl" -DDLFS_CUDA_ARCHS="$(cmake_list "${archs[@]}")" -DDLFS_CUDA_PTX="$ptx"
}

cpu_missing=""
if [ "$which" != cuda ]; then
  cpu_missing=$(missing_cpu_packages | joined)
  [ -z "$cpu_missing" ] || cpu_missing="$cpu_missing (the names of Debian's and Ubuntu's packages)"
fi
have_cuda=no
if [ "$which" != cpu ] && find_cuda "$root"; then have_cuda=yes; fi

case "$which" in
  cpu | all)
    [ -z "$cpu_missing" ] || die "the CPU library cannot be built; missing: $cpu_missing"
    ;;&
  cuda | all)
    [ $have_cuda = yes ] ||
      die "the CUDA library cannot be built; missing: $(printf '%s\n' "${cuda_missing[@]}" | joined)." \
        "Searched: $(printf '%s\n' "${cuda_tried[@]}" | joined). To get it: $cuda_hint"
    ;;
  auto)
    if [ -n "$cpu_missing" ] && [ $have_cuda = no ]; then
      die "no library can be built. For the CPU library, missing: $cpu_missing." \
        "For the CUDA library, missing: $(printf '%s\n' "${cuda_missing[@]}" | joined); $cuda_hint"
    fi
    [ -z "$cpu_missing" ] || say "the CPU library is left out; missing: $cpu_missing"
    ;;
esac

if [ "$which" != cuda ] && [ -z "$cpu_missing" ]; then build_cpu; fi
if [ "$which" != cpu ] && [ $have_cuda = yes ]; then build_cuda; fi
