// The kernels of ../kernels as operators of libtorch, which the program registers once it has them on a GPU. Plugins find them there by
// their names: each has a copy of this shim, and the program's alone knows the GPU. See shim.h for how errors leave.

#include "kernels.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <atomic>

#include "../kernels/arguments.h"
#include "../kernels/as_cpp.h"
#include "cuda_table.h"
#include "shim.h"

namespace {

// Raised with every change of an operator: a plugin may have been built with another version of this file, and then goes without.
constexpr int64_t kVersion = 1;
constexpr int64_t kSharedBytes = 48 << 10;
// Of a grid. Some kernels have a block for each part of their work, and no loop over parts.
constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;

std::atomic<bool> on{false};
// Of a thread of a test.
thread_local bool on_cpu = false;

int type_of(const Tensor& x) { return x.scalar_type() == at::kBFloat16 ? 1 : 0; }

// The letters of a kernel's types.
std::string letters(const Tensor& x) { return type_of(x) ? "b" : "f"; }

template <typename Arguments>
void start(const std::string& name, const Tensor& where, int64_t blocks, int64_t warps, int64_t shared, const Arguments& arguments,
           size_t pointers) {
  const KernelCall call{name.c_str(),  static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, kMostBlocks)),
                        static_cast<unsigned>(warps), static_cast<unsigned>(shared), &arguments, sizeof arguments, pointers,
                        where.device().index()};
  if (where.is_cpu()) {
    TORCH_CHECK(run_as_cpp(call, nullptr), "there is no kernel ", name);
    return;
  }
  if (char* said = cuda_table().kernel_start(&call)) {
    const std::string words = said;
    free(said);
    TORCH_CHECK(false, words, ": `trainer.kernels=plain` does without it");
  }
}

// What belongs to groups of rows: [1 or B, 1, D].
struct Modulation {
  const void* at = nullptr;
  int type = 0;
  int64_t groups = 1, stride = 0;

  explicit Modulation(const std::optional<Tensor>& x) {
    if (!x || !x->defined()) return;
    at = x->const_data_ptr();
    type = type_of(*x);
    groups = x->size(0);
    stride = groups > 1 ? x->stride(0) : 0;
  }
  bool packs(int64_t numbers) const { return reinterpret_cast<uintptr_t>(at) % 16 == 0 && stride % numbers == 0; }
};

bool aligned(const Tensor& x) { return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0; }

const void* address(const std::optional<Tensor>& x) { return x && x->defined() ? x->const_data_ptr() : nullptr; }

// How the rows of a group are shared out over blocks whose warps hold sums of `numbers` columns.
struct Blocks {
  int64_t warps, chunks, shared;

  Blocks(int64_t rows, int64_t groups, int64_t numbers) {
    const int64_t bytes = numbers * static_cast<int64_t>(sizeof(float));
    warps = std::clamp<int64_t>(kSharedBytes / bytes, 1, 4);
    shared = warps * bytes;
    chunks = std::clamp<int64_t>(rows / groups / (2 * warps), 1, std::max<int64_t>(1, 1056 / groups));
  }
};

void start_columns(const Tensor& part, const ColumnsArguments& arguments, int64_t groups) {
  constexpr int64_t kWarps = 16;
  const int64_t bytes = kWarps * arguments.sums * 32 * static_cast<int64_t>(sizeof(float));
  start("columns", part, groups * ((arguments.columns + 31) / 32), kWarps, bytes, arguments, 6);
}

void turn(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin, const Tensor& into, bool back) {
  TurnArguments a{};
  const Tensor* parts[3] = {&q, &k, &v};
  for (int i = 0; i < 3; ++i) {
    a.text[i] = parts[i]->stride(0);
    a.head[i] = parts[i]->stride(1);
    a.position[i] = parts[i]->stride(2);
  }
  a.q = q.const_data_ptr();
  a.k = k.const_data_ptr();
  a.v = v.const_data_ptr();
  a.cos = cos.const_data_ptr();
  a.sin = sin.const_data_ptr();
  a.into = into.mutable_data_ptr();
  a.table_text = cos.dim() == 5 && cos.size(0) > 1 ? cos.stride(0) : 0;
  a.table_position = cos.size(-4) > 1 ? cos.stride(-4) : 0;
  a.texts = into.size(0);
  a.length = into.size(1);
  a.heads = into.size(3);
  a.half = into.size(4) / 2;
  a.table_type = type_of(cos);
  a.back = back;
  const auto own = into.select(2, 2);
  a.moves_v = own.const_data_ptr() != v.const_data_ptr();
  if (into.numel() == 0) return;
  start("turn_" + letters(into), into, std::min<int64_t>((a.texts * a.length + 7) / 8, 4224), 8, 0, a, 6);
}

