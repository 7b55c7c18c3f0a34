// What the losses fused with a linear head share. See native.cpp.

#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>

// x matrixᵀ + bias, and the GELU of it when asked, outside of autograd.
at::Tensor product(const at::Tensor& x, const at::Tensor& matrix, const std::optional<at::Tensor>& bias, bool gelu);

// Rows whose logits are held at once.
int64_t rows_at_once(const at::Tensor& matrix);

// The type of sums, softmax and losses over products of `type`.
at::ScalarType wide(at::ScalarType type);

// A linear head in the type of its products. Where the kernels are on, the rows of its logits begin at multiples of 64 numbers, as the products
// of a GPU need them to load many numbers at once: matrix and bias have rows of zeros behind those of the V tokens, and nobody reads these logits.
struct Head {
  at::Tensor matrix, bias;  // [V or more, D], [V or more]; there may be no bias
  int64_t tokens;           // V

  Head(const at::Tensor& matrix_of_any_type, const std::optional<at::Tensor>& bias_of_any_type, at::ScalarType type);
  // One that has been kept.
  Head(at::Tensor matrix_, at::Tensor bias_, int64_t tokens_) : matrix(std::move(matrix_)), bias(std::move(bias_)), tokens(tokens_) {}

  at::Tensor matrix_of_tokens() const { return matrix.narrow(0, 0, tokens); }
  at::Tensor bias_of_tokens() const { return bias.defined() ? bias.narrow(0, 0, tokens) : bias; }
  // [N, D] -> [N, V]
  at::Tensor logits(const at::Tensor& hidden) const;
};

// Whether all rows have the same upstream gradient [N], so that gradients made for weights of 1 need only be scaled.
bool all_alike(const at::Tensor& up);
