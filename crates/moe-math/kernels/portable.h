// CUDA kernels here are C that a host compiler takes too. There (src/kernels/tests.rs) a thread of the operating system stands in for each
// thread of a CUDA block and a barrier for __syncthreads, so that the very source that runs on a GPU is tested on machines without one.
// What that asks for: no warp intrinsics, no atomics, arguments in one structure, and no thread that leaves before the last SYNC.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void
#define SHARED __shared__
#define FUNCTION static __device__ __forceinline__
#define SYNC() __syncthreads()
#define THREAD ((int)threadIdx.x)
#define THREADS ((int)blockDim.x)
#define BLOCK_X ((int)blockIdx.x)
#define BLOCK_Y ((int)blockIdx.y)
#define UNROLL _Pragma("unroll")
#define FLOAT_OF(bits) __uint_as_float(bits)
#define BITS_OF(value) __float_as_uint(value)
#else
#include "host.h"
#endif

// bfloat16 is the upper half of a float32.
FUNCTION float of_bf16(uint16_t bits) { return FLOAT_OF((uint32_t)bits << 16); }
