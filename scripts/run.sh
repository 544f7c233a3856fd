#!/usr/bin/env bash
# Sets up what is missing, then runs a program: scripts/run.sh FILE [arguments...]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
bash "$root/scripts/setup.sh" --quiet
find_bun || die "Bun $bun_version or later was not found. Run: npm run setup"
cd "$root"
# The program replaces this shell, so that signals and the exit status are its own.
exec "$bun" run "$@"
