// Optimizer steps, the fused head, the scan, generators: see shim.h for how errors leave.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/env.h>
#include <torch/csrc/autograd/custom_function.h>

#include <malloc.h>

#include <cmath>
#include <optional>

#include "fused.h"
#include "head.h"
#include "kernels.h"
#include "shim.h"

// x matrixᵀ + bias, and the GELU of it when asked (tanh approximation), outside of autograd. The matrix may be a transposed
// view. In float32 on a CPU by oneDNN, where libtorch was built with it: it fuses the GELU, uses AVX-512 where MKL does
// not (AMD), and for a few rows reads the matrix once, where libtorch's own path reads it once a row.
Tensor product(const Tensor& x, const Tensor& matrix, const std::optional<Tensor>& bias, bool gelu) {
  using Call = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, c10::string_view,
                      c10::List<std::optional<at::Scalar>>, std::optional<c10::string_view>);
  static const auto schema =
      c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  const bool dense = x.is_contiguous() && (matrix.is_contiguous() || matrix.t().is_contiguous());
  const bool fits = x.is_cpu() && x.numel() > 0 && dense && x.scalar_type() == at::kFloat &&
      matrix.scalar_type() == at::kFloat;
  if (schema && fits) {
    const c10::List<std::optional<at::Scalar>> none;
    const auto form = gelu ? std::optional<c10::string_view>("tanh") : std::nullopt;
    return schema->typed<Call>().call(x, matrix, bias, gelu ? "gelu" : "none", none, form);
  }
  const Tensor out = at::linear(x, matrix, bias);
  return gelu ? at::gelu(out, "tanh") : out;
}

// Rows whose logits are held at once. On a CPU about 26 MiB of them in float32, which malloc keeps and hands out again
// (glibc returns what exceeds 32 MiB to the kernel, and then pays for every page anew); on a GPU 512 MiB, to fill it. Products of a
// multiple of 64 rows are the fastest: two threads of oneDNN take 64 each.
int64_t rows_at_once(const Tensor& matrix) {
  const int64_t numbers = matrix.is_cuda() ? int64_t{1} << 27 : int64_t{26} << 18;
  const int64_t rows = std::max<int64_t>(16, numbers / std::max<int64_t>(1, matrix.size(0)));
  return rows < 64 ? rows : rows / 64 * 64;
}

// In reduced precision sums, softmax and losses are float32.
at::ScalarType wide(at::ScalarType type) {
  return type == at::kBFloat16 || type == at::kHalf ? at::kFloat : type;
}

Head::Head(const Tensor& matrix_of_any_type, const std::optional<Tensor>& bias_of_any_type, at::ScalarType type)
    : tokens(matrix_of_any_type.size(0)) {
  constexpr int64_t kMultiple = 64;
  const int64_t rows = (tokens + kMultiple - 1) / kMultiple * kMultiple;
  const bool by_kernels = (type == at::kFloat || type == at::kBFloat16) && kernels_on(matrix_of_any_type);
  const auto filled = [&](const Tensor& x) {
    if (!by_kernels || rows == tokens) return x.to(type);
    auto sizes = x.sizes().vec();
    sizes[0] = rows;
    const Tensor whole = at::empty(sizes, x.options().dtype(type));
    whole.narrow(0, 0, tokens).copy_(x);
    whole.narrow(0, tokens, rows - tokens).zero_();
    return whole;
  };
  matrix = filled(matrix_of_any_type);
  if (bias_of_any_type) bias = filled(*bias_of_any_type);
}

Tensor Head::logits(const Tensor& hidden) const {
  const Tensor all = product(hidden, matrix, option(bias), false);
  return all.size(1) == tokens ? all : all.narrow(1, 0, tokens);
}

// A gradient that is one number spread over the rows (that of a sum) says so by its strides, and the device is not asked. In any other the
// numbers are compared, for which the host waits.
bool all_alike(const Tensor& up) {
  if (up.numel() <= 1) return true;
  const auto strides = up.strides();
  if (std::all_of(strides.begin(), strides.end(), [](int64_t stride) { return stride == 0; })) return true;
  return at::eq(up, up.select(0, 0)).all().item<bool>();
}