Tensor gated(const Tensor& x, const std::optional<Tensor>& gate, const Tensor& h, const std::optional<Tensor>& seed, int64_t dropped) {
  const Tensor out = at::empty_like(x);
  if (x.numel() == 0) return out;
  const Modulation m(gate);
  GatedArguments a{};
  a.x = x.const_data_ptr();
  a.gate = m.at;
  a.h = h.const_data_ptr();
  a.seed = static_cast<const long long*>(address(seed));
  a.out = out.mutable_data_ptr();
  a.columns = x.size(-1);
  a.rows = x.numel() / a.columns;
  a.group = a.rows / m.groups;
  a.stride = m.stride;
  a.gate_type = m.type;
  a.dropped = static_cast<int>(dropped);
  a.packed = a.columns % 8 == 0 && m.packs(8) && aligned(x) && aligned(h) && aligned(out);
  start("gated_" + letters(x) + letters(h), x, (a.rows + 3) / 4, 4, 0, a, 5);
  return out;
}

std::tuple<Tensor, Tensor> gated_back(const Tensor& up, const std::optional<Tensor>& gate, const Tensor& h,
                                      const std::optional<Tensor>& seed, int64_t dropped) {
  const Tensor dh = at::empty_like(h);
  const Modulation m(gate);
  const Tensor dgate = m.at ? at::empty(gate->sizes(), gate->options()) : at::empty({0}, up.options());
  if (up.numel() == 0) return {dh, dgate.zero_()};
  const int64_t columns = up.size(-1), rows = up.numel() / columns;
  const Blocks blocks(rows, m.groups, columns);
  Tensor part;
  GatedBackArguments a{};
  if (m.at) {
    part = at::empty({m.groups * blocks.chunks, columns}, up.options().dtype(at::kFloat));
    a.part = part.mutable_data_ptr<float>();
  }
  a.up = up.const_data_ptr();
  a.gate = m.at;
  a.h = h.const_data_ptr();
  a.seed = static_cast<const long long*>(address(seed));
  a.dh = dh.mutable_data_ptr();
  a.rows = rows;
  a.columns = columns;
  a.group = rows / m.groups;
  a.stride = m.stride;
  a.chunks = blocks.chunks;
  a.gate_type = m.type;
  a.dropped = static_cast<int>(dropped);
  a.packed = columns % 8 == 0 && m.packs(8) && aligned(up) && aligned(h) && aligned(dh);
  start("gated_back_" + letters(up) + letters(h), up, m.groups * blocks.chunks, blocks.warps, blocks.shared, a, 6);
  if (!m.at) return {dh, dgate};
  ColumnsArguments c{};
  c.part = a.part;
  c.first = dgate.mutable_data_ptr();
  c.columns = columns;
  c.chunks = blocks.chunks;
  c.sums = 1;
  c.modulation_type = m.type;
  start_columns(part, c, m.groups);
  return {dh, dgate};
}

