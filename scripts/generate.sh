#!/usr/bin/env bash
# Regenerates the generated sources: flatbuffers code from schemas/, the symbol table from csrc/include/dlfs.h, and the
# JSON Schemas of settings from the tables that they are read by.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
bash "$root/scripts/generate-flatbuffers.sh"
bash "$root/scripts/bun.sh" scripts/generate-symbols.ts
bash "$root/scripts/bun.sh" scripts/generate-schemas.ts
