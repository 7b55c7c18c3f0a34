// The bound of uniform and hybrid diffusion over a linear head, without all logits. See shim.h for how errors leave.
//
// For a row with clean token x, observed token z, noise u = `every` on each token and the network's law p:
//   nats = w { sum_v p~_v psi(q_v / p~_v) + phi(q_z / p~_z) },   q = alpha onehot(x) + u,   p~ = alpha p + u,
//   psi(r) = r ln r - r + 1,   phi(r) = r - 1 - ln r,   w = (arrival rate at z) / q_z.
// For v other than x, with y = alpha p_v / u, p~ psi is u (y - ln(1 + y)). The gradient of a logit is, with s_v = y / (1 + y),
//   w alpha p_v { c_v - sum_k p_k c_k },   c_v = s_v, but for x: -alpha (1 - p_x) / p~_x; and [v = z] (1 - q_z / p~_z) / p~_z more.
// No difference of nearly equal numbers is left in it. What is one number a row is float64; what is one number a token has the
// type of the logits. A row of 16 MiB of them is walked three times: the sum, the terms, the gradient, in the logits' own memory.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "head.h"
#include "kernels.h"
#include "shim.h"
#include "vectorized.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kBlock = 512;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Row {
  int64_t x, z;
  double alpha, every, weight;

  // So that alpha / u stays finite. Without uniform noise the limit is reached to all digits.
  double every_at_least() const { return std::max({every, alpha * 1e-30, std::numeric_limits<double>::min()}); }
};

// What a row's law gives: the log-probabilities of x and z, and over all tokens but x the sums of u (y - ln(1 + y)) and p s.
struct Sums {
  double log_x, log_z, divergence, share;
};

// A row's nats and what its gradient takes: g_v = factor p_v (s_v - mean), but factor at_x for x, and factor more_at_z more for z.
struct Slopes {
  double nats, factor, mean, at_x, more_at_z;
};

// (1 + d) ln(1 + d) - d, and d - ln(1 + d), by their series near 0.
double psi(double d, double log_ratio) {
  if (std::abs(d) >= 0.02) return (1 + d) * log_ratio - d;
  double sum = 0, power = d * d;
  for (int k = 2; k < 11; ++k, power *= -d) sum += power / (k * (k - 1));
  return sum;
}

double phi(double d, double log_ratio) {
  if (std::abs(d) >= 0.02) return d - log_ratio;
  double sum = 0, power = d * d;
  for (int k = 2; k < 11; ++k, power *= -d) sum += power / k;
  return sum;
}

Slopes finish(const Row& row, const Sums& sums, bool z_is_banned) {
  if (row.weight == 0) return {0, 0, 0, 0, 0};
  const double alpha = row.alpha, u = row.every, p_x = std::exp(sums.log_x), rest = -std::expm1(sums.log_x);
  const double mixed_x = alpha * p_x + u, d_x = alpha * rest / mixed_x;
  // Without noise a likelihood that underflows is still known by its logarithm.
  const double log_x = u > 0 ? std::log((alpha + u) / mixed_x) : -sums.log_x;
  const double own = std::isfinite(d_x) ? mixed_x * psi(d_x, log_x) : alpha * (log_x - rest);
  double observed = 0, more_at_z = 0;
  if (row.z == row.x) {
    observed = phi(d_x, log_x);
    more_at_z = -d_x / mixed_x;
  } else if (!z_is_banned) {
    const double p_z = std::exp(sums.log_z), mixed_z = alpha * p_z + u, d_z = -alpha * p_z / mixed_z;
    observed = phi(d_z, std::log(u / mixed_z));
    more_at_z = -d_z / mixed_z;
  }
  const double p_z = more_at_z == 0 ? 0 : std::exp(sums.log_z), of_z = p_z * more_at_z, of_x = u > 0 ? p_x * d_x : rest;
  const double mean = sums.share - of_x + of_z, nats = row.weight * (sums.divergence + own + observed);
  return {nats, row.weight * alpha, mean, -of_x - p_x * mean, of_z};
}

