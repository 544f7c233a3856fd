#!/usr/bin/env bash
# Generates lib/formats/generated/ from schemas/*.fbs. The output is committed, and regenerating it changes nothing.
#
#   scripts/generate-flatbuffers.sh           generate; installs flatc by apt-get where it is missing
#   scripts/generate-flatbuffers.sh --check   exit with 1 and the difference when the committed output is out of date
#
# Another release of flatc writes other text, so exactly this one is taken (Debian 12's flatbuffers-compiler). FLATC
# names a binary elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wanted=2.0.8
flatc=${FLATC:-flatc}
output=lib/formats/generated

found() {
  "$flatc" --version 2>/dev/null | sed 's/^flatc version //' || true
}

if [[ "$(found)" != "$wanted" && "${1:-}" != --check && -z "${FLATC:-}" ]] && command -v apt-get >/dev/null; then
  sudo=
  if [[ $EUID -ne 0 ]]; then sudo="sudo -n"; fi
  $sudo apt-get install -y -q flatbuffers-compiler >/dev/null || true
fi
if [[ "$(found)" != "$wanted" ]]; then
  version=$(found)
  echo "generate-flatbuffers: needs flatc $wanted, found ${version:-none} as '$flatc'." \
    "Install Debian 12's flatbuffers-compiler, or name the binary: FLATC=/path/to/flatc" >&2
  exit 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$flatc" --ts -o "$work" schemas/*.fbs
sha256sum schemas/*.fbs >"$work/SCHEMAS.sha256"

if [[ "${1:-}" == --check ]]; then
  diff -r "$output" "$work" || {
    echo "generate-flatbuffers: $output does not follow from schemas/; run scripts/generate-flatbuffers.sh" >&2
    exit 1
  }
  exit 0
fi
rm -rf "$output"
mkdir -p "$output"
cp -R "$work/." "$output/"
echo "generate-flatbuffers: wrote $output from $(ls schemas/*.fbs | tr '\n' ' ')"
