// Starts of the kernels. See starts.h; and shim.h for how errors leave.

#include "starts.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <string>

#include "../kernels/arguments.h"
#include "../kernels/as_cpp.h"
#include "checks.h"
#include "cuda_table.h"
#include "kernels.h"

namespace starts {
namespace {

// Of a grid. Some kernels have a block for each part of their work, and no loop over parts.
constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;

int type_of(const Tensor& x) { return x.scalar_type() == at::kBFloat16 ? 1 : 0; }

// The letters of a kernel's types.
std::string letters(const Tensor& x) { return type_of(x) ? "b" : "f"; }

template <typename Arguments>
void start(const std::string& name, const Tensor& where, int64_t blocks, int64_t warps, int64_t shared, const Arguments& arguments,
           size_t pointers) {
  TORCH_CHECK(warps >= 1 && warps <= kMostWarps && shared <= kMostShared, "kernel ", name, ": a block of ", warps, " warps with ", shared,
              " bytes of its own is more than a GPU starts");
  const KernelCall call{name.c_str(),  static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, kMostBlocks)),
                        static_cast<unsigned>(warps), static_cast<unsigned>(shared), &arguments, sizeof arguments, pointers,
                        where.device().index()};
  if (where.is_cpu()) {
    const char* refused = run_as_cpp(call, nullptr);
    TORCH_CHECK(!refused, "kernel ", name, ": ", refused ? refused : "");
    return;
  }
  if (char* said = cuda_table().kernel_start(&call)) {
    const std::string words = said;
    free(said);
    TORCH_CHECK(false, words);
  }
}

// Rows [.., D] that a warp or a block adds up.
const Tensor& rows_of(const Argument& x) {
  x.of_kernels().dense();
  TORCH_CHECK(x.tensor.dim() > 0 && x.tensor.size(-1) > 0 && x.tensor.size(-1) <= kMostColumns, x.op, ": `", x.name, "` is ",
              x.tensor.sizes(), ", and rows of 1 to ", kMostColumns, " numbers are expected");
  return x.tensor;
}

// Kernels are compiled for a stream of the same type as what it meets, or a wider one.
void check_pair(const Argument& wide, const Argument& other) {
  other.of_kernels();
  TORCH_CHECK(wide.tensor.scalar_type() == at::kFloat || other.tensor.scalar_type() == at::kBFloat16, wide.op, ": `", wide.name, "` is ",
              wide.tensor.scalar_type(), " and `", other.name, "` ", other.tensor.scalar_type(), ": no kernel is compiled for this pair");
}

// What belongs to groups of rows of x: [1 or B, 1, D].
void check_modulation(const char* op, const char* name, const Maybe& m, const Tensor& x) {
  if (!m || !m->defined()) return;
  Argument{op, name, *m}.on(x.device()).of_kernels().packed();
  const bool fits = m->dim() == 3 && m->size(1) == 1 && m->size(2) == x.size(-1) && (m->size(0) == 1 || (x.dim() == 3 && m->size(0) == x.size(0)));
  TORCH_CHECK(fits && m->stride(0) >= 0, op, ": `", name, "` is ", m->sizes(), " beside rows ", x.sizes(), ", and [1 or B, 1, D] is expected");
}

void check_seed(const char* op, const Maybe& seed, int64_t dropped, const Tensor& x) {
  TORCH_CHECK(dropped >= 0 && dropped < 65536, op, ": `dropped` is ", dropped, ", and 0..65535 is expected");
  if (dropped == 0) return;
  TORCH_CHECK(seed && seed->defined(), op, ": numbers are dropped, and there is no `seed`");
  Argument{op, "seed", *seed}.on(x.device()).of(at::kLong).shaped({2}).dense();
}

// What belongs to groups of rows: [1 or B, 1, D].
struct Modulation {
  const void* at = nullptr;
  int type = 0;
  int64_t groups = 1, stride = 0;

  explicit Modulation(const Maybe& x) {
    if (!x || !x->defined()) return;
    at = x->const_data_ptr();
    type = type_of(*x);
    groups = x->size(0);
    stride = groups > 1 ? x->stride(0) : 0;
  }
  bool packs(int64_t numbers) const { return reinterpret_cast<uintptr_t>(at) % 16 == 0 && stride % numbers == 0; }
};

bool aligned(const Tensor& x) { return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0; }

const void* address(const Maybe& x) { return x && x->defined() ? x->const_data_ptr() : nullptr; }

// How the rows of a group are shared out over blocks whose warps hold sums of `numbers` columns.
struct Blocks {
  int64_t warps, chunks, shared;