// e^(l - peak), 0 far below it.
VECTORIZED __attribute__((always_inline)) inline float far_below(float l, float peak) {
  const float x = l - peak, e = exponential(x);
  return x < -80.0f ? 0.0f : e;
}

FOR_EACH_PROCESSOR void powers(float* l, float peak, int64_t n) {
  for (int64_t i = 0; i < n; ++i) l[i] = far_below(l[i], peak);
}

struct OfToken {
  float term, share;
};

// y - ln(1 + y) and y / (1 + y) for y >= 0, with 2 atanh for the logarithm: r = y / (2 + y) near 0, where the difference is
// r (y - 2 r^2/3 - ..), else r = (m - 1) / (m + 1) for 1 + y = 2^e m. A division is slow: both come from one.
VECTORIZED __attribute__((always_inline)) inline OfToken of_token(float y) {
  const float one = 1.0f + y;
  int32_t bits;
  memcpy(&bits, &one, sizeof bits);
  const int32_t exponent = (bits - 0x3F3504F3) >> 23;
  const int32_t rest = bits - (exponent << 23);
  float m;
  memcpy(&m, &rest, sizeof m);
  const bool near = y < 0.4f;
  // below is at most 2.5, so that its product with 1 + y is finite.
  const float top = near ? y : m - 1.0f, below = top + 2.0f, inverse = 1.0f / (below * one);
  const float r = top * one * inverse, square = r * r;
  const float tail = square * (1.0f / 3 + square * (1.0f / 5 + square * (1.0f / 7 + square * (1.0f / 9 + square / 11))));
  const float e = static_cast<float>(exponent);
  const float far = (y - e * 0.693145751953125f) - (e * 1.42860682030941723e-6f + 2.0f * r);
  return {(near ? r * y : far) - 2.0f * r * tail, y * below * inverse};
}

// The law p in the place of its powers, and of each token its term and its share of the mean.
FOR_EACH_PROCESSOR void terms(float* l, float* term, float* share, float scale, float slope, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float p = l[i] * scale;
    const OfToken of = of_token(slope * p);
    l[i] = p;
    term[i] = of.term;
    share[i] = p * of.share;
  }
}

FOR_EACH_PROCESSOR void gradient(float* p, const float* share, float factor, float mean, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = factor * (share[i] - p[i] * mean);
}

// The largest number, and whether one is NaN. That is told by the bits: the compiler takes all numbers for finite.
FOR_EACH_PROCESSOR bool peak_of(const float* l, int64_t n, float* found) {
  float peak = l[0];
  int32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    int32_t bits;
    memcpy(&bits, l + i, sizeof bits);
    bits &= 0x7FFFFFFF;
    most = bits > most ? bits : most;
    peak = l[i] > peak ? l[i] : peak;
  }
  *found = peak;
  return most > 0x7F800000;
}

VECTORIZED float sum_of(const float* x, int64_t n) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int k = 0; k < 16; ++k) lanes[k] += x[i + k];
  }
  for (; i < n; ++i) lanes[i % 16] += x[i];
  float sum = 0;
  for (float lane : lanes) sum += lane;
  return sum;
}

// The same in float64, where nothing is hurried.
bool peak_of(const double* l, int64_t n, double* found) {
  *found = *std::max_element(l, l + n);
  return std::any_of(l, l + n, [](double x) { return std::isnan(x); });
}

void powers(double* l, double peak, int64_t n) {
  for (int64_t i = 0; i < n; ++i) l[i] = std::exp(l[i] - peak);
}

void terms(double* l, double* term, double* share, double scale, double slope, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double p = l[i] * scale, y = slope * p;
    l[i] = p;
    term[i] = phi(y, std::log1p(y));
    share[i] = p * y / (1 + y);
  }
}

void gradient(double* p, const double* share, double factor, double mean, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = factor * (share[i] - p[i] * mean);
}

