// Operators of the device: libtorch's own CPU kernels, over the same memory seen from where it may be touched. What a real GPU
// refuses is refused (tensors of two devices in one operator), and what it waits for is counted.

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/NativeFunctions.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <cstring>
#include <unordered_set>

#include "pretended.h"

namespace pretended {

using at::Tensor;
using c10::IValue;
using torch::jit::Stack;

Tape*& recording() {
  static thread_local Tape* tape = nullptr;
  return tape;
}

void refuse_while_recording(const char* what) {
  TORCH_CHECK(!recording(), "CUDA error: operation not permitted when stream is capturing: ", what, " (pretended)");
}

Tensor window(const Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  const auto options = at::TensorOptions().dtype(tensor.dtype()).device(at::kCPU);
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::from_blob(opened(tensor.const_data_ptr()), tensor.sizes(), tensor.strides(), options);
}

namespace {

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<at::Device> device,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(device.value_or(at::Device(at::kCUDA)));
  return at::detail::empty_generic(size, c10::GetAllocator(c10::kCUDA), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   c10::dtype_or_default(type), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                     std::optional<at::Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(device.value_or(at::Device(at::kCUDA)));
  return at::detail::empty_strided_generic(size, stride, c10::GetAllocator(c10::kCUDA), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           c10::dtype_or_default(type));
}

}  // namespace

Tensor uploaded(const Tensor& values, c10::Device device) {
  const Tensor dense = values.is_non_overlapping_and_dense() ? values : values.contiguous();
  Tensor made = empty_strided(dense.sizes(), dense.strides(), dense.scalar_type(), {}, device, {});
  if (dense.numel() > 0) std::memcpy(opened(made.const_data_ptr()), dense.const_data_ptr(), dense.nbytes());
  return made;
}

namespace {

std::string name_of(const c10::FunctionSchema& schema) {
  return schema.overload_name().empty() ? schema.name() : schema.name() + "." + schema.overload_name();
}

// What a GPU has to finish before its result has a shape, or is an answer.
bool waits(const std::string& name) {
  static const std::unordered_set<std::string> all{
      "aten::nonzero",         "aten::nonzero.out", "aten::masked_select", "aten::masked_select.out", "aten::_unique2",
      "aten::unique_dim",      "aten::equal",       "aten::bincount",      "aten::repeat_interleave.Tensor",
      "aten::unique_consecutive", "aten::_unique"};
  return all.count(name) > 0;
}

// Indices may be on the host, where the device copies them.
bool takes_indices_of_the_host(const std::string& name) {
  return name == "aten::index" || name == "aten::index_put_" || name == "aten::_index_put_impl_" || name == "aten::index_put";
}

template <typename F>
void each_tensor(const IValue& value, F&& look) {
  if (value.isTensor()) {
    look(value.toTensor());
  } else if (value.isTensorList()) {
    for (const Tensor& tensor : value.toTensorList()) look(tensor);
  } else if (value.isOptionalTensorList()) {
    for (const std::optional<Tensor> tensor : value.toOptionalTensorList()) {
      if (tensor) look(*tensor);
    }
  }
}

std::vector<Tensor> tensors_of(const std::vector<IValue>& values) {
  std::vector<Tensor> all;
  for (const IValue& value : values) each_tensor(value, [&](const Tensor& tensor) { all.push_back(tensor); });
  return all;
}

// The device that all tensors are on. A single number may be on the host, where it becomes an argument of the kernel.
c10::Device device_of(const c10::FunctionSchema& schema, const std::vector<IValue>& arguments) {
  std::optional<c10::Device> device;
  const bool mixes = takes_indices_of_the_host(schema.name());
  for (const IValue& argument : arguments) {
    each_tensor(argument, [&](const Tensor& tensor) {
      if (!tensor.defined() || (!tensor.is_cuda() && (tensor.dim() == 0 || mixes))) return;
      TORCH_CHECK(!device || *device == tensor.device(), "Expected all tensors to be on the same device, but found at least two devices, ",
                  *device, " and ", tensor.device(), "! (", name_of(schema), ", pretended)");
      device = tensor.device();
    });
    if (!device && argument.isDevice()) device = argument.toDevice();
  }
  return device.value_or(c10::Device(c10::kCUDA, 0));
}

bool written(const c10::Argument& argument) { return argument.alias_info() && argument.alias_info()->isWrite(); }

// An argument as the CPU's kernel takes it. What it writes into may have no memory yet and then gets some of the host.
IValue lowered(const IValue& value) {
  if (value.isTensor()) return window(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorList()) list.push_back(window(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const std::optional<Tensor> tensor : value.toOptionalTensorList()) {
      list.push_back(tensor ? std::optional<Tensor>(window(*tensor)) : std::nullopt);
    }
    return list;
  }
  if (value.isDevice()) return c10::Device(c10::kCPU);
  return value;
}

// Takes over what the kernel put into memory of its own, because the tensor had none or too little.
void take_over(const Tensor& tensor, const Tensor& seen) {
  if (!tensor.is_cuda() || seen.numel() == 0 || (tensor.numel() > 0 && tensor.sizes() == seen.sizes())) return;
  grow(tensor, seen.sizes());
  window(tensor).copy_(seen);
}

// One result, of which the kernel has made `made`: new memory of the device, or the argument whose memory it is.
Tensor raised(const Tensor& made, const std::vector<IValue>& arguments, c10::Device device, const c10::FunctionSchema& schema) {
  if (!made.defined()) return made;
  std::optional<Tensor> own;
  bool shares = false;
  for (const IValue& argument : arguments) {
    each_tensor(argument, [&](const Tensor& tensor) {
      if (!tensor.defined() || !tensor.is_cuda() || made.numel() == 0) return;
      const char *first = static_cast<const char*>(opened(tensor.storage().data())), *at = static_cast<const char*>(made.const_data_ptr());
      if (at < first || at >= first + tensor.storage().nbytes()) return;
      shares = true;
      if (at == opened(tensor.const_data_ptr()) && made.sizes() == tensor.sizes() && made.strides() == tensor.strides()) own = tensor;
    });
  }
  TORCH_CHECK(!shares || own, name_of(schema), " gives a view of its argument, and the pretended device knows only those of its list");
  return own ? *own : uploaded(made, device);
}

// With PRETENDED_SHAPES=1 shapes alone count (record.cpp): a product is that of one column and one row, since a CPU may take minutes for
// those of a large head in bfloat16.
void thin(const std::string& name, Stack& stack) {
  static const bool wanted = std::getenv("PRETENDED_SHAPES") != nullptr;
  if (!wanted || (name != "aten::mm" && name != "aten::addmm" && name != "aten::addmm_")) return;
  const size_t first = name == "aten::mm" ? 0 : 1;
  if (stack[first].toTensor().size(1) == 0) return;
  stack[first] = stack[first].toTensor().narrow(1, 0, 1);
  stack[first + 1] = stack[first + 1].toTensor().narrow(0, 0, 1);
}

// Computes an operator; returns its results.
std::vector<IValue> run(const c10::OperatorHandle& op, const std::vector<IValue>& arguments) {
  const auto& schema = op.schema();
  const c10::Device device = device_of(schema, arguments);
  const at::AutoDispatchBelowADInplaceOrView below;
  Stack stack;
  for (const IValue& argument : arguments) stack.push_back(lowered(argument));
  thin(schema.name(), stack);
  const Stack seen = stack;
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!written(schema.arguments()[i])) continue;
    if (arguments[i].isTensor()) take_over(arguments[i].toTensor(), seen[i].toTensor());
  }
  std::vector<IValue> results;
  for (size_t i = 0; i < stack.size(); ++i) {
    const auto* alias = schema.returns()[i].alias_info();
    std::optional<IValue> own;
    for (size_t k = 0; alias && alias->isWrite() && k < arguments.size(); ++k) {
      const auto* theirs = schema.arguments()[k].alias_info();
      if (theirs && *theirs == *alias) own = arguments[k];
    }
    if (own) {
      results.push_back(*own);
    } else if (stack[i].isTensor()) {
      results.push_back(raised(stack[i].toTensor(), arguments, device, schema));
    } else if (stack[i].isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : stack[i].toTensorList()) list.push_back(raised(tensor, arguments, device, schema));
      results.push_back(list);
    } else {
      results.push_back(stack[i]);
    }
  }
  return results;
}

