#!/usr/bin/env bash
# Formats the TypeScript and JSON files, sorts imports and applies the linter's safe repairs: all files, or those named.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_bun && [ -x "$root/node_modules/.bin/biome" ] || die "not set up. Run: npm run setup"
[ $# -gt 0 ] || { cd "$root" && set -- .; }
exec "$bun" "$root/node_modules/.bin/biome" check --write "$@"
