/* device.h - one word for functions that run on the CPU and, where nvcc compiles them, on the GPU; one for those of the GPU alone. */
#ifndef TMX_BASE_DEVICE_H
#define TMX_BASE_DEVICE_H

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#define DEVICE __device__ __forceinline__
#else
#define HOST_DEVICE
#endif

#endif
