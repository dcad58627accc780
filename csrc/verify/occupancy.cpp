// Reads lines "architecture registers threads shared_bytes" and prints for each how many percent of a multiprocessor's threads run at once, as
// NVIDIA's own header counts them.
#include <cuda_occupancy.h>

#include <cstdio>

int main() {
  int architecture, registers, threads, shared;
  while (scanf("%d %d %d %d", &architecture, &registers, &threads, &shared) == 4) {
    cudaOccDeviceProp device{};
    device.computeMajor = architecture / 10;
    device.computeMinor = architecture % 10;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = 2048;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 * 1024;
    device.reservedSharedMemPerBlock = 1024;
    device.sharedMemPerMultiprocessor = (architecture == 80 ? 164 : 228) * 1024;
    device.sharedMemPerBlockOptin = device.sharedMemPerMultiprocessor - 1024;
    device.numSms = architecture == 80 ? 108 : 132;
    cudaOccFuncAttributes kernel{};
    kernel.maxThreadsPerBlock = threads;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = shared;
    kernel.maxDynamicSharedSizeBytes = device.sharedMemPerBlockOptin;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    kernel.numBlockBarriers = 1;
    const cudaOccDeviceState state{};
    cudaOccResult result{};
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0) != CUDA_OCC_SUCCESS) return 1;
    printf("%d\n", result.activeBlocksPerMultiprocessor * threads * 100 / 2048);
  }
}