namespace {

// As `product`, with gradients where they are wanted: by libtorch's own products then, whose sums over a network's width
// are twice as exact.
Tensor linear(const Tensor& x, const Tensor& matrix, const std::optional<Tensor>& bias, bool gelu) {
  const bool tracked = at::GradMode::is_enabled() &&
      (x.requires_grad() || matrix.requires_grad() || (bias && bias->requires_grad()));
  if (!tracked) return product(x, matrix, bias, gelu);
  const Tensor out = at::linear(x, matrix, bias);
  return gelu ? fused_gelu(out) : out;
}

struct Chunk {
  Tensor hidden, target, weight;
};

Tensor log_probabilities(const Tensor& hidden, const Head& head, int64_t banned) {
  Tensor logits = head.logits(hidden).to(wide(hidden.scalar_type()));
  if (banned >= 0) logits.select(1, banned).fill_(-std::numeric_limits<double>::infinity());
  // In the logits' own memory: each number is read before it is written.
  at::_log_softmax_out(logits, logits, 1, false);
  return logits;
}

// weight * (p - onehot(target)) in the memory of the log-probabilities.
void into_logit_gradient(Tensor& log_p, const Tensor& target, const Tensor& weight) {
  log_p.exp_();
  log_p.scatter_add_(1, target.unsqueeze(1), at::full({target.size(0), 1}, -1.0, log_p.options()));
  log_p.mul_(weight.unsqueeze(1));
}

// Fills `nll` when defined, and gives the gradient of the logits when asked.
Tensor logit_gradient(const Chunk& rows, const Head& head, int64_t banned, const Tensor& nll, bool asked) {
  if (kernel_type(rows.hidden) && kernels_on(rows.hidden)) {
    const Tensor logits = head.logits(rows.hidden);
    // Under an autocast of the caller they may be of another type.
    if (logits.scalar_type() == rows.hidden.scalar_type()) {
      // In the logits' own memory and type.
      kernel_nll(logits, rows.target.contiguous(), rows.weight.contiguous(), option(nll), banned, asked);
      return logits;
    }
  }
  Tensor log_p = log_probabilities(rows.hidden, head, banned);
  if (nll.defined()) nll.copy_(log_p.gather(1, rows.target.unsqueeze(1)).squeeze(1).neg_().mul_(rows.weight));
  if (!asked) return log_p;
  into_logit_gradient(log_p, rows.target, rows.weight);
  return log_p.to(rows.hidden.scalar_type());
}

struct Gradients {
  Tensor hidden, matrix, bias;
};

// One pass over the rows in chunks. Fills `nll` [N] when defined and the gradients when asked; the
// [N, V] logits never exist. `weight` [N] multiplies each row's nats and gradient. `hidden` and `head` are of
// the type in which products are computed; `nll` and the gradients of matrix and bias of its wide type.
void pass(const Tensor& hidden, const Head& head, const Tensor& target, const Tensor& weight, int64_t banned, Tensor nll,
          Gradients* gradients) {
  const int64_t rows = hidden.size(0), step = rows_at_once(head.matrix);
  const Tensor matrix = head.matrix_of_tokens();
  for (int64_t start = 0; start < rows; start += step) {
    const int64_t length = std::min(step, rows - start);
    const auto part = [&](const Tensor& of) { return of.defined() ? of.narrow(0, start, length) : of; };
    const Chunk chunk{part(hidden), part(target), part(weight)};
    const Tensor slope = logit_gradient(chunk, head, banned, part(nll), gradients != nullptr);
    if (!gradients) continue;
    if (gradients->hidden.defined()) part(gradients->hidden).copy_(product(slope, matrix.t(), {}, false));
    if (gradients->matrix.defined()) {
      if (gradients->matrix.scalar_type() == slope.scalar_type()) {
        gradients->matrix.addmm_(slope.t(), chunk.hidden);
      } else {
        gradients->matrix.add_(at::mm(slope.t(), chunk.hidden));
      }
    }
    if (gradients->bias.defined()) gradients->bias.add_(slope.sum(0, false, gradients->bias.scalar_type()));
  }
}

Gradients zeros_like_wanted(const Tensor& hidden, const Head& head, bool want_hidden, bool want_matrix, bool want_bias) {
  const Tensor matrix = head.matrix_of_tokens(), bias = head.bias_of_tokens();
  Gradients g;
  if (want_hidden) g.hidden = at::empty_like(hidden);
  if (want_matrix) g.matrix = at::zeros_like(matrix, matrix.options().dtype(wide(matrix.scalar_type())));
  if (want_bias && bias.defined()) g.bias = at::zeros_like(bias, bias.options().dtype(wide(bias.scalar_type())));
  return g;
}

// Linear head and cross-entropy in one: gradients are made in the forward pass, while the chunk of
// logits is there, for the case that every row's output gets the same gradient (a sum or a mean).
// Any other upstream gradient takes a second pass over the rows.
struct LinearNll : torch::autograd::Function<LinearNll> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& hidden_in,
                        const Tensor& matrix_in, const std::optional<Tensor>& with_bias,
                        const Tensor& target, const Tensor& weight_in, int64_t banned, at::ScalarType type) {
    const bool wants[3] = {hidden_in.requires_grad(), matrix_in.requires_grad(),
                           with_bias && with_bias->requires_grad()};
    ctx->saved_data["hidden_type"] = static_cast<int64_t>(hidden_in.scalar_type());
    ctx->saved_data["matrix_type"] = static_cast<int64_t>(matrix_in.scalar_type());
    // Autograd takes no undefined tensor as an argument, but an empty option.
    const Tensor hidden = hidden_in.to(type), weight = weight_in.to(wide(type));
    const Head head(matrix_in, with_bias, type);
    Gradients g = zeros_like_wanted(hidden, head, wants[0], wants[1], wants[2]);
    Tensor nll = at::empty({hidden.size(0)}, hidden.options().dtype(wide(type)));
    pass(hidden, head, target, weight, banned, nll, &g);
    ctx->save_for_backward({hidden, head.matrix, head.bias, target, weight});
    ctx->saved_data["banned"] = banned;
    ctx->saved_data["tokens"] = head.tokens;
    ctx->saved_data["hidden"] = g.hidden;
    ctx->saved_data["matrix"] = g.matrix;
    ctx->saved_data["bias"] = g.bias;
    return nll;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list upstream) {
    const auto saved = ctx->get_saved_variables();
    const Tensor& up = upstream[0];
    // The gradients of the forward pass are given away, so that they become the parameters' own without a copy: a graph
    // that is kept and walked again makes them anew.
    auto take = [&](const char* name) {
      auto found = ctx->saved_data.find(name);
      if (found == ctx->saved_data.end() || !found->second.isTensor()) return Tensor();
      Tensor value = std::move(found->second).toTensor();
      ctx->saved_data.erase(found);
      return value;
    };
    Gradients g{take("hidden"), take("matrix"), take("bias")};
    const bool made = g.hidden.defined() || g.matrix.defined() || g.bias.defined();
    if (made && all_alike(up)) {
      const Tensor scale = up.numel() == 0 ? at::ones({}, up.options()) : up.select(0, 0);
      for (Tensor* part : {&g.hidden, &g.matrix, &g.bias}) {
        if (part->defined()) part->mul_(scale);
      }
    } else {
      const Head head(saved[1], saved[2], ctx->saved_data["tokens"].toInt());
      g = zeros_like_wanted(saved[0], head, ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                            saved[2].defined() && ctx->needs_input_grad(2));
      at::NoGradGuard no_grad;
      pass(saved[0], head, saved[3], saved[4] * up,
           ctx->saved_data["banned"].toInt(), Tensor(), &g);
    }
    const auto as = [&](const Tensor& gradient, const char* key) {
      const auto type = static_cast<at::ScalarType>(ctx->saved_data[key].toInt());
      return gradient.defined() ? gradient.to(type) : gradient;
    };
    return {as(g.hidden, "hidden_type"), as(g.matrix, "matrix_type"), as(g.bias, "matrix_type"),
            Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// Selective scan (Mamba): h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, y_t = C_t h_t, h_0 = 0.
//
// The length is cut into about sqrt(L) chunks of about sqrt(L) steps, padded with dt = 0 (which keeps the state). All
// chunks walk their steps side by side from a zero state, the states are then carried from chunk to chunk (a chunk's
// whole decay is exp(A sum dt)), and a second walk starts from the right states. Sequential work is sqrt(L) either way.
//
// Letters: S steps in a chunk, J chunks, M = B J rows that walk together, E channels, N states.
struct ScanShape {
  int64_t batch, length, steps, chunks;

  explicit ScanShape(const Tensor& u) : batch(u.size(0)), length(u.size(1)) {
    steps = std::max<int64_t>(1, std::llround(std::ceil(std::sqrt(static_cast<double>(length)))));
    chunks = (length + steps - 1) / steps;
  }

  // [B, L, X] -> [S, M, X]
  Tensor split(const Tensor& x) const {
    const int64_t pad = steps * chunks - length;
    return at::constant_pad_nd(x, {0, 0, 0, pad}).view({batch, chunks, steps, -1}).permute({2, 0, 1, 3})
        .contiguous().view({steps, batch * chunks, -1});
  }

  // [S, M, X] -> [B, L, X]
  Tensor join(const Tensor& x) const {
    return x.view({steps, batch, chunks, -1}).permute({1, 2, 0, 3}).reshape({batch, steps * chunks, -1})
        .narrow(1, 0, length);
  }

  // From the end state of each chunk walked from zero, [M, E, N], and each chunk's decay: the state in which each chunk
  // starts, where a chunk follows the one before it, or the one after it when `backwards`.
  Tensor carry(const Tensor& ends, const Tensor& decay, bool backwards) const {
    const Tensor end = ends.view({batch, chunks, ends.size(1), ends.size(2)}), factor = decay.view_as(end);
    Tensor starts = at::zeros_like(end);
    for (int64_t i = 1; i < chunks; ++i) {
      const int64_t to = backwards ? chunks - 1 - i : i, from = backwards ? to + 1 : to - 1;
      starts.select(1, to).copy_(at::addcmul(end.select(1, from), starts.select(1, from), factor.select(1, from)));
    }
    return starts.view_as(ends);
  }
};

// The tensors of a scan cut into chunks: dt, input = dt u [S, M, E]; b, c [S, M, N]; a [E, N].
struct Scan {
  ScanShape shape;
  Tensor dt, input, a, b, c;

  Scan(const Tensor& u, const Tensor& dt_, const Tensor& a_, const Tensor& b_, const Tensor& c_)
      : shape(u), dt(shape.split(dt_)), input(shape.split(dt_ * u)), a(a_), b(shape.split(b_)), c(shape.split(c_)) {}

  // In the type of dt. A GPU's autocast makes dt float32 and leaves the others in 16 bits, and would round the products of a walk.
  static std::vector<Tensor> alike(const Tensor& u, const Tensor& dt, const Tensor& a, const Tensor& b, const Tensor& c) {
    const auto type = dt.scalar_type();
    return {u.to(type), dt, a.to(type), b.to(type), c.to(type)};
  }

  Tensor decay(int64_t step) const { return (dt[step].unsqueeze(-1) * a).exp_(); }

  Tensor whole_decay() const { return (dt.sum(0).unsqueeze(-1) * a).exp_(); }

  // state <- decay state + input b
  void advance(Tensor& state, int64_t step) const {
    state.mul_(decay(step)).addcmul_(input[step].unsqueeze(-1), b[step].unsqueeze(1));
  }

  Tensor zero_state() const { return at::zeros({dt.size(1), dt.size(2), a.size(1)}, dt.options()); }

  // The state in which each chunk starts, [M, E, N].
  Tensor starts() const {
    Tensor state = zero_state();
    if (shape.chunks == 1) return state;
    for (int64_t i = 0; i < shape.steps; ++i) advance(state, i);
    return shape.carry(state, whole_decay(), false);
  }

  Tensor output(Tensor state) const {
    Tensor y = at::empty_like(dt);
    for (int64_t i = 0; i < shape.steps; ++i) {
      advance(state, i);
      y.select(0, i).copy_(at::bmm(state, c[i].unsqueeze(-1)).squeeze(-1));
    }
    return shape.join(y);
  }
};

struct SelectiveScan : torch::autograd::Function<SelectiveScan> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& u, const Tensor& dt, const Tensor& a,
                        const Tensor& b, const Tensor& c) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const std::vector<Tensor> x = Scan::alike(u, dt, a, b, c);
    const Scan scan(x[0], x[1], x[2], x[3], x[4]);
    const Tensor starts = scan.starts();
    ctx->save_for_backward({x[0], x[1], x[2], x[3], x[4], starts});
    return scan.output(starts.clone());
  }

  // With g_t = dL/dh_t: g_t = C_t dy_t + exp(dt_{t+1} A) g_{t+1}, walked as the forward scan but from the end.
  // The states of one layer exist at once, [L, E, N] for each row of the batch, and are gone when this returns.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list upstream) {
    at::NoGradGuard no_grad;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const auto saved = ctx->get_saved_variables();
    const Scan scan(saved[0], saved[1], saved[2], saved[3], saved[4]);
    const ScanShape& shape = scan.shape;
    const Tensor u = shape.split(saved[0]), dy = shape.split(upstream[0].to(scan.dt.scalar_type()));
    std::vector<Tensor> states{saved[5]};
    for (int64_t i = 0; i < shape.steps; ++i) {
      states.push_back(states.back().clone());
      scan.advance(states.back(), i);
    }
    Tensor g = scan.zero_state();
    auto add_output = [&](int64_t i) { g.addcmul_(dy[i].unsqueeze(-1), scan.c[i].unsqueeze(1)); };
    if (shape.chunks > 1) {
      for (int64_t i = shape.steps - 1; i >= 0; --i) {
        add_output(i);
        g.mul_(scan.decay(i));
      }
      g = shape.carry(g, scan.whole_decay(), true);
    }
    Tensor du = at::empty_like(u), ddt = at::empty_like(u), da = at::zeros_like(scan.a);
    Tensor db = at::empty_like(scan.b), dc = at::empty_like(scan.c);
    for (int64_t i = shape.steps - 1; i >= 0; --i) {
      add_output(i);
      dc.select(0, i).copy_(at::bmm(dy[i].unsqueeze(1), states[i + 1]).squeeze(1));
      db.select(0, i).copy_(at::bmm(scan.input[i].unsqueeze(1), g).squeeze(1));
      const Tensor dinput = at::bmm(g, scan.b[i].unsqueeze(-1)).squeeze(-1);
      g.mul_(scan.decay(i));
      const Tensor dexponent = g * states[i];
      states.pop_back();
      da.add_(at::einsum("men,me->en", {dexponent, scan.dt[i]}));
      ddt.select(0, i).copy_((dexponent * scan.a).sum(-1).addcmul_(dinput, u[i]));
      du.select(0, i).copy_(dinput.mul_(scan.dt[i]));
    }
    return {shape.join(du), shape.join(ddt), da, shape.join(db), shape.join(dc)};
  }
};

}  // namespace

