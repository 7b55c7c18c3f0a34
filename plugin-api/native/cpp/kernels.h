// Kernels of ours for a GPU, as operators of libtorch. See kernels.cpp.

#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

// Whether a tensor's device has our kernels, and they are switched on.
bool kernels_on(const at::Tensor& x);
// Whether a kernel reads numbers of this type: float32 or bfloat16.
inline bool kernel_type(const at::Tensor& x) { return x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16; }
// Columns of a row whose sums a block can hold.
constexpr int64_t kMostColumns = 6144;

// The operators, where `kernels_on`. Shapes and letters as in ../kernels/arguments.h; texts B, length L, heads H, head size K.
// q, k, v [B, H, L, K] of neighbours in K; cos, sin [L, 1, 1, K/2] or [B, L, 1, 1, K/2]; into [B, L, 3, H, K].
void kernel_turn(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& cos, const at::Tensor& sin,
                 const at::Tensor& into, bool back);
// x, h [B, L, D]; gate [1 or B, 1, D]; seed [2] i64 where `dropped` > 0.
at::Tensor kernel_gated(const at::Tensor& x, const std::optional<at::Tensor>& gate, const at::Tensor& h,
                        const std::optional<at::Tensor>& seed, int64_t dropped);
// The gradients of h and of the gate, which is empty where there is none.
std::tuple<at::Tensor, at::Tensor> kernel_gated_back(const at::Tensor& up, const std::optional<at::Tensor>& gate, const at::Tensor& h,
                                                     const std::optional<at::Tensor>& seed, int64_t dropped);
// x [B, L, D]; weight [D]; shift, scale [1 or B, 1, D] or neither -> y of a type, mean and inverse deviation of each row.
std::tuple<at::Tensor, at::Tensor, at::Tensor> kernel_norm(const at::Tensor& x, const at::Tensor& weight,
                                                           const std::optional<at::Tensor>& shift,
                                                           const std::optional<at::Tensor>& scale, at::ScalarType type);
// The gradients of x (with `through` added), weight, shift and scale; the last two are empty where there are none.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> kernel_norm_back(const std::optional<at::Tensor>& through,
                                                                            const at::Tensor& up, const at::Tensor& x,
                                                                            const at::Tensor& mean, const at::Tensor& inverse,
                                                                            const at::Tensor& weight,
                                                                            const std::optional<at::Tensor>& scale);
// logits [N, V] become their gradient where `gradient`; nll [N] float32, where it is given, is filled.
void kernel_nll(const at::Tensor& logits, const at::Tensor& target, const at::Tensor& weight, const std::optional<at::Tensor>& nll,
                int64_t banned, bool gradient);
// The rows of a bound, [N] each: clean and observed tokens in i64, what the process does in f64. See interpolating.cpp.
struct BoundRows {
  const at::Tensor &x, &z, &alpha, &every, &weight;
};
// logits [N, V] become their gradient where `gradient`; nats [N] float32, where it is given, is filled.
void kernel_bound(const at::Tensor& logits, const BoundRows& rows, const std::optional<at::Tensor>& nats, int64_t banned, bool gradient);
