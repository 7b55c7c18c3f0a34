// Layer norm and its modulation in one pass, with sums in float32 and the result in the type of what reads it. A warp has a row.

template <typename X, typename Y, int N>
INLINE void norm_of(const NormArguments& a) {
  const long long d = a.columns;
  EACH_WARP(w) {
    for (long long row = BLOCK * WARPS + w; row < a.rows; row += BLOCKS * WARPS) {
      const X* from = static_cast<const X*>(a.x) + row * d;
      Y* into = static_cast<Y*>(a.y) + row * d;
      const long long modulation = row / a.group * a.stride;
      Lanes<float> total = {}, square = {};
      EACH_LANE(l) {
        for (long long c = l * N; c < d; c += 32 * N) {
          float x[N];
          get(from + c, x);
          for (int i = 0; i < N; ++i) total[l] += x[i];
        }
      }
      const float mean = sum(total) / static_cast<float>(d);
      EACH_LANE(l) {
        for (long long c = l * N; c < d; c += 32 * N) {
          float x[N];
          get(from + c, x);
          for (int i = 0; i < N; ++i) square[l] += (x[i] - mean) * (x[i] - mean);
        }
      }
      const float inverse = 1.0f / sqrtf(sum(square) / static_cast<float>(d) + a.eps);
      EACH_LANE(l) {
        for (long long c = l * N; c < d; c += 32 * N) {
          float x[N], weight[N], shift[N], scale[N];
          get(from + c, x);
          get_typed(a.weight, a.weight_type, c, 1.0f, weight);
          get_typed(a.shift, a.modulation_type, modulation + c, 0.0f, shift);
          get_typed(a.scale, a.modulation_type, modulation + c, 0.0f, scale);
          for (int i = 0; i < N; ++i) x[i] = (x[i] - mean) * inverse * (weight[i] * (1.0f + scale[i])) + shift[i];
          put(into + c, x);
        }
        if (l == 0) {
          a.mean[row] = mean;
          a.inverse[row] = inverse;
        }
      }
    }
  }
}

template <typename X, typename Y>
INLINE void norm(const NormArguments& a) {
  if (a.packed) {
    norm_of<X, Y, 4>(a);
  } else {
    norm_of<X, Y, 1>(a);
  }
}

// With n = (x - mean) / deviation and g = dy weight (1 + scale): dx = (g - average of g - n * average of g n) / deviation.
template <typename X, typename Y, int N>
INLINE void norm_back_of(const NormBackArguments& a) {
  const long long d = a.columns;
  const Range range = rows_of_block(BLOCK, a.chunks, a.group);
  EACH_WARP(w) {
    float *ups = shared + w * 2 * d, *products = ups + d;
    EACH_LANE(l) {
      for (long long c = l * N; c < d; c += 32 * N) {
        for (int i = 0; i < N; ++i) ups[c + i] = products[c + i] = 0.0f;
      }
    }
    for (long long row = range.first + w; row < range.end; row += WARPS) {
      const long long first = row * d, modulation = BLOCK / a.chunks * a.stride;
      const float mean = a.mean[row], inverse = a.inverse[row];
      Lanes<float> whole = {}, along = {};
      EACH_LANE(l) {
        for (long long c = l * N; c < d; c += 32 * N) {
          float x[N], up[N], weight[N], scale[N];
          get(static_cast<const X*>(a.x) + first + c, x);
          get(static_cast<const Y*>(a.up) + first + c, up);
          get_typed(a.weight, a.weight_type, c, 1.0f, weight);
          get_typed(a.scale, a.modulation_type, modulation + c, 0.0f, scale);
          for (int i = 0; i < N; ++i) {
            const float n = (x[i] - mean) * inverse, g = up[i] * (weight[i] * (1.0f + scale[i]));
            ups[c + i] += up[i];
            products[c + i] += up[i] * n;
            whole[l] += g;
            along[l] += g * n;
          }
        }
      }
      const float average = sum(whole) / static_cast<float>(d), slope = sum(along) / static_cast<float>(d);
      EACH_LANE(l) {
        for (long long c = l * N; c < d; c += 32 * N) {
          float x[N], up[N], weight[N], scale[N], through[N];
          get(static_cast<const X*>(a.x) + first + c, x);
          get(static_cast<const Y*>(a.up) + first + c, up);
          get_typed(a.weight, a.weight_type, c, 1.0f, weight);
          get_typed(a.scale, a.modulation_type, modulation + c, 0.0f, scale);
          for (int i = 0; i < N; ++i) through[i] = 0.0f;
          if (a.through) get(static_cast<const X*>(a.through) + first + c, through);
          for (int i = 0; i < N; ++i) {
            const float n = (x[i] - mean) * inverse, g = up[i] * (weight[i] * (1.0f + scale[i]));
            x[i] = (g - average - n * slope) * inverse + through[i];
          }
          put(static_cast<X*>(a.dx) + first + c, x);
        }
      }
    }
  }
  BARRIER;
  join_warps(a.part + BLOCK * 2 * d, 2 * d);
}

template <typename X, typename Y>
INLINE void norm_back(const NormBackArguments& a) {
  if (a.packed) {
    norm_back_of<X, Y, 4>(a);
  } else {
    norm_back_of<X, Y, 1>(a);
  }
}

KERNEL(norm_ff, NormArguments) { norm<float, float>(a); }
KERNEL(norm_fb, NormArguments) { norm<float, bf16>(a); }
KERNEL(norm_bb, NormArguments) { norm<bf16, bf16>(a); }
KERNEL(norm_back_ff, NormBackArguments) { norm_back<float, float>(a); }
KERNEL(norm_back_fb, NormBackArguments) { norm_back<float, bf16>(a); }
KERNEL(norm_back_bb, NormBackArguments) { norm_back<bf16, bf16>(a); }