extern "C" {

char* maskdiff_fused_adamw(Tensor* const* params, Tensor* const* grads, Tensor* const* exp_avgs,
                           Tensor* const* exp_avg_sqs, Tensor* const* steps, size_t count, double lr,
                           double beta1, double beta2, double weight_decay, double eps, double divisor) {
  return guarded([&] {
    if (count == 0) return;
    at::NoGradGuard no_grad;
    auto p = list(params, count), g = list(grads, count), m = list(exp_avgs, count);
    auto v = list(exp_avg_sqs, count), s = list(steps, count);
    at::_foreach_add_(s, 1);
    std::optional<Tensor> scale;
    if (divisor != 1.0) {
      // The kernel holds the divisor in float32, which is too coarse for gradients in float64.
      if (g[0].scalar_type() == at::kDouble) {
        at::_foreach_mul_(g, 1.0 / divisor);
      } else {
        scale = at::full({}, divisor, g[0].options().dtype(at::kFloat));
      }
    }
    at::_fused_adamw_(p, g, m, v, {}, s, lr, beta1, beta2, weight_decay, eps, false, false, scale);
  });
}

char* maskdiff_foreach_lerp(Tensor* const* into, Tensor* const* from, size_t count, double weight) {
  return guarded([&] {
    if (count == 0) return;
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

// A number in f64, left on the device.
char* maskdiff_global_norm(Tensor* const* tensors, size_t count, Tensor** norm) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto norms = at::_foreach_norm(list(tensors, count), 2);
    *norm = new Tensor(at::stack(norms).to(at::kDouble).norm());
  });
}

char* maskdiff_clear_grads(Tensor* const* tensors, size_t count) {
  return guarded([&] {
    for (const Tensor& tensor : list(tensors, count)) tensor.mutable_grad().reset();
  });
}

char* maskdiff_linear(const Tensor* x, const Tensor* matrix, const Tensor* bias, int gelu,
                      Tensor** result) {
  return guarded([&] {
    const auto b = bias ? std::optional(*bias) : std::nullopt;
    *result = new Tensor(linear(*x, *matrix, b, gelu != 0));
  });
}

char* maskdiff_linear_nll(const Tensor* hidden, const Tensor* matrix, const Tensor* bias,
                          const Tensor* target, const Tensor* weight, int64_t banned, int type,
                          Tensor** result) {
  return guarded([&] {
    const auto b = bias ? std::optional(*bias) : std::nullopt;
    const auto computed = type < 0 ? hidden->scalar_type() : static_cast<at::ScalarType>(type);
    const bool tracked = at::GradMode::is_enabled() &&
        (hidden->requires_grad() || matrix->requires_grad() || (b && b->requires_grad()));
    if (tracked) {
      *result = new Tensor(LinearNll::apply(*hidden, *matrix, b, *target, *weight, banned, computed));
    } else {
      Tensor nll = at::empty({hidden->size(0)}, hidden->options().dtype(wide(computed)));
      pass(hidden->to(computed), Head(*matrix, b, computed), *target, weight->to(wide(computed)), banned, nll, nullptr);
      *result = new Tensor(nll);
    }
  });
}

char* maskdiff_selective_scan(const Tensor* u, const Tensor* dt, const Tensor* a, const Tensor* b,
                              const Tensor* c, Tensor** result) {
  return guarded([&] {
    bool tracked = false;
    for (const Tensor* x : {u, dt, a, b, c}) tracked |= x->requires_grad();
    if (at::GradMode::is_enabled() && tracked) {
      *result = new Tensor(SelectiveScan::apply(*u, *dt, *a, *b, *c));
    } else {
      const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
      const std::vector<Tensor> x = Scan::alike(*u, *dt, *a, *b, *c);
      const Scan scan(x[0], x[1], x[2], x[3], x[4]);
      *result = new Tensor(scan.output(scan.starts()));
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
    // cuBLAS reads it when its first handle is made, and libtorch refuses products without it.
    if (on) c10::utils::set_env("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/false);
    at::globalContext().setDeterministicAlgorithms(on != 0, false);
  });
}

// A tensor over an implementation that another language holds, whose count goes up by one.
char* maskdiff_tensor_of_impl(void* impl, Tensor** result) {
  return guarded([&] {
    using Pointer = c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
    *result = new Tensor(Pointer::reclaim_copy(static_cast<c10::TensorImpl*>(impl)));
  });
}

// Bytes that tensors hold on a GPU: now, at most so far, and at most with what the allocator keeps for later.
char* maskdiff_device_bytes(int index, int64_t* now, int64_t* peak, int64_t* reserved) {
  return guarded([&] {
    const auto stats = at::getDeviceAllocator(at::kCUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(index));
    const auto& bytes = stats.allocated_bytes[0];
    *now = bytes.current;
    *peak = bytes.peak;
    *reserved = stats.reserved_bytes[0].peak;
  });
}

// Lets malloc keep what is freed for what comes next, up to 1 GiB: a step of training takes the same memory as the one before, and the
// kernel would clear each page anew.
void maskdiff_keep_memory() {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

// Bytes that malloc has handed out and not got back. glibc counts in 64 bits since 2.33; an older one gives the rest modulo 2^32.
uint64_t maskdiff_allocated_bytes() {
#if __GLIBC_PREREQ(2, 33)
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
#else
  const struct mallinfo info = mallinfo();
  return static_cast<uint32_t>(info.uordblks) + static_cast<uint64_t>(static_cast<uint32_t>(info.hblkhd));
#endif
}

void maskdiff_free_message(char* text) { free(text); }
}
