#!/usr/bin/env bash
# Sets up everything that dlfs needs: Bun, JavaScript dependencies, compiler and libraries, the native libraries.
# Safe to repeat; under a second when nothing changed. Each step keeps a stamp of what it was done for.
#
#   scripts/setup.sh [--quiet]
#
# --quiet: prints nothing when nothing was to do. Environment: see build.sh; DLFS_LINK_BUN=0 keeps setup from linking
# `bun` into a folder on PATH.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
. "$root/scripts/install-bun.sh"
. "$root/scripts/find-cuda.sh"

quiet=no
case "${1:-}" in
  "") ;;
  --quiet) quiet=yes ;;
  *) die "setup.sh: unknown argument '$1' (expected nothing or --quiet)" ;;
esac
changed=no

cd "$root"
mkdir -p node_modules build
if command -v flock >/dev/null; then
  exec 9>node_modules/.dlfs-lock
  flock -n 9 || { say "waiting for another setup of this folder" && flock 9; }
fi

# ---- Bun ---------------------------------------------------------------------------------------------------------

# PATH as the user's shell has it: for scripts, npm and Bun put the node_modules/.bin of the project and of all folders above it
# in front. A Bun that lies there would be missing where scripts are started by themselves.
shell_path=$(printf %s "$PATH" | tr : '\n' | grep -v '/node_modules/\.bin/*$' | paste -sd: -)
bun=""
if ! PATH="$shell_path" find_bun; then
  install_bun
  find_bun || die "the installed Bun was not found; remove node_modules/@oven and try again"
  changed=yes
fi
case "$bun" in
  "$root"/node_modules/*) link_bun $changed ;;
esac

# ---- JavaScript dependencies -------------------------------------------------------------------------------------

stamp=$(cat package.json bun.lock bunfig.toml | sha256sum)
if [ "$(cat node_modules/.dlfs-dependencies 2>/dev/null)" != "$stamp" ]; then
  say "installing JavaScript dependencies"
  log=$(mktemp)
  if ! "$bun" install --frozen-lockfile >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    die "installing JavaScript dependencies failed"
  fi
  rm -f "$log"
  echo "$stamp" >node_modules/.dlfs-dependencies
  changed=yes
fi

# ---- compiler and libraries --------------------------------------------------------------------------------------

install_packages() {
  local as_root=() log options=(-y -q --no-install-recommends -o Acquire::Retries=1 -o Acquire::http::Timeout=20)
  if [ "$(id -u)" != 0 ]; then as_root=(sudo -n); fi
  if ! command -v apt-get >/dev/null || { [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; }; then
    warn "please install (as root): apt-get install $*, or your system's packages of the same"
    return 1
  fi
  say "installing by apt: $*"
  log=$(mktemp)
  # The package lists may be missing or old: fetch them when the first try fails.
  if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$@" >"$log" 2>&1 &&
    ! { "${as_root[@]}" apt-get update -q -o Acquire::Retries=1 -o Acquire::http::Timeout=20 >"$log" 2>&1 &&
      "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$@" >>"$log" 2>&1; }; then
    tail -n 5 "$log" >&2
    rm -f "$log"
    warn "apt could not install: $*"
    return 1
  fi
  rm -f "$log"
}

mapfile -t packages < <(missing_tools && missing_cpu_packages)
mapfile -t image_packages < <(missing_image_packages)
mapfile -t collective_packages < <(missing_collective_packages)
wanted="${packages[*]} ${image_packages[*]} ${collective_packages[*]}"
if [ "$wanted" != "  " ] && [ "$(cat build/.dlfs-packages 2>/dev/null)" != "$wanted" ]; then
  # What could not be installed is not tried again until the list changes; build.sh says whether it can do without.
  rm -f build/.dlfs-packages
  [ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}" || echo "$wanted" >build/.dlfs-packages
  # By themselves, so that a system without these packages gets the others.
  [ ${#image_packages[@]} -eq 0 ] || install_packages "${image_packages[@]}" || echo "$wanted" >build/.dlfs-packages
  [ ${#collective_packages[@]} -eq 0 ] || install_packages "${collective_packages[@]}" || echo "$wanted" >build/.dlfs-packages
  changed=yes
fi

# ---- native libraries --------------------------------------------------------------------------------------------

# Everything that the libraries depend on: sources, build files, this machine's processor, cards and CUDA.
native_stamp() {
  find csrc cmake CMakeLists.txt scripts/build.sh scripts/find-cuda.sh -type f -print0 | sort -z | xargs -0 sha256sum
  grep -m1 -E '^(flags|Features)' /proc/cpuinfo || true
  cat /proc/driver/nvidia/gpus/*/information 2>/dev/null | grep Model || true
  echo "$root ${CXX:-} ${DNNLROOT:-} ${DLFS_CUDA_ARCHS:-} $(missing_image_packages) $(missing_collective_packages) $(cat build/.dlfs-packages 2>/dev/null)"
  find_cuda "$root" || true
  printf '%s\n' "${cuda_found[@]}" "${cuda_missing[@]}"
}

stamp=$(native_stamp | sha256sum)
libraries=(build/libdlfs_*.so)
if [ "$(cat build/.dlfs-native 2>/dev/null)" != "$stamp" ] || [ ! -f "${libraries[0]}" ]; then
  say "building the native libraries"
  bash scripts/build.sh
  echo "$stamp" >build/.dlfs-native
  changed=yes
fi

if [ $quiet = no ]; then
  libraries=(build/libdlfs_*.so)
  say "ready: Bun $("$bun" --version), ${libraries[*]}. Next: npm run train, npm test, npm run dlfs -- doctor"
elif [ $changed = yes ]; then
  say "set-up done"
fi
