# Sourced by the scripts: where the project is, how messages look, and where Bun is.

# shellcheck shell=bash
# shellcheck disable=SC2034  # set for the script that sources this one
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bun_version=1.4.5 # the oldest that dlfs runs on, and the one that setup.sh installs

say() { printf 'dlfs: %s\n' "$*"; }
warn() { printf 'dlfs: %s\n' "$*" >&2; }
die() {
  warn "$@"
  exit 1
}

# Is version $1 at least version $2? (x.y.z)
version_at_least() {
  [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# Sets `bun` to a Bun that is new enough: the one on PATH, else the one that setup.sh installed in node_modules.
find_bun() {
  local candidate version
  for candidate in "$(command -v bun || true)" "$root"/node_modules/@oven/bun-*/bin/bun; do
    [ -n "$candidate" ] && [ -x "$candidate" ] || continue
    version=$("$candidate" --version 2>/dev/null) || continue
    if version_at_least "${version%%-*}" "$bun_version"; then
      bun="$candidate"
      return 0
    fi
  done
  bun=""
  return 1
}

# Prints the Debian packages of missing build tools, one a line.
missing_tools() {
  command -v "${CXX:-c++}" >/dev/null || echo g++
  command -v cmake >/dev/null || echo cmake
  command -v ninja >/dev/null || command -v make >/dev/null || echo ninja-build
}

# Prints the Debian packages of the libraries that the CPU library needs and the compiler does not find, one a line.
missing_cpu_packages() {
  missing_packages dnnl.hpp libdnnl-dev jpeglib.h libjpeg-dev
}

# The same of the libraries that the libraries can do without: they decode PNG and WebP files.
missing_image_packages() {
  missing_packages png.h libpng-dev webp/decode.h libwebp-dev
}

# The same of the library that processes on CPUs train together by, which the CPU library can do without.
missing_collective_packages() {
  missing_packages gloo/allreduce.h libgloo-dev
}

# Arguments: a header and the package that has it, any number of times. Prints the packages whose header is not found.
missing_packages() {
  local found
  found=$(printf '#if __has_include(<%s>)\n%s\n#endif\n' "$@" |
    "${CXX:-c++}" -E -P -x c++ ${DNNLROOT:+-I"$DNNLROOT/include"} - 2>/dev/null || true)
  while [ $# -gt 0 ]; do
    grep -q "$2" <<<"$found" || echo "$2"
    shift 2
  done
}
