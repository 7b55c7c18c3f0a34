// Values of rows in a block of others, with a gradient that keeps what is known of it. See shim.h for how errors leave.

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "shim.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor placed(const Tensor& x, const Tensor& rows, const Tensor& value) { return x.reshape({-1}).index_copy(0, rows, value).view(x.sizes()); }

// As libtorch's index_copy, but the gradient of a sum, one number spread over the block, is again one number spread over the rows. So the
// fused losses see by its strides that all rows weigh the same, and need not wait for a device to compare them.
struct Put : torch::autograd::Function<Put> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& rows, const Tensor& value) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({rows});
    return placed(x, rows, value);
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    const Tensor rows = ctx->get_saved_variables()[0], &up = upstream[0];
    const Tensor flat = up.reshape({-1});
    Tensor to_x, to_value;
    if (ctx->needs_input_grad(0)) to_x = flat.index_fill(0, rows, 0).view(up.sizes());
    if (ctx->needs_input_grad(2)) {
      const auto strides = up.strides();
      const bool spread = up.numel() > 0 && std::all_of(strides.begin(), strides.end(), [](int64_t stride) { return stride == 0; });
      to_value = spread ? flat.select(0, 0).expand({rows.size(0)}) : flat.index_select(0, rows);
    }
    return {to_x, Tensor(), to_value};
  }
};

}  // namespace

// x [..] with `value` [N] at the flat positions `rows` [N], all different.
extern "C" char* maskdiff_put_rows(const Tensor* x, const Tensor* rows, const Tensor* value, Tensor** result) {
  return guarded([&] { *result = new Tensor(Put::apply(*x, *rows, *value)); });
}
