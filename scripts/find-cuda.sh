# Finds what the CUDA library needs. Sourced: `find_cuda` sets the variables below and returns 0 when all required
# parts were found, else 1 with `cuda_missing` saying what was not. Run as a program, it prints what it found.
#
# The parts may lie in different places: nvcc in /usr/local/cuda, cuDNN among Debian's packages or in PyTorch's wheels.
# Where a part is found more than once, the first place of this order counts:
#   DLFS_CUDA_WHEELS (a folder that holds nvidia/: a site-packages folder), CUDA_HOME, CUDA_PATH, nvcc's own folder on
#   PATH, /usr/local/cuda, /usr/local/cuda-*, .cuda/ in the checkout (scripts/cuda-wheels.sh), the wheels of the
#   active Python and of python3, the system's folders.
#
# cuda_nvcc          path of nvcc
# cuda_version       nvcc's version, such as 13.0
# cuda_includes      folders of headers
# cuda_libraries     libraries, full paths
# cuda_preloads      libraries to link although they are only opened by name at run time, full paths
# cuda_rpaths        folders of those libraries, and of NCCL
# cuda_nccl          folder of NCCL's header, or nothing: built without it, the library trains on one GPU
# cuda_found         one line per part: NAME PATH
# cuda_missing       one line per part that was not found
# cuda_tried         folders that were searched
# cuda_hint          how to get what is missing

# shellcheck shell=bash
# shellcheck disable=SC2034  # set for the script that sources this one

cuda_hint="install NVIDIA's CUDA toolkit and cuDNN 9 and set CUDA_HOME, or run: bash scripts/cuda-wheels.sh"

# Prints the folders that may hold Python wheels, one a line.
cuda_python_sites() {
  local root="$1" dir
  [ -z "${DLFS_CUDA_WHEELS:-}" ] || echo "$DLFS_CUDA_WHEELS"
  echo "$root/.cuda"
  for dir in ${VIRTUAL_ENV:+"$VIRTUAL_ENV"/lib/python3*/site-packages} \
    ${CONDA_PREFIX:+"$CONDA_PREFIX"/lib/python3*/site-packages}; do
    echo "$dir"
  done
  if command -v python3 >/dev/null; then
    python3 -c 'import os, sys; print("\n".join(p for p in sys.path if os.path.isdir(p + "/nvidia")))' 2>/dev/null || true
  fi
}

# Prints existing folders among the arguments once each, in order.
cuda_existing_dirs() {
  local dir seen=":"
  for dir in "$@"; do
    [ -n "$dir" ] && [ -d "$dir" ] || continue
    case "$seen" in *":$dir:"*) continue ;; esac
    seen="$seen$dir:"
    echo "$dir"
  done
}

# Prints the first folder of cuda_roots that holds include/HEADER (or targets/.../include/HEADER).
cuda_find_header() {
  local root include
  for root in "${cuda_roots[@]}"; do
    for include in include "include/$cuda_multiarch" "targets/$cuda_target/include"; do
      if [ -f "$root/$include/$1" ]; then
        echo "$root/$include"
        return 0
      fi
    done
  done
  return 1
}

# Prints the path of the first library in cuda_roots that matches one of the names, such as "libcudnn.so libcudnn.so.9".
cuda_find_library() {
  local root dir name file
  for root in "${cuda_roots[@]}"; do
    for dir in lib64 lib "lib/$cuda_multiarch" "targets/$cuda_target/lib"; do
      for name in "$@"; do
        file="$root/$dir/$name"
        if [ -f "$file" ]; then
          echo "$file"
          return 0
        fi
      done
    done
  done
  return 1
}

