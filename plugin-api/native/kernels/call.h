// A start of a kernel.

#pragma once

#include <cstddef>

// What every GPU has of memory that a block shares, and of warps in a block.
constexpr unsigned kMostShared = 48 << 10, kMostWarps = 16;

struct KernelCall {
  const char* name;
  // The grid: warps of 32 threads in each block, and bytes that a block shares.
  unsigned blocks, warps, shared;
  // A struct of arguments.h, which begins with so many pointers.
  const void* arguments;
  size_t bytes, pointers;
  // The number of the GPU, on whose current stream it runs.
  int device;
};
