// Whether this library holds code for a device.
#include "cuda/runtime.cuh"

namespace dlfs {

namespace {
__global__ void probe_kernel() {}
}  // namespace

void check_device_code(int device, int compute_capability) {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (status == cudaSuccess) return;
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction ||
      status == cudaErrorUnsupportedPtxVersion) {
    cudaGetLastError();
    throw Error(DLFS_ERROR_UNSUPPORTED,
                format("device %d has compute capability %d.%d and this library was built for %s; rebuild it here with "
                       "scripts/build.sh cuda",
                       device, compute_capability / 10, compute_capability % 10, DLFS_CUDA_ARCHS));
  }
  throw_cuda(status, "cudaFuncGetAttributes");
}

}  // namespace dlfs
