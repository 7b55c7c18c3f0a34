// Parts of a network that libtorch computes in several passes over memory, or number by number, in one pass: GELU, dropout, the
// rotation of queries and keys. In float32 on a CPU; elsewhere they are libtorch's own operations. The work is shared out over
// libtorch's threads by its own iterator. See shim.h for how errors leave.

#include "fused.h"

#include <ATen/ATen.h>
#include <ATen/TensorIterator.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>

#include "shim.h"
#include "vectorized.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool fits(const Tensor& x) { return x.is_cpu() && x.scalar_type() == at::kFloat && x.numel() > 0; }

// 1 / (1 + e^-z), exact to a few units in the last place.
VECTORIZED __attribute__((always_inline)) inline float sigmoid(float z) { return 1.0f / (1.0f + exponential(-z)); }

// x (1 + tanh(u)) / 2 with u = sqrt(2/pi) (x + 0.044715 x^3) is x sigmoid(2u).
constexpr float kTwice = 1.5957691216f, kCube = 0.044715f;

FOR_EACH_PROCESSOR void gelu_row(float* y, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * sigmoid(kTwice * x[i] * (1.0f + kCube * x[i] * x[i]));
}

FOR_EACH_PROCESSOR void gelu_gradient_row(float* dx, const float* dy, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float square = x[i] * x[i], s = sigmoid(kTwice * x[i] * (1.0f + kCube * square));
    dx[i] = dy[i] * (s + x[i] * s * (1.0f - s) * kTwice * (1.0f + 3.0f * kCube * square));
  }
}

// What is dropped is 0, the rest is scaled up; `bits` are 16 random ones for each number.
FOR_EACH_PROCESSOR void dropout_row(float* y, const float* x, const int16_t* bits, int32_t least, float scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = bits[i] >= least ? x[i] * scale : 0.0f;
}

FOR_EACH_PROCESSOR void rotate_row(float* ya, float* yb, const float* a, const float* b, const float* cos, const float* sin,
                                   int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float first = a[i], second = b[i];
    ya[i] = first * cos[i] - second * sin[i];
    yb[i] = second * cos[i] + first * sin[i];
  }
}

// Calls `row` with pointers to n neighbours in each of the tensors, until all are done; where numbers are not neighbours, with
// one at a time.
template <typename F>
void rows(at::TensorIteratorConfig& config, F&& row) {
  auto iterator = config.check_all_same_dtype(false).resize_outputs(false).build();
  const int count = iterator.ntensors();
  iterator.for_each([&](char** data, const int64_t* strides, int64_t n) {
    bool dense = true;
    for (int k = 0; k < count; ++k) dense &= strides[k] == static_cast<int64_t>(iterator.element_size(k));
    if (dense) return row(data, n);
    std::vector<char*> at(data, data + count);
    for (int64_t i = 0; i < n; ++i) {
      row(at.data(), 1);
      for (int k = 0; k < count; ++k) at[k] += strides[k];
    }
  });
}

struct Gelu : torch::autograd::Function<Gelu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_in) {
    const Tensor x = x_in.contiguous(), y = at::empty_like(x);
    rows(at::TensorIteratorConfig().add_output(y).add_const_input(x), [](char** data, int64_t n) {
      gelu_row(reinterpret_cast<float*>(data[0]), reinterpret_cast<const float*>(data[1]), n);
    });
    ctx->save_for_backward({x_in});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor x = ctx->get_saved_variables()[0].contiguous();
    // A gradient that is differentiated again is libtorch's.
    if (at::GradMode::is_enabled()) return {at::gelu_backward(grads[0], x, "tanh")};
    const Tensor dy = grads[0].contiguous(), dx = at::empty_like(x);
    rows(at::TensorIteratorConfig().add_output(dx).add_const_input(dy).add_const_input(x), [](char** data, int64_t n) {
      gelu_gradient_row(reinterpret_cast<float*>(data[0]), reinterpret_cast<const float*>(data[1]),
                        reinterpret_cast<const float*>(data[2]), n);
    });
    return {dx};
  }
};

