#!/usr/bin/env bash
# Sets up what is missing, checks the sources, then runs the tests: all but the benches, DLFS_TEST_JOBS files at a time
# (by default as many as there are processors, 4 at most), or one after the other those whose path contains one of the
# arguments, which go to `bun test`. Ends with one line: N passed, N failed, N skipped.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
bash "$root/scripts/setup.sh" --quiet
find_bun || die "Bun $bun_version or later was not found. Run: npm run setup"
cd "$root"

status=0
bash scripts/check.sh || status=1

report="build/test-report.xml"
rm -f "$report"
processors=$(getconf _NPROCESSORS_ONLN)
jobs=${DLFS_TEST_JOBS:-$((processors < 4 ? processors : 4))}
parallel=()
if [ $# -eq 0 ] && [ "$jobs" -gt 1 ]; then parallel=("--parallel=$jobs"); fi
"$bun" test "${parallel[@]}" --timeout 60000 --reporter=junit --reporter-outfile="$report" "$@" || status=$?

# Prints an attribute of the report's root element. A crash of the test process leaves no report.
total() {
  sed -n 's/^<testsuites .* '"$1"'="\([0-9]*\)".*/\1/p' "$report" 2>/dev/null | head -n 1
}
tests=$(total tests) failures=$(total failures) skipped=$(total skipped)
if [ -z "$tests" ]; then
  warn "the test process ended without a report (exit status $status)"
  tests=1 failures=1 skipped=0
  [ $status -ne 0 ] || status=1
fi
passed=$((tests - failures - skipped))
if [ $passed -eq 0 ] && [ "$failures" -eq 0 ]; then
  warn "no test ran"
  status=1
fi
if [ "$failures" -gt 0 ] && [ $status -eq 0 ]; then status=1; fi
echo "$passed passed, $failures failed, $skipped skipped"
exit $status
