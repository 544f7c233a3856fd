#!/bin/bash
# Trains on two hosts with eight GPUs each by PyTorch's launcher; on each host: bash examples/launchers/torchrun.sh NODE_RANK FIRST_HOST
# MASTER_PORT belongs to torchrun's own agents: rank 0 of dlfs listens 101 above it.
set -eu
node=${1:?0 on the first host, 1 on the second}
first=${2:?the name of the first host}
exec torchrun --no-python --nnodes 2 --nproc-per-node 8 --node-rank "$node" --master-addr "$first" --master-port 29500 \
  bun run dlfs train --data "${DATA:-/data/coco}" --model retinanet_resnet50_fpn --batch 256 --sync-bn