// 16 bits for each number, four numbers from each draw of 64: libtorch's own dropout makes a draw a number.
struct Dropout : torch::autograd::Function<Dropout> {
  static Tensor apply_bits(const Tensor& x_in, const Tensor& bits, int64_t dropped) {
    const Tensor x = x_in.contiguous(), y = at::empty_like(x);
    const int32_t least = static_cast<int32_t>(dropped) - 32768;
    const float scale = 65536.0f / static_cast<float>(65536 - dropped);
    rows(at::TensorIteratorConfig().add_output(y).add_const_input(x).add_const_input(bits), [=](char** data, int64_t n) {
      dropout_row(reinterpret_cast<float*>(data[0]), reinterpret_cast<const float*>(data[1]),
                  reinterpret_cast<const int16_t*>(data[2]), least, scale, n);
    });
    return y;
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, int64_t dropped) {
    Tensor draws = at::empty({(x.numel() + 3) / 4}, at::kLong);
    draws.random_(std::numeric_limits<int64_t>::min(), std::optional<int64_t>());
    const Tensor bits = draws.view(at::kShort).narrow(0, 0, x.numel()).view(x.sizes());
    ctx->save_for_backward({bits});
    ctx->saved_data["dropped"] = dropped;
    return apply_bits(x, bits, dropped);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor bits = ctx->get_saved_variables()[0];
    const int64_t dropped = ctx->saved_data["dropped"].toInt();
    if (at::GradMode::is_enabled()) {
      const Tensor kept = bits.ge(dropped - 32768).to(grads[0].scalar_type());
      return {grads[0] * kept * (65536.0 / static_cast<double>(65536 - dropped)), Tensor()};
    }
    return {apply_bits(grads[0], bits, dropped), Tensor()};
  }
};

Tensor plain_rotation(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const auto halves = x.chunk(2, -1);
  return at::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1);
}

// x [.., K] with its halves rotated by angles [.., K/2], which broadcast.
struct Rotate : torch::autograd::Function<Rotate> {
  static Tensor turn(const Tensor& x, const Tensor& cos, const Tensor& sin) {
    const Tensor y = at::empty(x.sizes(), x.options());
    const int64_t half = x.size(-1) / 2;
    auto part = [&](const Tensor& of, int64_t first) { return of.narrow(-1, first * half, half); };
    const Tensor ya = part(y, 0), yb = part(y, 1), a = part(x, 0), b = part(x, 1);
    auto config = at::TensorIteratorConfig();
    config.add_output(ya).add_output(yb).add_const_input(a).add_const_input(b).add_const_input(cos).add_const_input(sin);
    rows(config, [](char** data, int64_t n) {
      rotate_row(reinterpret_cast<float*>(data[0]), reinterpret_cast<float*>(data[1]),
                 reinterpret_cast<const float*>(data[2]), reinterpret_cast<const float*>(data[3]),
                 reinterpret_cast<const float*>(data[4]), reinterpret_cast<const float*>(data[5]), n);
    });
    return y;
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return turn(x, cos, sin);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor dx = at::GradMode::is_enabled() ? plain_rotation(grads[0], saved[0], saved[1].neg())
                                                 : turn(grads[0].contiguous(), saved[0], saved[1].neg());
    return {dx, Tensor(), Tensor()};
  }
};

}  // namespace

Tensor fused_gelu(const Tensor& x) { return fits(x) ? Gelu::apply(x) : at::gelu(x, "tanh"); }

extern "C" {

char* maskdiff_dropout(const Tensor* x, double p, Tensor** result) {
  return guarded([&] {
    const auto dropped = std::llround(p * 65536.0);
    const bool ours = fits(*x) && dropped > 0 && dropped < 65536;
    *result = new Tensor(ours ? Dropout::apply(*x, static_cast<int64_t>(dropped)) : at::dropout(*x, p, true));
  });
}

char* maskdiff_rotate(const Tensor* x, const Tensor* cos, const Tensor* sin, Tensor** result) {
  return guarded([&] {
    TORCH_CHECK(x->dim() > 0 && x->size(-1) % 2 == 0, "a rotation needs an even last dimension, got ", x->sizes());
    const bool dense = x->stride(-1) == 1 && cos->stride(-1) == 1 && sin->stride(-1) == 1;
    const bool ours = fits(*x) && fits(*cos) && fits(*sin) && dense && cos->size(-1) == x->size(-1) / 2 &&
        cos->dim() <= x->dim() && sin->sizes() == cos->sizes() &&
        !cos->requires_grad() && !sin->requires_grad();
    *result = new Tensor(ours ? Rotate::apply(*x, *cos, *sin) : plain_rotation(*x, *cos, *sin));
  });
}

}  // extern "C"
