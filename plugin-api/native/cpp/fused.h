// Parts of a network that libtorch computes in several passes over memory, in one. See fused.cpp.

#pragma once

#include <ATen/core/Tensor.h>

// GELU in the tanh approximation, differentiable.
at::Tensor fused_gelu(const at::Tensor& x);
