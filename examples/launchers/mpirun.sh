#!/bin/bash
# Trains on two hosts with eight GPUs each by Open MPI: bash examples/launchers/mpirun.sh HOST_A HOST_B
# Ranks come from Open MPI's environment; where rank 0 listens is said here, as Open MPI does not. Both hosts need this folder, Bun
# and the data at the same paths.
set -eu
first=${1:?the name of the first host}
second=${2:?the name of the second host}
exec mpirun -np 16 --host "$first:8,$second:8" --map-by slot \
  -x PATH -x DLFS_RENDEZVOUS="$first:29400" \
  bun run dlfs train --data "${DATA:-/data/coco}" --model retinanet_resnet50_fpn --batch 256 --sync-bn