// Puts the values of one computation into the tensors of another.
void refresh(const IValue& kept, const IValue& values) {
  std::vector<Tensor> into, from;
  each_tensor(kept, [&](const Tensor& tensor) { into.push_back(tensor); });
  each_tensor(values, [&](const Tensor& tensor) { from.push_back(tensor); });
  for (size_t i = 0; i < into.size(); ++i) {
    if (into[i].defined() && into[i].is_cuda() && into[i].const_data_ptr() != from[i].const_data_ptr()) {
      window(into[i]).copy_(window(from[i]));
    }
  }
}

void computed(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const auto& schema = op.schema();
  const std::string name = name_of(schema);
  count_operator(name);
  if (waits(name)) {
    refuse_while_recording(name.c_str());
    count_read(name.c_str());
  }
  std::vector<IValue> arguments(stack->end() - static_cast<ptrdiff_t>(schema.arguments().size()), stack->end());
  torch::jit::drop(*stack, schema.arguments().size());
  const auto results = run(op, arguments);
  if (records()) {
    std::vector<IValue> into;
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (written(schema.arguments()[i])) into.push_back(arguments[i]);
    }
    for (size_t i = 0; i < results.size(); ++i) {
      if (!schema.returns()[i].alias_info()) into.push_back(results[i]);
    }
    record_operator(name, tensors_of(arguments), tensors_of(into));
  }
  stack->insert(stack->end(), results.begin(), results.end());
  if (Tape* tape = recording()) {
    tape->push_back([op, arguments, results] {
      const auto again = run(op, arguments);
      for (size_t i = 0; i < results.size(); ++i) refresh(results[i], again[i]);
    });
  }
}

