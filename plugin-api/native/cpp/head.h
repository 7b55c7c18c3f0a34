// What the losses fused with a linear head share. See native.cpp.

#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

// x matrixᵀ + bias, and the GELU of it when asked, outside of autograd.
at::Tensor product(const at::Tensor& x, const at::Tensor& matrix, const std::optional<at::Tensor>& bias, bool gelu);

// Rows whose logits are held at once.
int64_t rows_at_once(const at::Tensor& matrix);

// The type of sums, softmax and losses over products of `type`.
at::ScalarType wide(at::ScalarType type);

// Whether all rows have the same upstream gradient [N], so that gradients made for weights of 1 need only be scaled.
bool all_alike(const at::Tensor& up);