# Adds a library to the results. Arguments: required or preload (optional, and linked although nothing of it is called), its
# name for people, header or -, library names...
cuda_add() {
  local need="$1" label="$2" header="$3" dir="" file
  shift 3
  if [ "$header" != - ] && ! dir=$(cuda_find_header "$header"); then
    [ "$need" != required ] || cuda_missing+=("$label: no $header")
    return 0
  fi
  if ! file=$(cuda_find_library "$@"); then
    [ "$need" != required ] || cuda_missing+=("$label: no $1 or $2")
    return 0
  fi
  # The system's own folders are searched anyway, and naming them again would reorder the C++ headers.
  case "$dir" in "" | /usr/include | /usr/include/*-linux-gnu) ;; *) cuda_includes+=("$dir") ;; esac
  if [ "$need" = preload ]; then cuda_preloads+=("$file"); else cuda_libraries+=("$file"); fi
  case "$file" in *.a | /usr/lib/*) ;; *) cuda_rpaths+=("$(dirname "$file")") ;; esac
  cuda_found+=("$label $file")
}

find_cuda() {
  local root="${1:-$PWD}" path_nvcc="" dir site sites=() prefixes=() wheels=() line major
  cuda_nvcc="" cuda_version="" cuda_nccl=""
  cuda_includes=() cuda_libraries=() cuda_preloads=() cuda_rpaths=() cuda_found=() cuda_missing=() cuda_tried=() cuda_roots=()
  case "$(uname -m)" in
    aarch64 | arm64) cuda_multiarch=aarch64-linux-gnu cuda_target=sbsa-linux ;;
    *) cuda_multiarch=x86_64-linux-gnu cuda_target=x86_64-linux ;;
  esac

  while read -r site; do
    [ -d "$site/nvidia" ] && sites+=("$site/nvidia")
  done < <(cuda_python_sites "$root")
  if path_nvcc=$(command -v nvcc); then
    path_nvcc=$(dirname "$(dirname "$(readlink -f "$path_nvcc")")")
  fi
  # Newest first; sort -V knows that 12.10 is above 12.9.
  mapfile -t prefixes < <(printf '%s\n' /usr/local/cuda-* | sort -rV)
  [ ${#sites[@]} -eq 0 ] || mapfile -t wheels < <(printf '%s/cu13\n' "${sites[@]}")
  mapfile -t cuda_roots < <(
    cuda_existing_dirs ${DLFS_CUDA_WHEELS:+"$DLFS_CUDA_WHEELS/nvidia/cu13"} "${CUDA_HOME:-}" "${CUDA_PATH:-}" \
      "$path_nvcc" /usr/local/cuda "${prefixes[@]}" "${wheels[@]}" /usr
  )
  cuda_tried=("${cuda_roots[@]}" "${sites[@]}")

  for dir in "${cuda_roots[@]}"; do
    if [ -x "$dir/bin/nvcc" ]; then
      cuda_nvcc="$dir/bin/nvcc"
      break
    fi
  done
  if [ -z "$cuda_nvcc" ]; then
    cuda_missing+=("nvcc (CUDA's compiler)")
    return 1
  fi
  cuda_version=$("$cuda_nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
  major="${cuda_version%%.*}"
  cuda_found+=("nvcc $cuda_nvcc")

  # The toolkit that nvcc belongs to comes first from here on: its headers must be of one version.
  mapfile -t cuda_roots < <(cuda_existing_dirs "$(dirname "$(dirname "$cuda_nvcc")")" "${cuda_roots[@]}")
  cuda_add required "CUDA runtime" cuda_runtime.h libcudart_static.a libcudart.so "libcudart.so.$major"
  cuda_add required cuBLASLt cublasLt.h libcublasLt.so "libcublasLt.so.$major"
  cuda_add required cuBLAS cublas_v2.h libcublas.so "libcublas.so.$major"
  cuda_add required nvJPEG nvjpeg.h libnvjpeg.so "libnvjpeg.so.$major"
  # cuDNN compiles kernels at run time with NVRTC, which it opens by name; being loaded makes that name resolve.
  cuda_add preload NVRTC - libnvrtc.so "libnvrtc.so.$major"
  # cuDNN and NCCL wheels say in their names which CUDA they are for; those for another one do not fit.
  for site in "${sites[@]}"; do
    for line in cudnn nccl; do
      if ls -d "$(dirname "$site")/nvidia_${line}_cu$major"-*.dist-info >/dev/null 2>&1; then
        cuda_roots+=("$site/$line")
      fi
    done
  done
  cuda_add required cuDNN cudnn_version.h libcudnn.so libcudnn.so.9
  if dir=$(cuda_find_header cudnn_version.h) && line=$(sed -n 's/^#define CUDNN_MAJOR \([0-9]*\).*/\1/p' "$dir"/cudnn_version*.h) &&
    [ "${line%%$'\n'*}" -lt 9 ]; then
    cuda_missing+=("cuDNN 9 or later: $dir has ${line%%$'\n'*}")
  fi
  # NCCL is opened by name when several GPUs train together: the header is compiled with, the library's folder is remembered.
  if cuda_nccl=$(cuda_find_header nccl.h) && dir=$(cuda_find_library libnccl.so libnccl.so.2); then
    case "$dir" in /usr/lib/*) ;; *) cuda_rpaths+=("$(dirname "$dir")") ;; esac
    cuda_found+=("NCCL $dir")
  else
    cuda_nccl=""
  fi

  mapfile -t cuda_includes < <(cuda_existing_dirs "${cuda_includes[@]}")
  mapfile -t cuda_rpaths < <(cuda_existing_dirs "${cuda_rpaths[@]}")
  [ ${#cuda_missing[@]} -eq 0 ]
}

# Prints the compute capabilities of the cards in this machine, such as "90" or "75 86"; nothing without a card.
cuda_card_capabilities() {
  command -v nvidia-smi >/dev/null || return 0
  nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed -n 's/^\([0-9]*\)\.\([0-9]*\)$/\1\2/p' |
    sort -nu | tr '\n' ' '
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  if find_cuda "$(cd "$(dirname "$0")/.." && pwd)"; then status=0; else status=1; fi
  for line in "${cuda_found[@]}"; do echo "found: $line"; done
  for line in "${cuda_missing[@]}"; do echo "missing: $line"; done
  [ -z "$cuda_version" ] || echo "CUDA $cuda_version, cards: $(cuda_card_capabilities)"
  if [ $status -ne 0 ]; then
    printf 'searched: %s\n' "${cuda_tried[@]}"
    echo "to get it: $cuda_hint"
  fi
  exit $status
fi
