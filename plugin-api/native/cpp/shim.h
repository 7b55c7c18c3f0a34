// What libtorch has and tch does not expose. Every function of the shim catches all C++ exceptions (unwinding
// through Rust aborts) and returns its message, or null when all went well; the caller frees it.

#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <optional>
#include <string>
#include <vector>

namespace {

using at::Tensor;

// The message without libtorch's C++ frames. NCCL's says in its last lines what it is about.
char* message(const std::exception& error) {
  auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  char* text = strdup(torch_error ? torch_error->what_without_backtrace() : error.what());
  if (dynamic_cast<const c10::DistBackendError*>(&error)) std::replace(text, text + strlen(text), '\n', ' ');
  return text;
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

// A tensor that may be undefined, as libtorch's operators take one that may be missing.
std::optional<Tensor> option(const Tensor& tensor) { return tensor.defined() ? std::optional(tensor) : std::nullopt; }

std::vector<Tensor> list(Tensor* const* tensors, size_t count) {
  std::vector<Tensor> result;
  result.reserve(count);
  for (size_t i = 0; i < count; ++i) result.push_back(*tensors[i]);
  return result;
}

}  // namespace
