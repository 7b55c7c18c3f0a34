// Parts of a block of a network by our kernels, with their gradients. Each says nothing (a null result) where it cannot: no kernels, or
// tensors that they do not read. See shim.h for how errors leave.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>

#include "kernels.h"
#include "shim.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void once_only() {
  TORCH_CHECK(!at::GradMode::is_enabled(),
              "a gradient of a gradient, which the fused kernels do not have: train with `trainer.kernels=plain`");
}

bool tracked(std::initializer_list<const Tensor*> all) {
  if (!at::GradMode::is_enabled()) return false;
  for (const Tensor* x : all) {
    if (x && x->defined() && x->requires_grad()) return true;
  }
  return false;
}

// The heads of a linear map's result [B, L, 3 H K]: [B, H, L, K] of queries, keys and values, in its memory.
std::vector<Tensor> heads_of(const Tensor& qkv, int64_t heads) {
  const Tensor parts = qkv.view({qkv.size(0), qkv.size(1), 3, heads, -1});
  return {parts.select(2, 0).transpose(1, 2), parts.select(2, 1).transpose(1, 2), parts.select(2, 2).transpose(1, 2)};
}

struct Turned : torch::autograd::Function<Turned> {
  // What the linear map has made is nobody else's: it is turned where it lies.
  static variable_list forward(AutogradContext* ctx, const Tensor& qkv_in, const Tensor& cos, const Tensor& sin, int64_t heads) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({cos, sin});
    const Tensor qkv = qkv_in.contiguous();
    const auto parts = heads_of(qkv, heads);
    kernel_turn(parts[0], parts[1], parts[2], cos, sin, qkv.view({qkv.size(0), qkv.size(1), 3, heads, -1}), false);
    return {parts[0], parts[1], parts[2]};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    once_only();
    const auto saved = ctx->get_saved_variables();
    const Tensor& some = grads[0].defined() ? grads[0] : grads[1].defined() ? grads[1] : grads[2];
    if (!some.defined()) return {Tensor(), Tensor(), Tensor(), Tensor()};
    const int64_t texts = some.size(0), heads = some.size(1), length = some.size(2), size = some.size(3);
    Tensor zeros;
    for (Tensor& grad : grads) {
      if (!grad.defined()) {
        if (!zeros.defined()) zeros = at::zeros({size}, some.options());
        grad = zeros.expand({texts, heads, length, size});
      } else if (grad.stride(3) != 1) {
        grad = grad.contiguous();
      }
    }
    const Tensor into = at::empty({texts, length, 3, heads, size}, some.options());
    kernel_turn(grads[0], grads[1], grads[2], saved[0], saved[1], into, true);
    return {into.view({texts, length, 3 * heads * size}), Tensor(), Tensor(), Tensor()};
  }
};

// A seed on the device, from its generator.
Tensor drawn_seed(const Tensor& x, int64_t dropped) {
  if (dropped == 0) return Tensor();
  return at::empty({2}, x.options().dtype(at::kLong)).random_(std::numeric_limits<int64_t>::min(), std::optional<int64_t>());
}

struct Gated : torch::autograd::Function<Gated> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& gate, const Tensor& h,
                        const std::optional<Tensor>& seed, int64_t dropped) {
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({gate.value_or(Tensor()), h, seed.value_or(Tensor())});
    ctx->saved_data["dropped"] = dropped;
    return kernel_gated(x, gate, h, seed, dropped);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
    once_only();
    const auto saved = ctx->get_saved_variables();
    const auto [dh, dgate] =
        kernel_gated_back(grads[0].contiguous(), option(saved[0]), saved[1], option(saved[2]), ctx->saved_data["dropped"].toInt());
    return {grads[0], saved[0].defined() ? dgate : Tensor(), dh, Tensor(), Tensor()};
  }
};

// Gives x too, so that what else becomes of it has its gradient added in the same pass.
struct Normed : torch::autograd::Function<Normed> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& shift,
                               const std::optional<Tensor>& scale, at::ScalarType type) {
    ctx->set_materialize_grads(false);
    const auto [y, mean, inverse] = kernel_norm(x, weight, shift, scale, type);
    ctx->save_for_backward({x, weight, scale.value_or(Tensor()), mean, inverse});
    return {x, y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[1].defined()) return {grads[0], Tensor(), Tensor(), Tensor(), Tensor()};
    once_only();
    const auto saved = ctx->get_saved_variables();
    const auto through = grads[0].defined() ? std::optional(grads[0].contiguous()) : std::nullopt;
    const auto [dx, dweight, dshift, dscale] =
        kernel_norm_back(through, grads[1].contiguous(), saved[0], saved[3], saved[4], saved[1], option(saved[2]));
    const bool modulated = saved[2].defined();
    return {dx, dweight, modulated ? dshift : Tensor(), modulated ? dscale : Tensor(), Tensor()};
  }
};