double sum_of(const double* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

// One row in place: the logits become their gradient, where it is wanted. `share` has room for a row.
template <typename T>
double walk(T* l, T* share, int64_t n, const Row& row, int64_t banned, bool wanted) {
  T peak = 0;
  if (row.weight == 0 || peak_of(l, n, &peak) || !std::isfinite(peak)) {
    const double nats = row.weight == 0 ? 0.0 : std::numeric_limits<double>::quiet_NaN();
    if (wanted) std::fill(l, l + n, static_cast<T>(nats));
    return nats;
  }
  T term[kBlock];
  const auto blocks = [&](auto&& body) {
    for (int64_t i = 0; i < n; i += kBlock) body(i, std::min(kBlock, n - i));
  };
  // What is of x is its own, in float64: beside a probability near 1 the others would leave no trace.
  const double at_x = l[row.x], at_z = l[row.z], power_x = std::exp(at_x - peak);
  l[row.x] = -std::numeric_limits<T>::infinity();
  double others = 0;
  blocks([&](int64_t i, int64_t m) {
    powers(l + i, peak, m);
    others += sum_of(l + i, m);
  });
  const double total = others + power_x, norm = peak + std::log(total), every = row.every_at_least();
  // A quotient by a denormal number would be infinite.
  const double log_x = power_x > 1e-300 ? -std::log1p(others / power_x) : at_x - norm;
  Sums sums{log_x, row.z == row.x ? log_x : at_z - norm, 0, 0};
  const T slope = static_cast<T>(row.alpha / every), scale = static_cast<T>(1 / total);
  blocks([&](int64_t i, int64_t m) {
    terms(l + i, term, share + i, scale, slope, m);
    sums.divergence += every * sum_of(term, m);
    sums.share += sum_of(share + i, m);
  });
  const Slopes s = finish(row, sums, row.z == banned);
  if (wanted) {
    blocks([&](int64_t i, int64_t m) { gradient(l + i, share + i, static_cast<T>(s.factor), static_cast<T>(s.mean), m); });
    l[row.x] = static_cast<T>(s.factor * s.at_x);
    l[row.z] += static_cast<T>(s.factor * s.more_at_z);
    if (banned >= 0) l[banned] = 0;
  }
  return s.nats;
}

// Clean and observed tokens [N] i64; alpha, every and weight [N] f64.
struct Rows {
  Tensor x, z, alpha, every, weight;
  int64_t banned;

  Rows narrow(int64_t start, int64_t length) const {
    const auto part = [&](const Tensor& t) { return t.narrow(0, start, length); };
    return {part(x), part(z), part(alpha), part(every), part(weight), banned};
  }
};

template <typename T>
void walk_all(const Tensor& logits, const Rows& rows, const Tensor& nats, bool wanted) {
  const int64_t count = logits.size(0), n = logits.size(1);
  const int64_t *x = rows.x.const_data_ptr<int64_t>(), *z = rows.z.const_data_ptr<int64_t>();
  const double *alpha = rows.alpha.const_data_ptr<double>(), *every = rows.every.const_data_ptr<double>();
  const double* weight = rows.weight.const_data_ptr<double>();
  T *l = logits.mutable_data_ptr<T>(), *out = nats.mutable_data_ptr<T>();
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK(x[i] >= 0 && x[i] < n && z[i] >= 0 && z[i] < n, "a token is outside of 0..", n, ": ", x[i], " or ", z[i]);
  }
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> share(n);
    for (int64_t i = begin; i < end; ++i) {
      out[i] = static_cast<T>(walk(l + i * n, share.data(), n, Row{x[i], z[i], alpha[i], every[i], weight[i]}, rows.banned, wanted));
    }
  });
}

// The same by libtorch's operations, for devices where no loop of ours runs.
Tensor near_or(const Tensor& d, const Tensor& far, bool is_psi) {
  Tensor sum = at::zeros_like(d);
  for (int k = 10; k > 1; --k) sum.mul_(d).neg_().add_(1.0 / (is_psi ? k * (k - 1) : k));
  // float32 loses more to the difference than to the tenth power of 0.2.
  return at::where(d.abs() < (d.scalar_type() == at::kDouble ? 0.02 : 0.2), sum.mul_(d).mul_(d), far);
}

