// A residual: dropout, a gate and a sum in one pass over memory. 8 neighbours share a draw of 128 bits, which the backward pass makes again.

// 8 numbers of a row from `at`, of which `left` exist.
template <typename T>
INLINE void get_some(const T* from, int packed, long long left, float (&x)[8]) {
  if (packed) {
    get(from, x);
  } else {
    for (int i = 0; i < 8; ++i) x[i] = i < left ? wide(from[i]) : 0.0f;
  }
}

template <typename T>
INLINE void put_some(T* into, int packed, long long left, const float (&x)[8]) {
  if (packed) {
    put(into, x);
  } else {
    for (int i = 0; i < 8 && i < left; ++i) narrow(x[i], into[i]);
  }
}

INLINE void get_gate(const void* gate, int type, long long at, int packed, long long left, float (&x)[8]) {
  if (packed) {
    get_typed(gate, type, at, 1.0f, x);
  } else {
    for (int i = 0; i < 8; ++i) {
      float one[1] = {1.0f};
      if (i < left) get_typed(gate, type, at + i, 1.0f, one);
      x[i] = one[0];
    }
  }
}

template <typename X, typename H>
INLINE void gated(const GatedArguments& a) {
  const long long packs = (a.columns + 7) / 8;
  EACH_WARP(w) {
    for (long long row = BLOCK * WARPS + w; row < a.rows; row += BLOCKS * WARPS) {
      const long long first = row * a.columns, gate_at = row / a.group * a.stride;
      EACH_LANE(l) {
        for (long long p = l; p < packs; p += 32) {
          const long long at = first + 8 * p, left = a.columns - 8 * p;
          float x[8], h[8], gate[8], factor[8];
          get_some(static_cast<const X*>(a.x) + at, a.packed, left, x);
          get_some(static_cast<const H*>(a.h) + at, a.packed, left, h);
          get_gate(a.gate, a.gate_type, gate_at + 8 * p, a.packed, left, gate);
          kept(a.seed, a.dropped, row * packs + p, factor);
          for (int i = 0; i < 8; ++i) x[i] += gate[i] * (factor[i] * h[i]);
          put_some(static_cast<X*>(a.out) + at, a.packed, left, x);
        }
      }
    }
  }
}

// Block b has the rows of chunk b % chunks of group b / chunks.
struct Range {
  long long first, end;
};

INLINE Range rows_of_block(long long block, long long chunks, long long group) {
  const long long chunk = block % chunks, start = block / chunks * group;
  return {start + chunk * group / chunks, start + (chunk + 1) * group / chunks};
}

// Adds up what the warps of a block have in `shared`, `numbers` each.
INLINE void join_warps(float* part, long long numbers) {
  EACH_WARP(w) {
    EACH_LANE(l) {
      for (long long c = 32 * w + l; c < numbers; c += 32 * WARPS) {
        float total = 0.0f;
        for (int other = 0; other < WARPS; ++other) total += shared[other * numbers + c];
        part[c] = total;
      }
    }
  }
}

template <typename X, typename H>
INLINE void gated_back(const GatedBackArguments& a) {
  const long long packs = (a.columns + 7) / 8;
  const Range range = rows_of_block(BLOCK, a.chunks, a.group);
  EACH_WARP(w) {
    float* sums = shared + w * a.columns;
    EACH_LANE(l) {
      for (long long p = l; a.part && p < packs; p += 32) {
        for (long long c = 8 * p; c < 8 * p + 8 && c < a.columns; ++c) sums[c] = 0.0f;
      }
      for (long long row = range.first + w; row < range.end; row += WARPS) {
        const long long first = row * a.columns, gate_at = BLOCK / a.chunks * a.stride;
        for (long long p = l; p < packs; p += 32) {
          const long long at = first + 8 * p, left = a.columns - 8 * p;
          float up[8], h[8], gate[8], factor[8];
          get_some(static_cast<const X*>(a.up) + at, a.packed, left, up);
          get_gate(a.gate, a.gate_type, gate_at + 8 * p, a.packed, left, gate);
          kept(a.seed, a.dropped, row * packs + p, factor);
          for (int i = 0; i < 8; ++i) up[i] *= factor[i];
          if (a.part) {
            get_some(static_cast<const H*>(a.h) + at, a.packed, left, h);
            for (int i = 0; i < 8 && i < left; ++i) sums[8 * p + i] += up[i] * h[i];
          }
          for (int i = 0; i < 8; ++i) up[i] *= gate[i];
          put_some(static_cast<H*>(a.dh) + at, a.packed, left, up);
        }
      }
    }
  }
  BARRIER;
  if (a.part) join_warps(a.part + BLOCK * a.columns, a.columns);
}

// A block has 32 columns of a group; its warps share out the chunks.
KERNEL(columns, ColumnsArguments) {
  const long long blocks = (a.columns + 31) / 32, group = BLOCK / blocks, first = BLOCK % blocks * 32;
  EACH_WARP(w) {
    EACH_LANE(l) {
      for (long long s = 0; s < a.sums; ++s) {
        float total = 0.0f;
        for (long long chunk = w; first + l < a.columns && chunk < a.chunks; chunk += WARPS) {
          total += a.part[((group * a.chunks + chunk) * a.sums + s) * a.columns + first + l];
        }
        shared[(w * a.sums + s) * 32 + l] = total;
      }
    }
  }
  BARRIER;
  EACH_WARP(w) {
    if (w == 0) {
      EACH_LANE(l) {
        const long long c = first + l, at = group * a.columns + c;
        if (c < a.columns) {
          float sums[2] = {0.0f, 0.0f}, weight[1], scale[1];
          for (int other = 0; other < WARPS; ++other) {
            for (long long s = 0; s < a.sums; ++s) sums[s] += shared[(other * a.sums + s) * 32 + l];
          }
          get_typed(a.weight, a.weight_type, c, 1.0f, weight);
          get_typed(a.scale, a.modulation_type, group * a.stride + c, 0.0f, scale);
          if (a.first) put_typed(a.first, a.modulation_type, at, sums[0]);
          if (a.second) put_typed(a.second, a.modulation_type, at, sums[1] * weight[0]);
          if (a.third) put_typed(a.third, a.third_type, at, sums[1] * (1.0f + scale[0]));
        }
      }
    }
  }
}

KERNEL(gated_ff, GatedArguments) { gated<float, float>(a); }
KERNEL(gated_fb, GatedArguments) { gated<float, bf16>(a); }
KERNEL(gated_bb, GatedArguments) { gated<bf16, bf16>(a); }
KERNEL(gated_back_ff, GatedBackArguments) { gated_back<float, float>(a); }
KERNEL(gated_back_fb, GatedBackArguments) { gated_back<float, bf16>(a); }
KERNEL(gated_back_bb, GatedBackArguments) { gated_back<bf16, bf16>(a); }
