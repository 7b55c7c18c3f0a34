// What libtorch has and tch does not expose. Every function catches all C++ exceptions (unwinding
// through Rust aborts) and returns its message, or null when all went well; the caller frees it.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstring>
#include <string>
#include <vector>

namespace {

using at::Tensor;

// The message without libtorch's C++ frames.
char* message(const std::exception& error) {
  auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  return strdup(torch_error ? torch_error->what_without_backtrace() : error.what());
}

template <typename F>
char* guarded(F&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return message(error);
  } catch (...) {
    return strdup("an exception that is not a std::exception");
  }
}

std::vector<Tensor> list(Tensor* const* tensors, size_t count) {
  std::vector<Tensor> result;
  result.reserve(count);
  for (size_t i = 0; i < count; ++i) result.push_back(*tensors[i]);
  return result;
}

// Rows whose logits are held at once: about 64 MiB of them in float32.
int64_t rows_at_once(int64_t vocabulary) {
  return std::max<int64_t>(16, (int64_t{1} << 24) / std::max<int64_t>(1, vocabulary));
}

struct Chunk {
  Tensor hidden, target, weight;
};

Tensor log_probabilities(const Tensor& hidden, const Tensor& matrix, const Tensor& bias,
                         int64_t banned) {
  Tensor logits = bias.defined() ? at::addmm(bias, hidden, matrix.t()) : at::mm(hidden, matrix.t());
  if (banned >= 0) logits.select(1, banned).fill_(-std::numeric_limits<double>::infinity());
  return at::log_softmax(logits, 1);
}

// weight * (p - onehot(target)) in the memory of the log-probabilities.
void into_logit_gradient(Tensor& log_p, const Tensor& target, const Tensor& weight) {
  log_p.exp_();
  log_p.scatter_add_(1, target.unsqueeze(1), at::full({target.size(0), 1}, -1.0, log_p.options()));
  log_p.mul_(weight.unsqueeze(1));
}

struct Gradients {
  Tensor hidden, matrix, bias;
};

// One pass over the rows in chunks. Fills `nll` [N] when defined and the gradients when asked; the
// [N, V] logits never exist. `weight` [N] multiplies each row's nats and gradient.
void pass(const Tensor& hidden, const Tensor& matrix, const Tensor& bias, const Tensor& target,
          const Tensor& weight, int64_t banned, Tensor nll, Gradients* gradients) {
  const int64_t rows = hidden.size(0), step = rows_at_once(matrix.size(0));
  for (int64_t start = 0; start < rows; start += step) {
    const int64_t length = std::min(step, rows - start);
    const Tensor h = hidden.narrow(0, start, length), y = target.narrow(0, start, length);
    const Tensor w = weight.narrow(0, start, length);
    Tensor log_p = log_probabilities(h, matrix, bias, banned);
    if (nll.defined()) {
      nll.narrow(0, start, length).copy_(log_p.gather(1, y.unsqueeze(1)).squeeze(1).neg_().mul_(w));
    }
    if (gradients) {
      into_logit_gradient(log_p, y, w);
      if (gradients->hidden.defined()) {
        Tensor out = gradients->hidden.narrow(0, start, length);
        at::mm_out(out, log_p, matrix);
      }
      if (gradients->matrix.defined()) gradients->matrix.addmm_(log_p.t(), h);
      if (gradients->bias.defined()) gradients->bias.add_(log_p.sum(0));
    }
  }
}

Gradients zeros_like_wanted(const Tensor& hidden, const Tensor& matrix, const Tensor& bias,
                            bool want_hidden, bool want_matrix, bool want_bias) {
  Gradients g;
  if (want_hidden) g.hidden = at::empty_like(hidden);
  if (want_matrix) g.matrix = at::zeros_like(matrix);
  if (want_bias && bias.defined()) g.bias = at::zeros_like(bias);
  return g;
}