Tensor& copy(Tensor& into, const Tensor& from, bool) {
  if (into.is_cuda() != from.is_cuda()) {
    // A number of the host becomes an argument of a kernel that fills.
    if (into.is_cuda() && from.dim() == 0) {
      count_operator("aten::fill_");
      record_operator("aten::fill_", {}, {into});
    } else {
      refuse_while_recording("a copy between host and device");
      count_copy(into.is_cuda(), static_cast<int64_t>(from.nbytes()));
    }
  } else {
    count_operator("aten::copy_");
    record_operator("aten::copy_", {from}, {into});
  }
  const auto copied = [into, from] { window(into).copy_(window(from)); };
  copied();
  if (Tape* tape = recording()) tape->push_back(copied);
  return into;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool wait) {
  Tensor into = to;
  return copy(into, from, wait);
}

// One kernel for tensors of one device; others are copied one by one.
void copy_each(at::TensorList into, at::TensorList from, bool wait) {
  bool one = !into.empty();
  for (size_t i = 0; i < into.size(); ++i) one &= into[i].device() == into[0].device() && from[i].device() == into[0].device();
  if (one) {
    count_operator("aten::_foreach_copy_");
    record_operator("aten::_foreach_copy_", from.vec(), into.vec());
  }
  for (size_t i = 0; i < into.size(); ++i) {
    if (one) {
      window(into[i]).copy_(window(from[i]));
    } else {
      copy_from(from[i], into[i], wait);
    }
  }
}

at::Scalar read(const Tensor& tensor) {
  refuse_while_recording("a value is read");
  count_read("a value");
  return at::_local_scalar_dense(window(tensor));
}

const Tensor& resize(const Tensor& tensor, c10::IntArrayRef size, std::optional<at::MemoryFormat>) {
  grow(tensor, size);
  return tensor;
}

// Attention in one kernel, as on a GPU: the one that takes a mask, in any type. 2 is its number, 0 that of plain products.
int64_t choice(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double dropout, bool, std::optional<double>,
               bool) {
  return dropout == 0.0 ? 2 : 0;
}

