// What a step costs on a real device: a line for each kernel, with the tensors that it reads and writes. scripts/gpu_time.py counts bytes and
// products from it.

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <string>

#include "../../plugin-api/native/kernels/arguments.h"
#include "../../plugin-api/native/kernels/call.h"
#include "pretended.h"

namespace pretended {
namespace {

struct Record {
  std::mutex lock;
  std::FILE* file = nullptr;
};

Record& record() {
  static auto* one = new Record();
  return *one;
}

const char* type_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kBFloat16: return "bf16";
    case at::kHalf: return "f16";
    case at::kFloat: return "f32";
    case at::kDouble: return "f64";
    case at::kLong: return "i64";
    case at::kInt: return "i32";
    case at::kBool: return "bool";
    default: return "other";
  }
}

// Whether the rows of a matrix begin where no load of 16 bytes does.
bool is_odd(const at::Tensor& x) {
  if (x.dim() != 2 || x.size(0) == 1 || x.size(1) == 1) return false;
  return std::max(x.stride(0), x.stride(1)) * x.element_size() % 16 != 0;
}

// A number that is spread over many places is read once. "!" marks what `is_odd`.
std::string words_of(const std::vector<at::Tensor>& tensors) {
  std::string words;
  for (const at::Tensor& x : tensors) {
    if (!x.defined() || !x.is_cuda()) continue;
    words += std::string(words.empty() ? "" : " ") + type_of(x) + ":";
    for (int64_t i = 0; i < x.dim(); ++i) words += (i ? "x" : "") + std::to_string(x.stride(i) == 0 ? 1 : x.size(i));
    if (x.dim() == 0) words += "1";
    if (is_odd(x)) words += "!";
  }
  return words;
}

void line(const std::string& name, const std::string& reads, const std::string& writes) {
  const std::lock_guard<std::mutex> guard(record().lock);
  if (record().file) std::fprintf(record().file, "%s\t%s\t%s\n", name.c_str(), reads.c_str(), writes.c_str());
}

template <typename T>
const T& as(const KernelCall& call) {
  return *static_cast<const T*>(call.arguments);
}

std::string sized(char letter, std::initializer_list<long long> sizes) {
  std::string words = letter == 'b' ? "bf16:" : "f32:";
  bool first = true;
  for (const long long size : sizes) {
    words += (first ? "" : "x") + std::to_string(size);
    first = false;
  }
  return words;
}

}  // namespace

bool records() { return record().file != nullptr; }

void record_operator(const std::string& name, const std::vector<at::Tensor>& reads, const std::vector<at::Tensor>& writes) {
  if (records()) line(name, words_of(reads), words_of(writes));
}

// Of a kernel of ours only the arguments are known; the tensors that are large are told by them.
void record_kernel(const KernelCall& call) {
  if (!records()) return;
  const std::string name = call.name;
  const auto letter = [&](size_t from_end) { return name[name.size() - 1 - from_end]; };
  std::string reads, writes;
  if (name.rfind("turn", 0) == 0) {
    const auto& a = as<TurnArguments>(call);
    reads = writes = sized(letter(0), {a.texts, a.length, a.moves_v ? 3 : 2, a.heads, 2 * a.half});
  } else if (name.rfind("gated_back", 0) == 0) {
    const auto& a = as<GatedBackArguments>(call);
    reads = sized(letter(1), {a.rows, a.columns}) + (a.part ? " " + sized(letter(0), {a.rows, a.columns}) : "");
    writes = sized(letter(0), {a.rows, a.columns}) + (a.part ? " " + sized('f', {call.blocks, a.columns}) : "");
  } else if (name.rfind("gated", 0) == 0) {
    const auto& a = as<GatedArguments>(call);
    reads = sized(letter(1), {a.rows, a.columns}) + " " + sized(letter(0), {a.rows, a.columns});
    writes = sized(letter(1), {a.rows, a.columns});
  } else if (name.rfind("norm_back", 0) == 0) {
    const auto& a = as<NormBackArguments>(call);
    reads = sized(letter(1), {a.rows, a.columns}) + " " + sized(letter(0), {a.rows, a.columns});
    if (a.through) reads += " " + sized(letter(1), {a.rows, a.columns});
    writes = sized(letter(1), {a.rows, a.columns}) + " " + sized('f', {call.blocks, 2, a.columns});
  } else if (name.rfind("norm", 0) == 0) {
    const auto& a = as<NormArguments>(call);
    reads = sized(letter(1), {a.rows, a.columns});
    writes = sized(letter(0), {a.rows, a.columns});
  } else if (name == "columns") {
    const auto& a = as<ColumnsArguments>(call);
    reads = sized('f', {call.blocks / ((a.columns + 31) / 32), a.chunks, a.sums, a.columns});
    writes = sized('f', {a.sums, a.columns});
  } else if (name.rfind("nll", 0) == 0) {
    const auto& a = as<NllArguments>(call);
    reads = sized(letter(0), {a.rows, a.columns});
    writes = a.gradient ? reads : sized('f', {a.rows});
  } else if (name.rfind("bound", 0) == 0) {
    const auto& a = as<BoundArguments>(call);
    reads = sized(letter(0), {a.rows, a.columns});
    writes = a.gradient ? reads : sized('f', {a.rows});
  }
  line("maskdiff::" + name, reads, writes);
}

}  // namespace pretended

// For a test in the same process: from now on a line for each kernel into a file; null ends it.
extern "C" int pretended_record(const char* path) {
  auto& r = pretended::record();
  const std::lock_guard<std::mutex> guard(r.lock);
  if (r.file) std::fclose(r.file);
  r.file = path ? std::fopen(path, "w") : nullptr;
  return path && !r.file ? 1 : 0;
}