// Whether x [B, L, D] and what belongs to groups of its rows, [1 or B, 1, D], are as the kernels read them.
bool modulates(const Tensor& x, const Tensor* m) {
  return !m || (kernel_type(*m) && m->device() == x.device() && m->dim() == 3 && m->size(1) == 1 && m->size(2) == x.size(2) &&
                (m->size(0) == 1 || m->size(0) == x.size(0)) && m->stride(2) == 1);
}

bool rows_fit(const Tensor& x) {
  return kernel_type(x) && x.dim() == 3 && x.is_contiguous() && x.size(2) > 0 && x.size(2) <= kMostColumns;
}

// Pairs of types that kernels are compiled for: both the same, or a stream that is wider than what it meets.
bool pair(at::ScalarType x, at::ScalarType y) { return y == x || (x == at::kFloat && y == at::kBFloat16); }

std::optional<Tensor> maybe(const Tensor* x) { return x ? std::optional(*x) : std::nullopt; }

}  // namespace

extern "C" {

char* maskdiff_turned(const Tensor* qkv, const Tensor* cos, const Tensor* sin, int64_t heads, Tensor** three) {
  return guarded([&] {
    const bool ours = qkv->dim() == 3 && heads > 0 && qkv->size(2) % (6 * heads) == 0 && kernel_type(*qkv) && kernel_type(*cos) &&
        (cos->dim() == 4 || cos->dim() == 5) && sin->sizes() == cos->sizes() && sin->strides() == cos->strides() &&
        sin->scalar_type() == cos->scalar_type() && cos->stride(-1) == 1 && cos->size(-1) == qkv->size(2) / (6 * heads) &&
        cos->size(-4) == qkv->size(1) && (cos->dim() == 4 || cos->size(0) == 1 || cos->size(0) == qkv->size(0)) &&
        !cos->requires_grad() && cos->device() == qkv->device() && kernels_on(*qkv);
    if (!ours) return;
    std::vector<Tensor> parts;
    if (tracked({qkv})) {
      parts = Turned::apply(*qkv, *cos, *sin, heads);
    } else {
      const Tensor dense = qkv->contiguous();
      parts = heads_of(dense, heads);
      kernel_turn(parts[0], parts[1], parts[2], *cos, *sin, dense.view({dense.size(0), dense.size(1), 3, heads, -1}), false);
    }
    for (int i = 0; i < 3; ++i) three[i] = new Tensor(parts[i]);
  });
}

char* maskdiff_gated(const Tensor* x, const Tensor* gate, const Tensor* h_in, double p, const Tensor* seed_in, Tensor** result) {
  return guarded([&] {
    const bool ours = rows_fit(*x) && kernel_type(*h_in) && pair(x->scalar_type(), h_in->scalar_type()) && h_in->sizes() == x->sizes() &&
        h_in->device() == x->device() && modulates(*x, gate) && kernels_on(*x);
    if (!ours) return;
    const int64_t dropped = std::clamp<int64_t>(std::llround(p * 65536.0), 0, 65535);
    const Tensor h = h_in->contiguous(), seed = seed_in ? *seed_in : drawn_seed(*x, dropped);
    *result = new Tensor(tracked({x, gate, h_in}) ? Gated::apply(*x, maybe(gate), h, option(seed), dropped)
                                                  : kernel_gated(*x, maybe(gate), h, option(seed), dropped));
  });
}

// `type` is that of the result; below 0 that in which the next product is computed.
char* maskdiff_normed(const Tensor* x, const Tensor* weight, const Tensor* shift, const Tensor* scale, int type, Tensor** two) {
  return guarded([&] {
    const auto device = x->device().type();
    const bool casts = type < 0 && x->is_cuda() && at::autocast::is_autocast_enabled(device);
    const auto made = type >= 0 ? static_cast<at::ScalarType>(type) : casts ? at::autocast::get_autocast_dtype(device) : x->scalar_type();
    const bool ours = rows_fit(*x) && pair(x->scalar_type(), made) && kernel_type(*weight) && weight->is_contiguous() &&
        weight->numel() == x->size(2) && weight->device() == x->device() && modulates(*x, shift) && modulates(*x, scale) &&
        !shift == !scale &&
        (!shift || (shift->scalar_type() == scale->scalar_type() && shift->size(0) == scale->size(0) && shift->stride(0) == scale->stride(0))) &&
        kernels_on(*x);
    if (!ours) return;
    if (tracked({x, weight, shift, scale})) {
      const auto both = Normed::apply(*x, *weight, maybe(shift), maybe(scale), made);
      two[0] = new Tensor(both[0]);
      two[1] = new Tensor(both[1]);
    } else {
      two[0] = new Tensor(*x);
      two[1] = new Tensor(std::get<0>(kernel_norm(*x, *weight, maybe(shift), maybe(scale), made)));
    }
  });
}

}  // extern "C"