// Linear head and cross-entropy in one: gradients are made in the forward pass, while the chunk of
// logits is there, for the case that every row's output gets the same gradient (a sum or a mean).
// Any other upstream gradient takes a second pass over the rows.
struct LinearNll : torch::autograd::Function<LinearNll> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& hidden,
                        const Tensor& matrix, const Tensor& bias, const Tensor& target,
                        const Tensor& weight, int64_t banned) {
    const bool wants[3] = {hidden.requires_grad(), matrix.requires_grad(),
                           bias.defined() && bias.requires_grad()};
    Gradients g = zeros_like_wanted(hidden, matrix, bias, wants[0], wants[1], wants[2]);
    Tensor nll = at::empty({hidden.size(0)}, hidden.options());
    pass(hidden, matrix, bias, target, weight, banned, nll, &g);
    ctx->save_for_backward({hidden, matrix, bias, target, weight});
    ctx->saved_data["banned"] = banned;
    ctx->saved_data["hidden"] = g.hidden;
    ctx->saved_data["matrix"] = g.matrix;
    ctx->saved_data["bias"] = g.bias;
    return nll;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list upstream) {
    auto take = [&](const char* name) {
      auto value = ctx->saved_data[name];
      return value.isTensor() ? value.toTensor() : Tensor();
    };
    Gradients g{take("hidden"), take("matrix"), take("bias")};
    const Tensor& up = upstream[0];
    const bool uniform = up.numel() == 0 || at::eq(up, up.select(0, 0)).all().item<bool>();
    if (uniform) {
      // Not in place: the graph may be kept and walked again.
      const Tensor scale = up.numel() == 0 ? at::ones({}, up.options()) : up.select(0, 0);
      if (g.hidden.defined()) g.hidden = g.hidden * scale;
      if (g.matrix.defined()) g.matrix = g.matrix * scale;
      if (g.bias.defined()) g.bias = g.bias * scale;
    } else {
      auto saved = ctx->get_saved_variables();
      g = zeros_like_wanted(saved[0], saved[1], saved[2], g.hidden.defined(), g.matrix.defined(),
                            g.bias.defined());
      at::NoGradGuard no_grad;
      pass(saved[0], saved[1], saved[2], saved[3], saved[4] * up,
           ctx->saved_data["banned"].toInt(), Tensor(), &g);
    }
    return {g.hidden, g.matrix, g.bias, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

char* maskdiff_fused_adamw(Tensor* const* params, Tensor* const* grads, Tensor* const* exp_avgs,
                           Tensor* const* exp_avg_sqs, Tensor* const* steps, size_t count, double lr,
                           double beta1, double beta2, double weight_decay, double eps) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto p = list(params, count), g = list(grads, count), m = list(exp_avgs, count);
    auto v = list(exp_avg_sqs, count), s = list(steps, count);
    at::_foreach_add_(s, 1);
    at::_fused_adamw_(p, g, m, v, {}, s, lr, beta1, beta2, weight_decay, eps, false, false);
  });
}

char* maskdiff_foreach_lerp(Tensor* const* into, Tensor* const* from, size_t count, double weight) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto a = list(into, count), b = list(from, count);
    at::_foreach_lerp_(a, b, weight);
  });
}

char* maskdiff_foreach_mul(Tensor* const* tensors, size_t count, double factor) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto t = list(tensors, count);
    at::_foreach_mul_(t, factor);
  });
}

char* maskdiff_global_norm(Tensor* const* tensors, size_t count, double* norm) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto norms = at::_foreach_norm(list(tensors, count), 2);
    *norm = at::stack(norms).to(at::kDouble).norm().item<double>();
  });
}

char* maskdiff_linear_nll(const Tensor* hidden, const Tensor* matrix, const Tensor* bias,
                          const Tensor* target, const Tensor* weight, int64_t banned,
                          Tensor** result) {
  return guarded([&] {
    const Tensor no_bias;
    const Tensor& b = bias ? *bias : no_bias;
    const bool tracked = at::GradMode::is_enabled() &&
        (hidden->requires_grad() || matrix->requires_grad() || (b.defined() && b.requires_grad()));
    if (tracked) {
      *result = new Tensor(LinearNll::apply(*hidden, *matrix, b, *target, *weight, banned));
    } else {
      Tensor nll = at::empty({hidden->size(0)}, hidden->options());
      pass(*hidden, *matrix, b, *target, *weight, banned, nll, nullptr);
      *result = new Tensor(nll);
    }
  });
}

char* maskdiff_generator_state(int cuda, int index, Tensor** state) {
  return guarded([&] {
    auto device = cuda ? at::Device(at::kCUDA, index) : at::Device(at::kCPU);
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    *state = new Tensor(generator.get_state());
  });
}

char* maskdiff_set_generator_state(int cuda, int index, const Tensor* state) {
  return guarded([&] {
    auto device = cuda ? at::Device(at::kCUDA, index) : at::Device(at::kCPU);
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(*state);
  });
}

char* maskdiff_set_deterministic(int on) {
  return guarded([&] {
    at::globalContext().setDeterministicAlgorithms(on != 0, false);
  });
}

void maskdiff_free_message(char* text) { free(text); }
}