  Blocks(int64_t rows, int64_t groups, int64_t numbers) {
    const int64_t bytes = numbers * static_cast<int64_t>(sizeof(float));
    warps = std::clamp<int64_t>(static_cast<int64_t>(kMostShared) / bytes, 1, 4);
    shared = warps * bytes;
    chunks = std::clamp<int64_t>(rows / groups / (2 * warps), 1, std::max<int64_t>(1, 1056 / groups));
  }
};

void start_columns(const Tensor& part, const ColumnsArguments& arguments, int64_t groups) {
  constexpr int64_t kWarps = 16;
  const int64_t bytes = kWarps * arguments.sums * 32 * static_cast<int64_t>(sizeof(float));
  start("columns", part, groups * ((arguments.columns + 31) / 32), kWarps, bytes, arguments, 6);
}

void check_turn(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin, const Tensor& into) {
  const char* op = "turn";
  Argument{op, "into", into}.of_kernels().dense();
  TORCH_CHECK(into.dim() == 5 && into.size(2) == 3 && into.size(4) % 2 == 0, op, ": `into` is ", into.sizes(),
              ", and [B, L, 3, H, K] with an even K is expected");
  const int64_t texts = into.size(0), length = into.size(1), heads = into.size(3), size = into.size(4);
  const Argument parts[] = {{op, "q", q}, {op, "k", k}, {op, "v", v}};
  for (const Argument& part : parts) {
    part.on(into.device()).of(into.scalar_type()).shaped({texts, heads, length, size}).packed();
  }
  const bool own = cos.dim() == 5;
  TORCH_CHECK(own || cos.dim() == 4, op, ": `cos` is ", cos.sizes(), ", and [L, 1, 1, K/2] or [B, L, 1, 1, K/2] is expected");
  const bool fits = (!own || cos.size(0) == 1 || cos.size(0) == texts) && (cos.size(-4) == 1 || cos.size(-4) == length) && cos.size(-3) == 1 &&
      cos.size(-2) == 1 && cos.size(-1) == size / 2;
  TORCH_CHECK(fits, op, ": `cos` is ", cos.sizes(), " beside `into` ", into.sizes());
  Argument{op, "cos", cos}.on(into.device()).of_kernels().packed();
  Argument{op, "sin", sin}.on(into.device()).of(cos.scalar_type()).shaped(cos.sizes()).packed();
  TORCH_CHECK(sin.strides() == cos.strides(), op, ": `sin` has strides ", sin.strides(), ", and those of `cos`, ", cos.strides(), ", are expected");
}

// Logits of rows that are walked in packs: how many numbers a load brings.
int pack_of(const Tensor& logits) {
  for (const int pack : {4, 2}) {
    const bool fits = logits.size(1) % pack == 0 && logits.stride(0) % pack == 0 &&
        reinterpret_cast<uintptr_t>(logits.const_data_ptr()) % (pack * logits.element_size()) == 0;
    if (fits) return pack;
  }
  return 1;
}

void check_logits(const char* op, const Tensor& logits, int64_t banned) {
  Argument{op, "logits", logits}.of_kernels();
  TORCH_CHECK(logits.dim() == 2, op, ": `logits` is ", logits.sizes(), ", and [N, V] is expected");
  Argument{op, "logits", logits}.packed();
  TORCH_CHECK(logits.size(0) <= 1 || logits.stride(0) >= logits.size(1), op, ": rows of `logits` overlap (strides ", logits.strides(), ")");
  TORCH_CHECK(banned < logits.size(1), op, ": `banned` is ", banned, ", and there are ", logits.size(1), " columns");
}

}  // namespace

