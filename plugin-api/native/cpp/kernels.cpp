// The kernels of ../kernels as operators of libtorch, which the program registers once it has them on a GPU. Plugins find them there by
// their names: each has a copy of this shim, and the program's alone knows the GPU. See shim.h for how errors leave.

#include "kernels.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <atomic>

#include "cuda_table.h"
#include "refusal.h"
#include "shim.h"
#include "starts.h"

namespace {

// Raised with every change of an operator: a plugin may have been built with another version of this file, and then goes without.
constexpr int64_t kVersion = 2;
// A bit for each GPU: one that is broken leaves the others theirs.
std::atomic<uint64_t> on{0};
// Of a thread of a test.
thread_local bool on_cpu = false;

uint64_t bit_of(int64_t device) { return device >= 0 && device < 64 ? uint64_t{1} << device : 0; }

// Asked by plugins that were built with version 1.
bool has(int64_t version, bool cuda) { return version == kVersion && (cuda ? on.load() != 0 : on_cpu); }

// `device` is below 0 for the CPU.
bool has_on(int64_t version, int64_t device) { return version == kVersion && (device < 0 ? on_cpu : (on & bit_of(device)) != 0); }

// Once, by the program alone, and for ever.
void define_operators() {
  if (c10::Dispatcher::singleton().findSchema({"maskdiff::kernels", ""})) return;
  static auto* library = new torch::Library(torch::Library::FRAGMENT, "maskdiff", std::nullopt, __FILE__, __LINE__);
  library->def("kernels(int version, bool cuda) -> bool", &has);
  library->def("kernels_on(int version, int device) -> bool", &has_on);
  library->def("turn(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor(a!) into, bool back) -> ()");
  library->def("gated(Tensor x, Tensor? gate, Tensor h, Tensor? seed, int dropped) -> Tensor");
  library->def("gated_back(Tensor up, Tensor? gate, Tensor h, Tensor? seed, int dropped) -> (Tensor, Tensor)");
  library->def("norm(Tensor x, Tensor weight, Tensor? shift, Tensor? scale, ScalarType type) -> (Tensor, Tensor, Tensor)");
  library->def(
      "norm_back(Tensor? through, Tensor up, Tensor x, Tensor mean, Tensor inverse, Tensor weight, Tensor? scale)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  library->def("nll(Tensor(a!) logits, Tensor target, Tensor weight, Tensor(b!)? nll, int banned, bool gradient) -> ()");
  library->def(
      "bound(Tensor(a!) logits, Tensor x, Tensor z, Tensor alpha, Tensor every, Tensor weight, Tensor(b!)? nats, int banned, bool gradient)"
      " -> ()");
  for (const auto key : {c10::DispatchKey::CUDA, c10::DispatchKey::CPU}) {
    library->impl("turn", torch::dispatch(key, &starts::turn));
    library->impl("gated", torch::dispatch(key, &starts::gated));
    library->impl("gated_back", torch::dispatch(key, &starts::gated_back));
    library->impl("norm", torch::dispatch(key, &starts::norm));
    library->impl("norm_back", torch::dispatch(key, &starts::norm_back));
    library->impl("nll", torch::dispatch(key, &starts::nll));
    library->impl("bound", torch::dispatch(key, &starts::bound));
  }
}

// An operator by its name, with gradients left to the caller.
template <typename F, typename... A>
auto call(const char* name, A&&... arguments) {
  const at::AutoDispatchBelowADInplaceOrView below;
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>().call(std::forward<A>(arguments)...);
}

}  // namespace

bool kernels_on(const Tensor& x) {
  if (!x.is_cuda() && !(x.is_cpu() && on_cpu)) return false;
  const auto found = c10::Dispatcher::singleton().findSchema({"maskdiff::kernels_on", ""});
  return found && found->typed<bool(int64_t, int64_t)>().call(kVersion, x.is_cuda() ? x.device().index() : -1);
}

void kernel_turn(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin, const Tensor& into, bool back) {
  call<decltype(starts::turn)>("maskdiff::turn", q, k, v, cos, sin, into, back);
}

Tensor kernel_gated(const Tensor& x, const std::optional<Tensor>& gate, const Tensor& h, const std::optional<Tensor>& seed, int64_t dropped) {
  return call<decltype(starts::gated)>("maskdiff::gated", x, gate, h, seed, dropped);
}

std::tuple<Tensor, Tensor> kernel_gated_back(const Tensor& up, const std::optional<Tensor>& gate, const Tensor& h,
                                             const std::optional<Tensor>& seed, int64_t dropped) {
  return call<decltype(starts::gated_back)>("maskdiff::gated_back", up, gate, h, seed, dropped);
}

std::tuple<Tensor, Tensor, Tensor> kernel_norm(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& shift,
                                               const std::optional<Tensor>& scale, at::ScalarType type) {
  return call<decltype(starts::norm)>("maskdiff::norm", x, weight, shift, scale, type);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> kernel_norm_back(const std::optional<Tensor>& through, const Tensor& up, const Tensor& x,
                                                            const Tensor& mean, const Tensor& inverse, const Tensor& weight,
                                                            const std::optional<Tensor>& scale) {
  return call<decltype(starts::norm_back)>("maskdiff::norm_back", through, up, x, mean, inverse, weight, scale);
}

void kernel_nll(const Tensor& logits, const Tensor& target, const Tensor& weight, const std::optional<Tensor>& filled, int64_t banned, bool gradient) {
  call<decltype(starts::nll)>("maskdiff::nll", logits, target, weight, filled, banned, gradient);
}

void kernel_bound(const Tensor& logits, const BoundRows& rows, const std::optional<Tensor>& nats, int64_t banned, bool gradient) {
  call<decltype(starts::bound)>("maskdiff::bound", logits, rows.x, rows.z, rows.alpha, rows.every, rows.weight, nats, banned, gradient);
}

extern "C" {

// The architecture of a GPU, as 90 for sm_90; 0 where the library over CUDA has the kernels compiled.
char* maskdiff_kernels_architecture(int device, int* result) {
  char* said = nullptr;
  char* closed = guarded([&] { said = cuda_table().kernel_architecture(device, result); });
  return closed ? closed : said;
}

// Takes the compiled kernels of a GPU; null where there is nothing to take.
char* maskdiff_kernels_load(int device, const void* image) {
  char* said = nullptr;
  char* closed = guarded([&] { said = cuda_table().kernel_load(device, image); });
  return closed ? closed : said;
}

int maskdiff_kernels_on(int device) { return (on & bit_of(device)) != 0 ? 1 : 0; }

// An operator of ours by its name, for tests: its tensors (null: none) and its numbers, each in their order.
char* maskdiff_kernels_call(const char* name, const Tensor* const* tensors, const int64_t* numbers) {
  return guarded([&] {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
    torch::jit::Stack stack;
    for (const c10::Argument& argument : op.schema().arguments()) {
      const auto kind = argument.type()->kind();
      if (kind == c10::TypeKind::IntType) {
        stack.emplace_back(*numbers++);
      } else if (kind == c10::TypeKind::BoolType) {
        stack.emplace_back(*numbers++ != 0);
      } else {
        const Tensor* tensor = *tensors++;
        stack.push_back(tensor ? c10::IValue(*tensor) : c10::IValue());
      }
    }
    const at::AutoDispatchBelowADInplaceOrView below;
    op.callBoxed(&stack);
  });
}

// What a refusal of the driver is reported as.
char* maskdiff_kernels_refusal(const char* what, int code, const char* said) { return strdup(refusal(what, code, said).c_str()); }

// Lets networks on a GPU use the kernels from now on, or no longer; below 0 those of this thread on the CPU, as C++, for tests.
char* maskdiff_kernels_switch(int device, int to) {
  return guarded([&] {
    define_operators();
    if (device < 0) {
      on_cpu = to != 0;
    } else if (to) {
      TORCH_CHECK(bit_of(device), "GPU ", device, " is beyond the 64 that kernels of ours know");
      on |= bit_of(device);
    } else {
      on &= ~bit_of(device);
    }
  });
}

}  // extern "C"
