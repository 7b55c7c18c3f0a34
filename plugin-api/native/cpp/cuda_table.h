// What only libtorch's CUDA half can do, as libmaskdiffcuda.so hands it to the shim: a program that links nothing of CUDA opens it
// where libtorch has that half. See shim.h for how errors leave.

#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>

#include "../kernels/call.h"

struct MaskdiffCuda {
  // Raised with every change of this struct: the library beside a program may be of another build.
  uint64_t version;
  char* (*nccl)(const c10::intrusive_ptr<c10d::Store>& store, int rank, int world, std::chrono::milliseconds timeout,
                c10::intrusive_ptr<c10d::Backend>* result);
  char* (*graph_new)(void** result);
  char* (*graph_begin)(void* graph);
  char* (*graph_end)(void* graph);
  char* (*graph_replay)(void* graph);
  char* (*graph_free)(void* graph);
  // Kernels of ../kernels: what they are to be compiled for (90 for sm_90; 0: nothing, the library has them), what was compiled, and
  // one start on the current stream.
  char* (*kernel_architecture)(int device, int* result);
  char* (*kernel_load)(int device, const void* image);
  char* (*kernel_start)(const KernelCall* call);
};

constexpr uint64_t kMaskdiffCudaVersion = 2;

// The table; an exception where no library is open.
const MaskdiffCuda& cuda_table();
