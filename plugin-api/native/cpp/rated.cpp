// The loss of masked rows whose tokens open at rates of their own, over a linear head, without all logits. See shim.h for how errors
// leave.
//
// For a row with clean token x, rates w and the network's law p:
//   nats = <w, p> - w_x (ln p_x + 1).
// The gradient of a logit is p_v (w_v + w_x - <w, p>) - w_x [v = x], that of a rate is p_v - (ln p_x + 1) [v = x]. Where all rates are
// equal it is cross-entropy. Rows are taken as many at once as have 16 MiB of logits; the backward pass makes them anew.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "head.h"
#include "shim.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Rows {
  Tensor target, sequence, rate;
  int64_t banned;
};

// The law of some rows and what the loss takes of it, in the type of sums.
struct Part {
  Tensor log_x, p, w, w_x, mean;

  Part(const Tensor& hidden, const Tensor& matrix, const std::optional<Tensor>& bias, const Rows& rows, int64_t start,
       int64_t length) {
    Tensor logits = product(hidden, matrix, bias, false).to(wide(hidden.scalar_type()));
    if (rows.banned >= 0) logits.select(1, rows.banned).fill_(-std::numeric_limits<double>::infinity());
    const Tensor x = rows.target.narrow(0, start, length).unsqueeze(1);
    const Tensor log_sum = logits.logsumexp(-1, true);
    log_x = logits.gather(1, x) - log_sum;
    p = logits.sub_(log_sum).exp_();
    w = rows.rate.index_select(0, rows.sequence.narrow(0, start, length)).to(p.scalar_type());
    w_x = w.gather(1, x);
    mean = (w * p).sum(-1, true);
  }

  Tensor nats() const { return (mean - w_x * (log_x + 1)).squeeze(1); }
};

void pass(const Tensor& hidden, const Tensor& matrix, const Tensor& bias, const Rows& rows, const Tensor& nats) {
  const int64_t count = hidden.size(0), step = rows_at_once(matrix);
  for (int64_t start = 0; start < count; start += step) {
    const int64_t length = std::min(step, count - start);
    const Part part(hidden.narrow(0, start, length), matrix, option(bias), rows, start, length);
    nats.narrow(0, start, length).copy_(part.nats());
  }
}

struct RatedNll : torch::autograd::Function<RatedNll> {
  static Tensor forward(AutogradContext* ctx, const Tensor& hidden_in, const Tensor& matrix_in,
                        const std::optional<Tensor>& bias_in, const Tensor& rate, const Tensor& target, const Tensor& sequence,
                        int64_t banned, at::ScalarType type) {
    const Tensor hidden = hidden_in.to(type), matrix = matrix_in.to(type);
    const Tensor bias = bias_in ? bias_in->to(type) : Tensor();
    const Tensor nats = at::empty({hidden.size(0)}, hidden.options().dtype(wide(type)));
    pass(hidden, matrix, bias, {target, sequence, rate, banned}, nats);
    ctx->save_for_backward({hidden, matrix, bias, rate, target, sequence});
    ctx->saved_data["banned"] = banned;
    const auto type_of = [](const Tensor& t) { return static_cast<int64_t>(t.scalar_type()); };
    ctx->saved_data["types"] = std::vector<int64_t>{type_of(hidden_in), type_of(matrix_in), type_of(bias_in.value_or(matrix_in))};
    return nats;
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    at::NoGradGuard no_grad;
    const auto saved = ctx->get_saved_variables();
    const Tensor &hidden = saved[0], &matrix = saved[1], &bias = saved[2];
    const Rows rows{saved[4], saved[5], saved[3], ctx->saved_data["banned"].toInt()};
    const auto zeros = [](const Tensor& like) { return at::zeros_like(like, like.options().dtype(wide(like.scalar_type()))); };
    Tensor to_hidden, to_matrix, to_bias, to_rate;
    if (ctx->needs_input_grad(0)) to_hidden = at::empty_like(hidden);
    if (ctx->needs_input_grad(1)) to_matrix = zeros(matrix);
    if (bias.defined() && ctx->needs_input_grad(2)) to_bias = zeros(bias);
    if (ctx->needs_input_grad(3)) to_rate = at::zeros_like(rows.rate);
    const int64_t count = hidden.size(0), step = rows_at_once(matrix);
    for (int64_t start = 0; start < count; start += step) {
      const int64_t length = std::min(step, count - start);
      const Tensor h = hidden.narrow(0, start, length);
      const Part part(h, matrix, option(bias), rows, start, length);
      const Tensor up = upstream[0].narrow(0, start, length).to(part.p.scalar_type()).unsqueeze(1);
      const Tensor x = rows.target.narrow(0, start, length).unsqueeze(1);
      if (to_rate.defined()) {
        Tensor g = part.p * up;
        g.scatter_add_(1, x, -(part.log_x + 1) * up);
        to_rate.index_add_(0, rows.sequence.narrow(0, start, length), g.to(to_rate.scalar_type()));
      }
      Tensor g = (part.w + (part.w_x - part.mean)).mul_(part.p).mul_(up);
      g.scatter_add_(1, x, -part.w_x * up);
      g = g.to(hidden.scalar_type());
      if (to_hidden.defined()) to_hidden.narrow(0, start, length).copy_(product(g, matrix.t(), {}, false));
      if (to_matrix.defined()) to_matrix.add_(at::mm(g.t(), h));
      if (to_bias.defined()) to_bias.add_(g.sum(0, false, to_bias.scalar_type()));
    }
    const auto types = ctx->saved_data["types"].toIntVector();
    const auto as = [&](const Tensor& gradient, int i) {
      return gradient.defined() ? gradient.to(static_cast<at::ScalarType>(types[i])) : gradient;
    };
    return {as(to_hidden, 0), as(to_matrix, 1), as(to_bias, 2), to_rate, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" char* maskdiff_rated_nll(const Tensor* hidden, const Tensor* matrix, const Tensor* bias, const Tensor* target,
                                    const Tensor* sequence, const Tensor* rate, int64_t banned, int type, Tensor** result) {
  return guarded([&] {
    const int64_t count = hidden->size(0);
    for (const Tensor* row : {target, sequence}) {
      TORCH_CHECK(row->dim() == 1 && row->size(0) == count, "a value for each of the ", count, " rows, got ", row->sizes());
    }
    TORCH_CHECK(rate->dim() == 2 && rate->size(1) == matrix->size(0), "a rate for each of the ", matrix->size(0), " tokens, got ",
                rate->sizes());
    const auto b = bias ? std::optional(*bias) : std::nullopt;
    const auto computed = type < 0 ? hidden->scalar_type() : static_cast<at::ScalarType>(type);
    const bool tracked = at::GradMode::is_enabled() &&
        (hidden->requires_grad() || matrix->requires_grad() || rate->requires_grad() || (b && b->requires_grad()));
    if (tracked) {
      *result = new Tensor(RatedNll::apply(*hidden, *matrix, b, *rate, *target, *sequence, banned, computed));
    } else {
      at::NoGradGuard no_grad;
      const Tensor nats = at::empty({count}, hidden->options().dtype(wide(computed)));
      pass(hidden->to(computed), matrix->to(computed), b ? b->to(computed) : Tensor(), {*target, *sequence, *rate, banned}, nats);
      *result = new Tensor(nats);
    }
  });
}