void walk_tensors(const Tensor& logits, const Rows& rows, const Tensor& nats, bool wanted) {
  const auto type = logits.scalar_type();
  const Tensor x = rows.x.unsqueeze(1), z = rows.z.unsqueeze(1), alpha = rows.alpha, u = rows.every;
  const Tensor peak = at::amax(logits, {1}, true);
  const Tensor every = at::maximum(u, alpha * 1e-30).clamp_min(std::numeric_limits<double>::min());
  const auto at = [&](const Tensor& i) { return logits.gather(1, i).squeeze(1).to(at::kDouble); };
  const Tensor raw_x = at(x), raw_z = at(z);
  logits.sub_(peak).exp_();
  const Tensor total = logits.sum(1, false, at::kDouble), norm = peak.squeeze(1).to(at::kDouble) + total.log();
  const Tensor log_x = raw_x - norm, log_z = raw_z - norm;
  logits.div_(total.unsqueeze(1).to(type)).scatter_(1, x, 0.0);
  const Tensor y = logits * (alpha / every).unsqueeze(1).to(type);
  const Tensor share = y / (y + 1);
  Tensor term = near_or(y, y - y.log1p(), false);
  const Tensor divergence = every * term.sum(1, false, at::kDouble);
  term = Tensor();
  const Tensor shares = (logits * share).sum(1, false, at::kDouble);
  const Tensor p_x = log_x.exp(), rest = -log_x.expm1(), mixed_x = alpha * p_x + u, d_x = alpha * rest / mixed_x;
  const Tensor ratio_x = at::where(u > 0, ((alpha + u) / mixed_x).log(), -log_x);
  const Tensor own = at::where(d_x.isfinite(), mixed_x * near_or(d_x, (d_x + 1) * ratio_x - d_x, true), alpha * (ratio_x - rest));
  const Tensor p_z = log_z.exp(), mixed_z = alpha * p_z + u, d_z = -alpha * p_z / mixed_z, same = rows.x == rows.z;
  Tensor observed = at::where(same, near_or(d_x, d_x - ratio_x, false), near_or(d_z, d_z - (u / mixed_z).log(), false));
  Tensor more = at::where(same, -d_x / mixed_x, -d_z / mixed_z) * p_z;
  if (rows.banned >= 0) {
    const Tensor none = (rows.z == rows.banned).logical_and(same.logical_not());
    observed = observed.masked_fill(none, 0.0);
    more = more.masked_fill(none, 0.0);
  }
  const Tensor idle = rows.weight == 0;
  nats.copy_((rows.weight * (divergence + own + observed)).masked_fill(idle, 0.0));
  if (!wanted) return;
  const Tensor of_x = at::where(u > 0, p_x * d_x, rest), mean = shares - of_x + more, factor = rows.weight * alpha;
  logits.mul_(share.sub(mean.unsqueeze(1).to(type))).mul_(factor.unsqueeze(1).to(type));
  logits.scatter_(1, x, (factor * (-of_x - p_x * mean)).unsqueeze(1).to(type));
  logits.scatter_add_(1, z, (factor * more).unsqueeze(1).to(type));
  if (rows.banned >= 0) logits.select(1, rows.banned).zero_();
  logits.masked_fill_(idle.unsqueeze(1), 0.0);
}

struct Gradients {
  Tensor hidden, matrix, bias;
};

