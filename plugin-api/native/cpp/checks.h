// What a kernel takes for granted of a tensor: a wrong call is an error that names the operator and its argument, and no access to memory that
// is not the tensor's.

#pragma once

#include <ATen/core/Tensor.h>

#include "kernels.h"

// An argument of an operator.
struct Argument {
  const char* op;
  const char* name;
  const at::Tensor& tensor;

  const Argument& on(c10::Device device) const {
    TORCH_CHECK(tensor.defined(), op, ": `", name, "` is no tensor");
    TORCH_CHECK(tensor.device() == device, op, ": `", name, "` is on ", tensor.device(), ", and ", device, " is expected");
    return *this;
  }
  const Argument& of(at::ScalarType type) const {
    TORCH_CHECK(tensor.scalar_type() == type, op, ": `", name, "` is ", tensor.scalar_type(), ", and ", type, " is expected");
    return *this;
  }
  // float32 or bfloat16.
  const Argument& of_kernels() const {
    TORCH_CHECK(kernel_type(tensor), op, ": `", name, "` is ", tensor.scalar_type(), ", and Float or BFloat16 is expected");
    return *this;
  }
  const Argument& shaped(at::IntArrayRef sizes) const {
    TORCH_CHECK(tensor.sizes() == sizes, op, ": `", name, "` is ", tensor.sizes(), ", and ", sizes, " is expected");
    return *this;
  }
  const Argument& dense() const {
    TORCH_CHECK(tensor.is_contiguous(), op, ": `", name, "` has gaps (strides ", tensor.strides(), "), and must be contiguous");
    return *this;
  }
  // Neighbours of the last dimension are neighbours in memory.
  const Argument& packed() const {
    TORCH_CHECK(tensor.dim() > 0 && (tensor.stride(-1) == 1 || tensor.size(-1) == 1), op, ": the last dimension of `", name,
                "` has gaps (strides ", tensor.strides(), ")");
    return *this;
  }
};
