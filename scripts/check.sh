#!/usr/bin/env bash
# Type checking, formatting and linting, without changing a file. scripts/format.sh repairs what can be repaired.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
find_bun && [ -x node_modules/.bin/tsc ] && [ -x node_modules/.bin/biome ] || die "not set up. Run: npm run setup"
status=0
say "type checking"
"$bun" node_modules/.bin/tsc --project . || status=1
say "formatting and linting"
"$bun" node_modules/.bin/biome check --error-on-warnings . || status=1
exit $status