void turn(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin, const Tensor& into, bool back) {
  check_turn(q, k, v, cos, sin, into);
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

Tensor gated(const Tensor& x, const Maybe& gate, const Tensor& h, const Maybe& seed, int64_t dropped) {
  const Argument stream{"gated", "x", rows_of({"gated", "x", x})}, part{"gated", "h", h};
  part.on(x.device()).shaped(x.sizes()).dense();
  check_pair(stream, part);
  check_modulation("gated", "gate", gate, x);
  check_seed("gated", seed, dropped, x);
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

std::tuple<Tensor, Tensor> gated_back(const Tensor& up, const Maybe& gate, const Tensor& h,
                                      const Maybe& seed, int64_t dropped) {
  const Argument stream{"gated_back", "up", rows_of({"gated_back", "up", up})}, part_of{"gated_back", "h", h};
  part_of.on(up.device()).shaped(up.sizes()).dense();
  check_pair(stream, part_of);
  check_modulation("gated_back", "gate", gate, up);
  check_seed("gated_back", seed, dropped, up);
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

std::tuple<Tensor, Tensor, Tensor> norm(const Tensor& x, const Tensor& weight, const Maybe& shift,
                                        const Maybe& scale, at::ScalarType type) {
  rows_of({"norm", "x", x});
  const int64_t columns = x.size(-1), rows = x.numel() / columns;
  const Tensor y = at::empty(x.sizes(), x.options().dtype(type));
  check_pair({"norm", "x", x}, {"norm", "type", y});
  Argument{"norm", "weight", weight}.on(x.device()).of_kernels().shaped({columns}).dense();
  check_modulation("norm", "shift", shift, x);
  check_modulation("norm", "scale", scale, x);
  const bool modulated = shift && shift->defined();
  TORCH_CHECK(modulated == (scale && scale->defined()), "norm: `shift` and `scale` are given together, or neither is");
  if (modulated) Argument{"norm", "scale", *scale}.of(shift->scalar_type()).shaped(shift->sizes());
  TORCH_CHECK(!modulated || scale->strides() == shift->strides(), "norm: `shift` and `scale` have other strides");
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

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_back(const Maybe& through, const Tensor& up, const Tensor& x,
                                                     const Tensor& mean, const Tensor& inverse, const Tensor& weight,
                                                     const Maybe& scale) {
  const char* op = "norm_back";
  rows_of({op, "x", x});
  const int64_t columns = x.size(-1), rows = x.numel() / columns;
  Argument{op, "up", up}.on(x.device()).shaped(x.sizes()).dense();
  check_pair({op, "x", x}, {op, "up", up});
  if (through && through->defined()) Argument{op, "through", *through}.on(x.device()).of(x.scalar_type()).shaped(x.sizes()).dense();
  Argument{op, "mean", mean}.on(x.device()).of(at::kFloat).shaped({rows}).dense();
  Argument{op, "inverse", inverse}.on(x.device()).of(at::kFloat).shaped({rows}).dense();
  Argument{op, "weight", weight}.on(x.device()).of_kernels().shaped({columns}).dense();
  check_modulation(op, "scale", scale, x);
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

void nll(const Tensor& logits, const Tensor& target, const Tensor& weight, const Maybe& nll, int64_t banned, bool gradient) {
  check_logits("nll", logits, banned);
  const auto each = [&](const char* name, const Tensor& x, at::ScalarType type) {
    Argument{"nll", name, x}.on(logits.device()).of(type).shaped({logits.size(0)}).dense();
  };
  each("target", target, at::kLong);
  each("weight", weight, at::kFloat);
  if (nll && nll->defined()) each("nll", *nll, at::kFloat);
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
  a.pack = pack_of(logits);
  constexpr int64_t kWarps = 16;
  start("nll_" + letters(logits), logits, a.rows, kWarps, (2 * kWarps + 1) * static_cast<int64_t>(sizeof(float)), a, 4);
}

void bound(const Tensor& logits, const Tensor& x, const Tensor& z, const Tensor& alpha, const Tensor& every, const Tensor& weight,
           const Maybe& nats, int64_t banned, bool gradient) {
  check_logits("bound", logits, banned);
  const auto each = [&](const char* name, const Tensor& row, at::ScalarType type) {
    Argument{"bound", name, row}.on(logits.device()).of(type).shaped({logits.size(0)}).dense();
  };
  each("x", x, at::kLong);
  each("z", z, at::kLong);
  each("alpha", alpha, at::kDouble);
  each("every", every, at::kDouble);
  each("weight", weight, at::kDouble);
  if (nats && nats->defined()) each("nats", *nats, at::kFloat);
  if (logits.numel() == 0) return;
  BoundArguments a{};
  a.logits = logits.mutable_data_ptr();
  a.x = reinterpret_cast<const long long*>(x.const_data_ptr<int64_t>());
  a.z = reinterpret_cast<const long long*>(z.const_data_ptr<int64_t>());
  a.alpha = alpha.const_data_ptr<double>();
  a.every = every.const_data_ptr<double>();
  a.weight = weight.const_data_ptr<double>();
  a.nats = nats && nats->defined() ? nats->mutable_data_ptr<float>() : nullptr;
  a.rows = logits.size(0);
  a.columns = logits.size(1);
  a.stride = logits.stride(0);
  a.banned = banned;
  a.gradient = gradient;
  a.pack = pack_of(logits);
  constexpr int64_t kWarps = 16;
  start("bound_" + letters(logits), logits, a.rows, kWarps, (4 * kWarps + 7) * static_cast<int64_t>(sizeof(float)), a, 7);
}

}  // namespace starts
