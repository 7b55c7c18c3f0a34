// Attention of a call in tiles: some of its rows over the columns that they see. libtorch's own kernel for CPUs attends, tile by tile; what
// tiles share (keys of the past, gradients) is put together here without the copies that slices and joins would leave to autograd.
// See shim.h for how errors leave.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <numeric>

#include "shim.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// First row and how many, columns of the past from its start, first column of the call and how many.
struct Tile {
  int64_t row, rows, past, own, owns;
};

Tile tile_of(at::IntArrayRef numbers, size_t i) {
  const int64_t* n = numbers.data() + 5 * i;
  return {n[0], n[1], n[2], n[3], n[4]};
}

// [B, H, N, K] whose memory is that of [B, N, H, K], as queries and results have it.
Tensor empty_like_queries(const Tensor& q, int64_t columns) {
  return at::empty({q.size(0), columns, q.size(1), q.size(3)}, q.options()).transpose(1, 2);
}

// The tiles in the order in which they are attended to: those that see most of the past first.
std::vector<size_t> by_past(at::IntArrayRef tiles) {
  std::vector<size_t> order(tiles.size() / 5);
  std::iota(order.begin(), order.end(), 0);
  const auto sees = [&](size_t i) { return std::pair(tile_of(tiles, i).past, tile_of(tiles, i).owns); };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return sees(a) > sees(b); });
  return order;
}

// The columns of a tile: those of the past and those of the call behind them. A copy of the past has room for the call's columns, which
// are written over those of the past that neither this tile nor a later one sees.
class Columns {
 public:
  Columns(const Tensor& own, const Tensor& past, at::IntArrayRef tiles) : own_(own) {
    if (!past.defined()) return;
    int64_t columns = past.size(2);
    for (size_t i = 0; i < tiles.size() / 5; ++i) columns = std::max(columns, tile_of(tiles, i).past + tile_of(tiles, i).owns);
    room_ = empty_like_queries(past, columns);
    room_.narrow(2, 0, past.size(2)).copy_(past);
  }

  Tensor of(const Tile& tile) {
    const Tensor own = own_.narrow(2, tile.own, tile.owns);
    if (!room_.defined() || tile.past == 0) return own;
    // What an earlier tile has written there may serve this one.
    if (tile.past != from_ || tile.own != first_) written_ = 0;
    from_ = tile.past;
    first_ = tile.own;
    if (const int64_t more = tile.owns - written_; more > 0) {
      room_.narrow(2, from_ + written_, more).copy_(own.narrow(2, written_, more));
      written_ = tile.owns;
    }
    return room_.narrow(2, 0, tile.past + tile.owns);
  }

 private:
  Tensor own_, room_;
  int64_t from_ = 0, first_ = 0, written_ = 0;
};

// A gradient [B, H, N, K] that is put together from parts of its columns: what nothing was written to yet is set and not added to, so that
// no zeros are read.
class Sum {
 public:
  explicit Sum(const Tensor& like) : total_(empty_like_queries(like, like.size(2))), is_written_(like.size(2)) {}

  void add(int64_t first, const Tensor& part) {
    // Columns that were written and those that were not, in runs.
    for (int64_t at = 0, end = 0; at < part.size(2); at = end) {
      const bool written = is_written_[first + at];
      for (end = at; end < part.size(2) && is_written_[first + end] == written; ++end) is_written_[first + end] = true;
      Tensor columns = total_.narrow(2, first + at, end - at);
      const Tensor more = part.narrow(2, at, end - at);
      if (written) columns.add_(more);
      else columns.copy_(more);
    }
  }

  // Columns that no tile sees have no gradient.
  Tensor take() {
    for (int64_t at = 0, size = total_.size(2); at < size; ++at) {
      if (!is_written_[at]) total_.select(2, at).zero_();
    }
    return total_;
  }

 private:
  Tensor total_;
  std::vector<bool> is_written_;
};

std::optional<Tensor> mask_of(const std::vector<Tensor>& masks, size_t i) {
  return masks[i].defined() && masks[i].numel() > 0 ? std::optional(masks[i]) : std::nullopt;
}

struct Tiled : torch::autograd::Function<Tiled> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::optional<Tensor>& past_keys, const std::optional<Tensor>& past_values,
                        std::vector<int64_t> tiles, std::vector<Tensor> masks) {
    const Tensor past_k = past_keys.value_or(Tensor()), past_v = past_values.value_or(Tensor());
    const Tensor out = empty_like_queries(q, q.size(2));
    Columns keys(k, past_k, tiles), values(v, past_v, tiles);
    variable_list saved{q, k, v, past_k, past_v, out};
    saved.resize(6 + masks.size());
    for (const size_t i : by_past(tiles)) {
      const Tile tile = tile_of(tiles, i);
      auto [part, sums] = at::_scaled_dot_product_flash_attention_for_cpu(
          q.narrow(2, tile.row, tile.rows), keys.of(tile), values.of(tile), 0.0, false, mask_of(masks, i));
      out.narrow(2, tile.row, tile.rows).copy_(part);
      saved[6 + i] = sums;
    }
    ctx->save_for_backward(saved);
    ctx->saved_data["tiles"] = tiles;
    ctx->saved_data["masks"] = masks;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], &past_k = saved[3], &past_v = saved[4], &out = saved[5];
    const std::vector<int64_t> tiles = ctx->saved_data["tiles"].toIntVector();
    const std::vector<Tensor> masks = ctx->saved_data["masks"].toTensorVector();
    const bool has_past = past_k.defined();
    const Tensor dq = empty_like_queries(q, q.size(2));
    Sum dk(k), dv(v);
    std::optional<Sum> dpast_k, dpast_v;
    if (has_past) {
      dpast_k.emplace(past_k);
      dpast_v.emplace(past_v);
    }
    const Tensor grad = grads[0].stride(-1) == 1 ? grads[0] : grads[0].contiguous();
    Columns keys(k, past_k, tiles), values(v, past_v, tiles);
    for (const size_t i : by_past(tiles)) {
      const Tile tile = tile_of(tiles, i);
      auto rows = [&](const Tensor& x) { return x.narrow(2, tile.row, tile.rows); };
      auto [q_part, k_part, v_part] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
          rows(grad), rows(q), keys.of(tile), values.of(tile), rows(out), saved[6 + i], 0.0, false, mask_of(masks, i));
      rows(dq).copy_(q_part);
      const int64_t before = has_past ? tile.past : 0;
      if (before > 0) {
        dpast_k->add(0, k_part.narrow(2, 0, before));
        dpast_v->add(0, v_part.narrow(2, 0, before));
      }
      dk.add(tile.own, k_part.narrow(2, before, tile.owns));
      dv.add(tile.own, v_part.narrow(2, before, tile.owns));
    }
    const auto of = [](std::optional<Sum>& sum) { return sum ? sum->take() : Tensor(); };
    return {dq, dk.take(), dv.take(), of(dpast_k), of(dpast_v), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

char* maskdiff_tiled_attention(const Tensor* q, const Tensor* k, const Tensor* v, const Tensor* past_k, const Tensor* past_v,
                               const int64_t* tiles, Tensor* const* masks, size_t count, Tensor** result) {
  return guarded([&] {
    const std::vector<int64_t> numbers(tiles, tiles + 5 * count);
    const auto maybe = [](const Tensor* x) { return x ? std::optional(*x) : std::nullopt; };
    *result = new Tensor(Tiled::apply(*q, *k, *v, maybe(past_k), maybe(past_v), numbers, list(masks, count)));
  });
}

}  // extern "C"
