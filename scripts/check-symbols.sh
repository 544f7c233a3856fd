#!/usr/bin/env bash
# Compares the functions that csrc/include/dlfs.h declares with the symbols that each library exports, both ways.
#
#   scripts/check-symbols.sh [cpu] [cuda]      without a name: the libraries that are built
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

# Comments are removed first, so that a name in prose does not count.
declared=$("${CC:-cc}" -E -P csrc/include/dlfs.h | grep -oE '\bdlfs_[a-z0-9_]+ *\(' | tr -d ' (' | sort -u)
[ -n "$declared" ] || die "csrc/include/dlfs.h declares no function"

if [ $# -eq 0 ]; then
  for library in build/libdlfs_*.so; do
    name="${library#build/libdlfs_}"
    set -- "$@" "${name%.so}"
  done
fi

status=0
for name in "$@"; do
  library="build/libdlfs_$name.so"
  [ -f "$library" ] || die "$library is not built. Run: bash scripts/build.sh $name"
  exported=$(nm -D --defined-only "$library" | awk '{ print $NF }' | sort -u)
  missing=$(comm -23 <(echo "$declared") <(echo "$exported"))
  extra=$(comm -13 <(echo "$declared") <(echo "$exported"))
  if [ -n "$missing" ]; then
    warn "$library does not export, though dlfs.h declares:" "$(tr '\n' ' ' <<<"$missing")"
    status=1
  fi
  if [ -n "$extra" ]; then
    warn "$library exports, though dlfs.h does not declare:" "$(tr '\n' ' ' <<<"$extra")"
    status=1
  fi
  if [ -z "$missing$extra" ]; then say "$library exports the $(wc -l <<<"$declared") functions of dlfs.h"; fi
done
exit $status
