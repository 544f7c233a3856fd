#!/usr/bin/env bash
# Installs CUDA's compiler and libraries from NVIDIA's Python packages into a folder, where find-cuda.sh looks for them.
# For machines without the CUDA toolkit: to compile the CUDA library, or, beside a driver, to run it too.
#
#   scripts/cuda-wheels.sh [FOLDER]      default: .cuda in the checkout; 1.7 GB
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# One CUDA release (13.0 Update 2) and the cuDNN and NCCL made for it.
packages=(
  nvidia-cuda-nvcc==13.0.88
  nvidia-cuda-crt==13.0.88
  nvidia-nvvm==13.0.88
  nvidia-cuda-cccl==13.0.85
  nvidia-cuda-runtime==13.0.96
  nvidia-cuda-nvrtc==13.0.88
  nvidia-nvjpeg==13.0.1.86
  nvidia-cublas==13.0.2.14
  nvidia-cudnn-cu13==9.14.0.64
  nvidia-nccl-cu13==2.28.9
)

folder="${1:-$root/.cuda}"
stamp="$folder/.installed"
if [ "$(cat "$stamp" 2>/dev/null)" = "${packages[*]}" ]; then exit 0; fi
python3 -m pip --version >/dev/null 2>&1 || die "pip was not found. Debian and Ubuntu: apt-get install python3-pip"
say "installing NVIDIA's Python packages into $folder"
# A half-finished installation is not repaired but replaced.
rm -rf "$folder"
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-cache-dir --no-compile \
  --no-deps --only-binary :all: --target "$folder" "${packages[@]}"
echo "${packages[*]}" >"$stamp"