// libtorch asks by a table of functions that its CUDA half fills.
const struct Chooses {
  Chooses() { at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choice); }
} chooses;

void attention(const c10::OperatorHandle&, c10::DispatchKeySet, Stack* stack) {
  count_operator("aten::_scaled_dot_product_efficient_attention");
  std::vector<IValue> a(stack->end() - 8, stack->end());
  torch::jit::drop(*stack, 8);
  const Tensor q = a[0].toTensor(), k = a[1].toTensor(), v = a[2].toTensor();
  TORCH_CHECK(q.device() == k.device() && q.device() == v.device(), "attention over tensors of two devices (pretended)");
  const auto mask = a[3].isNone() ? std::optional<Tensor>() : std::optional<Tensor>(window(a[3].toTensor()));
  const bool causal = a[6].toBool();
  const auto scale = a[7].toOptional<double>();
  const auto compute = [=] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return at::_scaled_dot_product_flash_attention_for_cpu(window(q), window(k), window(v), 0.0, causal, mask, scale);
  };
  const auto [out, sums] = compute();
  const Tensor kept = uploaded(out, q.device()), kept_sums = uploaded(sums, q.device());
  record_operator("aten::_scaled_dot_product_efficient_attention", {q, k, v}, {kept});
  if (Tape* tape = recording()) tape->push_back([=] { window(kept).copy_(std::get<0>(compute())); });
  const Tensor seed = uploaded(at::zeros({}, at::kLong), q.device());
  for (const Tensor& result : {kept, kept_sums, seed, seed}) stack->push_back(result);
}

void attention_backward(const c10::OperatorHandle&, c10::DispatchKeySet, Stack* stack) {
  count_operator("aten::_scaled_dot_product_efficient_attention_backward");
  std::vector<IValue> a(stack->end() - 13, stack->end());
  torch::jit::drop(*stack, 13);
  const auto seen = [&](size_t i) { return window(a[i].toTensor()); };
  const at::AutoDispatchBelowADInplaceOrView below;
  const bool masked = a[4].isTensor() && a[4].toTensor().defined();
  const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      seen(0), seen(1), seen(2), seen(3), seen(5), seen(6), 0.0, a[11].toBool(), masked ? std::optional<Tensor>(seen(4)) : std::nullopt,
      a[12].toOptional<double>());
  const c10::Device device = a[1].toTensor().device();
  const std::vector<Tensor> results{uploaded(dq, device), uploaded(dk, device), uploaded(dv, device)};
  record_operator("aten::_scaled_dot_product_efficient_attention_backward",
                  {a[0].toTensor(), a[1].toTensor(), a[2].toTensor(), a[3].toTensor(), a[5].toTensor()}, results);
  stack->insert(stack->end(), results.begin(), results.end());
  stack->push_back(Tensor());
}

// Kernels of a GPU that libtorch would put together from others here.
const char* const kOneKernel[] = {"convolution", "convolution_backward", "native_layer_norm", "native_layer_norm_backward",
                                  "_foreach_lerp_.Scalar", "_foreach_mul_.Scalar", "_foreach_norm.Scalar", "_foreach_add_.List",
                                  "_foreach_add_.Scalar", "_foreach_div_.Scalar", "_foreach_mul_.Tensor"};

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&computed>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy);
  m.impl("_copy_from", &copy_from);
  m.impl("_foreach_copy_", &copy_each);
  m.impl("_local_scalar_dense", &read);
  m.impl("resize_", &resize);
  m.impl("_fused_sdp_choice", &choice);
  m.impl("_scaled_dot_product_efficient_attention", torch::CppFunction::makeFromBoxedFunction<&attention>());
  m.impl("_scaled_dot_product_efficient_attention_backward", torch::CppFunction::makeFromBoxedFunction<&attention_backward>());
  for (const char* name : kOneKernel) m.impl(name, torch::CppFunction::makeFromBoxedFunction<&computed>());
  // Views are the host's affair.
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("record_stream", [](Tensor&, c10::Stream) {});
}

}  // namespace pretended