// Fills `nats`, and gives the gradient of the logits of these rows when asked, in the type of `hidden`.
Tensor logit_gradient(const Tensor& hidden, const Head& head, const Rows& rows, const Tensor& nats, bool by_tensors, bool asked) {
  Tensor logits = head.logits(hidden);
  // Under an autocast of the caller they may be of another type.
  if (!by_tensors && kernel_type(hidden) && logits.scalar_type() == hidden.scalar_type() && kernels_on(hidden)) {
    // In the logits' own memory and type.
    kernel_bound(logits, {rows.x, rows.z, rows.alpha, rows.every, rows.weight}, nats, rows.banned, asked);
    return logits;
  }
  logits = logits.to(wide(hidden.scalar_type()));
  if (rows.banned >= 0) logits.select(1, rows.banned).fill_(-kInfinity);
  if (by_tensors || !logits.is_cpu()) {
    walk_tensors(logits, rows, nats, asked);
  } else if (logits.scalar_type() == at::kDouble) {
    walk_all<double>(logits, rows, nats, asked);
  } else {
    walk_all<float>(logits, rows, nats, asked);
  }
  return asked ? logits.to(hidden.scalar_type()) : logits;
}

// One pass over the rows in chunks, as for cross-entropy.
void pass(const Tensor& hidden, const Head& head, const Rows& rows, const Tensor& nats, bool by_tensors, Gradients* gradients) {
  const int64_t count = hidden.size(0), step = rows_at_once(head.matrix);
  const Tensor matrix = head.matrix_of_tokens();
  for (int64_t start = 0; start < count; start += step) {
    const int64_t length = std::min(step, count - start);
    const Tensor h = hidden.narrow(0, start, length), out = nats.narrow(0, start, length);
    const Tensor g = logit_gradient(h, head, rows.narrow(start, length), out, by_tensors, gradients != nullptr);
    if (!gradients) continue;
    if (gradients->hidden.defined()) {
      gradients->hidden.narrow(0, start, length).copy_(product(g, matrix.t(), {}, false));
    }
    if (gradients->matrix.defined()) {
      if (gradients->matrix.scalar_type() == g.scalar_type()) {
        gradients->matrix.addmm_(g.t(), h);
      } else {
        gradients->matrix.add_(at::mm(g.t(), h));
      }
    }
    if (gradients->bias.defined()) gradients->bias.add_(g.sum(0, false, gradients->bias.scalar_type()));
  }
}

Tensor wide_zeros(const Tensor& like) { return at::zeros_like(like, like.options().dtype(wide(like.scalar_type()))); }

