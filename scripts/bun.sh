#!/usr/bin/env bash
# Runs Bun with the given arguments: the user's, or the one that setup installed.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_bun || die "Bun $bun_version or later was not found. Run: npm run setup"
cd "$root"
exec "$bun" "$@"