std::tuple<Tensor, Tensor, Tensor> norm(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& shift,
                                        const std::optional<Tensor>& scale, at::ScalarType type) {
  const int64_t columns = x.size(-1), rows = x.numel() / columns;
  const Tensor y = at::empty(x.sizes(), x.options().dtype(type));
  const Tensor mean = at::empty({rows}, x.options().dtype(at::kFloat)), inverse = at::empty_like(mean);
  if (rows == 0) return {y, mean, inverse};
  const Modulation m(shift), n(scale);
  NormArguments a{};
  a.x = x.const_data_ptr();
  a.weight = weight.const_data_ptr();
  a.shift = m.at;
  a.scale = n.at;
  a.y = y.mutable_data_ptr();
  a.mean = mean.mutable_data_ptr<float>();
  a.inverse = inverse.mutable_data_ptr<float>();
  a.rows = rows;
  a.columns = columns;
  a.group = rows / m.groups;
  a.stride = m.stride;
  a.eps = 1e-5f;
  a.weight_type = type_of(weight);
  a.modulation_type = m.type;
  a.packed = columns % 4 == 0 && m.packs(4) && n.packs(4) && aligned(x) && aligned(y) && aligned(weight);
  start("norm_" + letters(x) + letters(y), x, (rows + 3) / 4, 4, 0, a, 7);
  return {y, mean, inverse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_back(const std::optional<Tensor>& through, const Tensor& up, const Tensor& x,
                                                     const Tensor& mean, const Tensor& inverse, const Tensor& weight,
                                                     const std::optional<Tensor>& scale) {
  const int64_t columns = x.size(-1), rows = x.numel() / columns;
  const Modulation m(scale);
  const Tensor dx = at::empty_like(x), none = at::empty({0}, x.options());
  Tensor dshift = none, dscale = none;
  if (m.at) {
    dshift = at::empty(scale->sizes(), scale->options());
    dscale = at::empty_like(dshift);
  }
  if (rows == 0) return {dx, at::zeros_like(weight), dshift.zero_(), dscale.zero_()};
  const Blocks blocks(rows, m.groups, 2 * columns);
  const Tensor part = at::empty({m.groups * blocks.chunks, 2, columns}, x.options().dtype(at::kFloat));
  NormBackArguments a{};
  a.through = address(through);
  a.up = up.const_data_ptr();
  a.x = x.const_data_ptr();
  a.weight = weight.const_data_ptr();
  a.scale = m.at;
  a.mean = mean.const_data_ptr<float>();
  a.inverse = inverse.const_data_ptr<float>();
  a.dx = dx.mutable_data_ptr();
  a.part = part.mutable_data_ptr<float>();
  a.rows = rows;
  a.columns = columns;
  a.group = rows / m.groups;
  a.stride = m.stride;
  a.chunks = blocks.chunks;
  a.weight_type = type_of(weight);
  a.modulation_type = m.type;
  a.packed = columns % 4 == 0 && m.packs(4) && aligned(x) && aligned(up) && aligned(weight) && (!a.through || aligned(*through));
  start("norm_back_" + letters(x) + letters(up), x, m.groups * blocks.chunks, blocks.warps, blocks.shared, a, 9);
  // The weight belongs to all groups.
  const Tensor dweight = m.groups == 1 ? at::empty_like(weight) : at::empty({m.groups, columns}, part.options());
  ColumnsArguments c{};
  c.part = a.part;
  c.weight = a.weight;
  c.scale = a.scale;
  c.first = m.at ? dshift.mutable_data_ptr() : nullptr;
  c.second = m.at ? dscale.mutable_data_ptr() : nullptr;
  c.third = dweight.mutable_data_ptr();
  c.columns = columns;
  c.chunks = blocks.chunks;
  c.stride = m.stride;
  c.sums = 2;
  c.weight_type = a.weight_type;
  c.modulation_type = m.type;
  c.third_type = type_of(dweight);
  start_columns(part, c, m.groups);
  return {dx, m.groups == 1 ? dweight : dweight.sum(0).to(weight.scalar_type()), dshift, dscale};
}

void nll(const Tensor& logits, const Tensor& target, const Tensor& weight, const std::optional<Tensor>& nll, int64_t banned, bool gradient) {
  if (logits.numel() == 0) return;
  NllArguments a{};
  a.logits = logits.mutable_data_ptr();
  a.target = reinterpret_cast<const long long*>(target.const_data_ptr<int64_t>());
  a.weight = weight.const_data_ptr<float>();
  a.nll = nll && nll->defined() ? nll->mutable_data_ptr<float>() : nullptr;
  a.rows = logits.size(0);
  a.columns = logits.size(1);
  a.stride = logits.stride(0);
  a.banned = banned;
  a.gradient = gradient;
  a.pack = 1;
  for (const int pack : {4, 2}) {
    const bool fits = a.columns % pack == 0 && a.stride % pack == 0 &&
        reinterpret_cast<uintptr_t>(a.logits) % (pack * logits.element_size()) == 0;
    if (fits && a.pack == 1) a.pack = pack;
  }
  constexpr int64_t kWarps = 16;
  start("nll_" + letters(logits), logits, a.rows, kWarps, (2 * kWarps + 1) * static_cast<int64_t>(sizeof(float)), a, 4);
}

bool has(int64_t version, bool cuda) { return version == kVersion && (cuda ? on.load() : on_cpu); }

// Once, by the program alone, and for ever.
void define_operators() {
  if (c10::Dispatcher::singleton().findSchema({"maskdiff::kernels", ""})) return;
  static auto* library = new torch::Library(torch::Library::FRAGMENT, "maskdiff", std::nullopt, __FILE__, __LINE__);
  library->def("kernels(int version, bool cuda) -> bool", &has);
  library->def("turn(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor(a!) into, bool back) -> ()");
  library->def("gated(Tensor x, Tensor? gate, Tensor h, Tensor? seed, int dropped) -> Tensor");
  library->def("gated_back(Tensor up, Tensor? gate, Tensor h, Tensor? seed, int dropped) -> (Tensor, Tensor)");
  library->def("norm(Tensor x, Tensor weight, Tensor? shift, Tensor? scale, ScalarType type) -> (Tensor, Tensor, Tensor)");
  library->def(
      "norm_back(Tensor? through, Tensor up, Tensor x, Tensor mean, Tensor inverse, Tensor weight, Tensor? scale)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  library->def("nll(Tensor(a!) logits, Tensor target, Tensor weight, Tensor(b!)? nll, int banned, bool gradient) -> ()");
  for (const auto key : {c10::DispatchKey::CUDA, c10::DispatchKey::CPU}) {
    library->impl("turn", torch::dispatch(key, &turn));
    library->impl("gated", torch::dispatch(key, &gated));
    library->impl("gated_back", torch::dispatch(key, &gated_back));
    library->impl("norm", torch::dispatch(key, &norm));
    library->impl("norm_back", torch::dispatch(key, &norm_back));
    library->impl("nll", torch::dispatch(key, &nll));
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
  const auto found = c10::Dispatcher::singleton().findSchema({"maskdiff::kernels", ""});
  return found && found->typed<bool(int64_t, bool)>().call(kVersion, x.is_cuda());
}

void kernel_turn(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin, const Tensor& into, bool back) {
  call<decltype(turn)>("maskdiff::turn", q, k, v, cos, sin, into, back);
}

Tensor kernel_gated(const Tensor& x, const std::optional<Tensor>& gate, const Tensor& h, const std::optional<Tensor>& seed, int64_t dropped) {
  return call<decltype(gated)>("maskdiff::gated", x, gate, h, seed, dropped);
}

std::tuple<Tensor, Tensor> kernel_gated_back(const Tensor& up, const std::optional<Tensor>& gate, const Tensor& h,
                                             const std::optional<Tensor>& seed, int64_t dropped) {
  return call<decltype(gated_back)>("maskdiff::gated_back", up, gate, h, seed, dropped);
}

std::tuple<Tensor, Tensor, Tensor> kernel_norm(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& shift,
                                               const std::optional<Tensor>& scale, at::ScalarType type) {
  return call<decltype(norm)>("maskdiff::norm", x, weight, shift, scale, type);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> kernel_norm_back(const std::optional<Tensor>& through, const Tensor& up, const Tensor& x,
                                                            const Tensor& mean, const Tensor& inverse, const Tensor& weight,
                                                            const std::optional<Tensor>& scale) {
  return call<decltype(norm_back)>("maskdiff::norm_back", through, up, x, mean, inverse, weight, scale);
}

void kernel_nll(const Tensor& logits, const Tensor& target, const Tensor& weight, const std::optional<Tensor>& filled, int64_t banned, bool gradient) {
  call<decltype(nll)>("maskdiff::nll", logits, target, weight, filled, banned, gradient);
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

int maskdiff_kernels_on() { return on ? 1 : 0; }

// Lets networks use the kernels from now on, or no longer; on a CPU, as C++, those of this thread, for tests.
char* maskdiff_kernels_switch(int cuda, int to) {
  return guarded([&] {
    define_operators();
    if (cuda) {
      on = to != 0;
    } else {
      on_cpu = to != 0;
    }
  });
}

}  // extern "C"