// Gradients are made in the forward pass, for the case that every row's output gets the same gradient (a sum or a mean). Any other
// upstream gradient takes a second pass.
struct Interpolating : torch::autograd::Function<Interpolating> {
  static Tensor forward(AutogradContext* ctx, const Tensor& hidden_in, const Tensor& matrix_in,
                        const std::optional<Tensor>& bias_in, const Rows& rows, at::ScalarType type, bool by_tensors) {
    const bool wants[3] = {hidden_in.requires_grad(), matrix_in.requires_grad(), bias_in && bias_in->requires_grad()};
    const Tensor hidden = hidden_in.to(type);
    const Head head(matrix_in, bias_in, type);
    Gradients g = wanted(hidden, head, wants);
    const Tensor nats = at::empty({hidden.size(0)}, hidden.options().dtype(wide(type)));
    pass(hidden, head, rows, nats, by_tensors, &g);
    ctx->save_for_backward({hidden, head.matrix, head.bias, rows.x, rows.z, rows.alpha, rows.every, rows.weight});
    ctx->saved_data["numbers"] = std::vector<int64_t>{rows.banned, by_tensors, head.tokens};
    const auto type_of = [](const Tensor& t) { return static_cast<int64_t>(t.scalar_type()); };
    ctx->saved_data["types"] = std::vector<int64_t>{type_of(hidden_in), type_of(matrix_in), type_of(bias_in.value_or(matrix_in))};
    ctx->saved_data["made"] = std::vector<Tensor>{filled(g.hidden), filled(g.matrix), filled(g.bias)};
    return nats;
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    at::NoGradGuard no_grad;
    const auto saved = ctx->get_saved_variables();
    const Tensor& up = upstream[0];
    const bool wants[3] = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                           saved[2].defined() && ctx->needs_input_grad(2)};
    Gradients g;
    // The gradients of the forward pass are given away without a copy: a graph that is walked again makes them anew.
    if (auto found = ctx->saved_data.find("made"); found != ctx->saved_data.end()) {
      const auto made = found->second.toTensorVector();
      ctx->saved_data.erase(found);
      if (all_alike(up)) {
        g = {wants[0] ? made[0] : Tensor(), wants[1] ? made[1] : Tensor(), wants[2] ? made[2] : Tensor()};
        const Tensor scale = up.numel() == 0 ? at::ones({}, up.options()) : up.select(0, 0);
        for (Tensor* part : {&g.hidden, &g.matrix, &g.bias}) {
          if (part->defined()) part->mul_(scale);
        }
      }
    }
    if (!g.hidden.defined() && !g.matrix.defined() && !g.bias.defined()) {
      const auto numbers = ctx->saved_data["numbers"].toIntVector();
      const Rows rows{saved[3], saved[4], saved[5], saved[6], saved[7] * up.to(at::kDouble), numbers[0]};
      const Head head(saved[1], saved[2], numbers[2]);
      g = wanted(saved[0], head, wants);
      pass(saved[0], head, rows, at::empty_like(up), numbers[1] != 0, &g);
    }
    const auto types = ctx->saved_data["types"].toIntVector();
    const auto as = [&](const Tensor& gradient, int i) {
      return gradient.defined() ? gradient.to(static_cast<at::ScalarType>(types[i])) : gradient;
    };
    return {as(g.hidden, 0), as(g.matrix, 1), as(g.bias, 2), Tensor(), Tensor(), Tensor()};
  }

  static Gradients wanted(const Tensor& hidden, const Head& head, const bool (&wants)[3]) {
    const Tensor matrix = head.matrix_of_tokens(), bias = head.bias_of_tokens();
    Gradients g;
    if (wants[0]) g.hidden = at::empty_like(hidden);
    if (wants[1]) g.matrix = wide_zeros(matrix);
    if (wants[2]) g.bias = wide_zeros(bias);
    return g;
  }

  // A list of saved values holds no undefined tensor.
  static Tensor filled(const Tensor& gradient) { return gradient.defined() ? gradient : at::empty({0}); }
};

}  // namespace

extern "C" char* maskdiff_interpolating_nll(const Tensor* hidden, const Tensor* matrix, const Tensor* bias, const Tensor* x,
                                            const Tensor* z, const Tensor* alpha, const Tensor* every, const Tensor* weight,
                                            int64_t banned, int type, int by_tensors, Tensor** result) {
  return guarded([&] {
    for (const Tensor* constant : {alpha, every, weight}) {
      TORCH_CHECK(!constant->requires_grad(), "no gradient flows to alpha, to the noise or to the weight of a row");
    }
    const int64_t count = hidden->size(0);
    for (const Tensor* row : {x, z, alpha, every, weight}) {
      TORCH_CHECK(row->dim() == 1 && row->size(0) == count, "a value for each of the ", count, " rows, got ", row->sizes());
    }
    const auto b = bias ? std::optional(*bias) : std::nullopt;
    const auto computed = type < 0 ? hidden->scalar_type() : static_cast<at::ScalarType>(type);
    const auto wide_row = [](const Tensor* t) { return t->to(at::kDouble).contiguous(); };
    const Rows rows{x->contiguous(), z->contiguous(), wide_row(alpha), wide_row(every), wide_row(weight), banned};
    const bool tracked = at::GradMode::is_enabled() &&
        (hidden->requires_grad() || matrix->requires_grad() || (b && b->requires_grad()));
    if (tracked) {
      *result = new Tensor(Interpolating::apply(*hidden, *matrix, b, rows, computed, by_tensors != 0));
    } else {
      at::NoGradGuard no_grad;
      const Tensor nats = at::empty({hidden->size(0)}, hidden->options().dtype(wide(computed)));
      pass(hidden->to(computed), Head(*matrix, b, computed), rows, nats, by_tensors != 0, nullptr);
      *result = new Tensor(nats);
    }
  });
}
