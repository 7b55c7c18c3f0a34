// Kernels of ours by CUDA's driver. See driver.cpp.

#pragma once

#include "../../kernels/call.h"

namespace driver {

// 90 for sm_90.
int architecture(int device);
// Takes what was compiled for the device: its kernels from now on.
void load(int device, const void* image);
// Starts a kernel on the device's current stream, without waiting for it.
void start(const KernelCall& call);

}  // namespace driver
