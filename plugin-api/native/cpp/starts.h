// Starts of the kernels of ../kernels: what an operator is given is checked, becomes a struct of arguments, and a grid. See kernels.h for what
// each takes.

#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace starts {

using at::Tensor;
using Maybe = std::optional<Tensor>;

void turn(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin, const Tensor& into, bool back);
Tensor gated(const Tensor& x, const Maybe& gate, const Tensor& h, const Maybe& seed, int64_t dropped);
std::tuple<Tensor, Tensor> gated_back(const Tensor& up, const Maybe& gate, const Tensor& h, const Maybe& seed, int64_t dropped);
std::tuple<Tensor, Tensor, Tensor> norm(const Tensor& x, const Tensor& weight, const Maybe& shift, const Maybe& scale, at::ScalarType type);
std::tuple<Tensor, Tensor, Tensor, Tensor> norm_back(const Maybe& through, const Tensor& up, const Tensor& x, const Tensor& mean,
                                                     const Tensor& inverse, const Tensor& weight, const Maybe& scale);
void nll(const Tensor& logits, const Tensor& target, const Tensor& weight, const Maybe& nll, int64_t banned, bool gradient);
void bound(const Tensor& logits, const Tensor& x, const Tensor& z, const Tensor& alpha, const Tensor& every, const Tensor& weight,
           const Maybe& nats, int64_t banned, bool gradient);

}  // namespace starts
