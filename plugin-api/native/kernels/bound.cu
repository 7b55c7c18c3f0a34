// The bound of uniform and hybrid diffusion for rows of logits, and its gradient in their place. The equations are those of
// ../cpp/interpolating.cpp: what is one number a row is float64, what is one number a token float32. A block has a row, which it reads three
// times and writes once.

// What a row's law gives: the log-probabilities of x and z, and over all tokens but x the sums of u (y - ln(1 + y)) and p s.
struct BoundSums {
  double log_x, log_z, divergence, share;
};

// A row's nats and what its gradient takes: g_v = factor p_v (s_v - mean), but at_x for x, and more_at_z more for z.
struct BoundSlopes {
  double nats, factor, mean, at_x, more_at_z;
};

// (1 + d) ln(1 + d) - d, and d - ln(1 + d), by their series near 0.
INLINE double psi_of(double d, double log_ratio) {
  if (fabs(d) >= 0.02) return (1.0 + d) * log_ratio - d;
  double sum = 0.0, power = d * d;
  for (int k = 2; k < 11; ++k, power *= -d) sum += power / (k * (k - 1));
  return sum;
}

INLINE double phi_of(double d, double log_ratio) {
  if (fabs(d) >= 0.02) return d - log_ratio;
  double sum = 0.0, power = d * d;
  for (int k = 2; k < 11; ++k, power *= -d) sum += power / k;
  return sum;
}

// What a row is asked about: its process, whether x is observed, and whether the token that the network never predicts is.
struct BoundRow {
  double alpha, u, weight;
  bool same, banned;
};

APART BoundSlopes slopes_of(BoundRow row, BoundSums sums) {
  const double alpha = row.alpha, u = row.u;
  const double p_x = exp(sums.log_x), rest = -expm1(sums.log_x), mixed_x = alpha * p_x + u, d_x = alpha * rest / mixed_x;
  // Without noise a likelihood that underflows is still known by its logarithm.
  const double log_x = u > 0.0 ? log((alpha + u) / mixed_x) : -sums.log_x;
  const double own = fabs(d_x) <= 1.0e308 ? mixed_x * psi_of(d_x, log_x) : alpha * (log_x - rest);
  double observed = 0.0, of_z = 0.0;
  if (row.same) {
    observed = phi_of(d_x, log_x);
    of_z = -d_x / mixed_x * p_x;
  } else if (!row.banned) {
    const double p_z = exp(sums.log_z), mixed_z = alpha * p_z + u, d_z = -alpha * p_z / mixed_z;
    observed = phi_of(d_z, log(u / mixed_z));
    of_z = p_z == 0.0 ? 0.0 : -d_z / mixed_z * p_z;
  }
  const double of_x = u > 0.0 ? p_x * d_x : rest, mean = sums.share - of_x + of_z, factor = row.weight * alpha;
  return {row.weight * (sums.divergence + own + observed), factor, mean, factor * (-of_x - p_x * mean), factor * of_z};
}

// The log-probabilities of x and of z, by the sum of the other powers: the peak and both logits of a row.
APART BoundSums logs_of(double others, double most, double at_x, double at_z, bool same) {
  const double power_x = exp(at_x - most), norm = most + log(others + power_x);
  // A quotient by a denormal number would be infinite.
  const double log_x = power_x > 1.0e-300 ? -log1p(others / power_x) : at_x - norm;
  return {log_x, same ? log_x : at_z - norm, 0.0, 0.0};
}

struct BoundOfToken {
  float term, share;
};

// y - ln(1 + y) and y / (1 + y) for y >= 0, with 2 atanh for the logarithm: r = y / (2 + y) near 0, where the difference is
// r (y - 2 r^2/3 - ..), else r = (m - 1) / (m + 1) for 1 + y = 2^e m. A division is slow: both come from one.
INLINE BoundOfToken of_token(float y) {
  const float one = 1.0f + y;
  const int bits = static_cast<int>(bits_of(one)), exponent = (bits - 0x3F3504F3) >> 23;
  const float m = number_of(static_cast<unsigned>(bits - exponent * (1 << 23)));
  const bool near = y < 0.4f;
  // below is at most 2.5, so that its product with 1 + y is finite.
  const float top = near ? y : m - 1.0f, below = top + 2.0f, inverse = 1.0f / (below * one);
  const float r = top * one * inverse, square = r * r;
  const float tail = square * (1.0f / 3 + square * (1.0f / 5 + square * (1.0f / 7 + square * (1.0f / 9 + square / 11))));
  const float e = static_cast<float>(exponent);
  const float far = (y - e * 0.693145751953125f) - (e * 1.42860682030941723e-6f + 2.0f * r);
  return {(near ? r * y : far) - 2.0f * r * tail, y * below * inverse};
}

// What a row's threads share, in `shared`: of each warp a peak and a sum of powers; the logits of x and z, and alpha / u; of each warp two
// sums; and at last the slopes.
struct BoundPlaces {
  int own, sums, slopes;
};

INLINE BoundPlaces bound_places() { return {2 * WARPS, 2 * WARPS + 3, 4 * WARPS + 3}; }

// So that alpha / u stays finite. Without uniform noise the limit is reached to all digits.
INLINE double every_at_least(const BoundArguments& a, long long row) {
  const double least = a.alpha[row] * 1.0e-30 > 2.3e-308 ? a.alpha[row] * 1.0e-30 : 2.3e-308;
  return a.every[row] > least ? a.every[row] : least;
}

// The law's normalizer: the peak, and the sum of the powers of all tokens but x, which is its own: beside a probability near 1 the others
// would leave no trace.
template <typename T, int N>
INLINE void bound_powers(const BoundArguments& a, const T* logits, long long row) {
  const long long x = a.x[row], z = a.z[row];
  EACH_WARP(w) {
    Lanes<float> peak, total;
    EACH_LANE(l) {
      peak[l] = -3.0e38f;
      total[l] = 0.0f;
      for (long long c = (32ll * w + l) * N; c < a.columns; c += 32ll * WARPS * N) {
        float logit[N];
        get(logits + c, logit);
        for (int i = 0; i < N; ++i) {
          if (c + i == a.banned) continue;
          const float counts = c + i == x ? 0.0f : 1.0f;
          if (logit[i] > peak[l]) {
            total[l] = total[l] * expf(peak[l] - logit[i]) + counts;
            peak[l] = logit[i];
          } else if (counts > 0.0f) {
            total[l] += expf(logit[i] - peak[l]);
          }
        }
      }
    }
    const float most = largest(peak);
    EACH_LANE(l) { total[l] *= expf(peak[l] - most); }
    const float all = sum(total);
    EACH_LANE(l) {
      if (l == 0) {
        shared[2 * w] = most;
        shared[2 * w + 1] = all;
        if (w == 0) {
          shared[bound_places().own] = wide(logits[x]);
          shared[bound_places().own + 1] = wide(logits[z]);
          shared[bound_places().own + 2] = static_cast<float>(a.alpha[row] / every_at_least(a, row));
        }
      }
    }
  }
}

struct BoundLaw {
  float most, scale, slope;
  double others;
};

INLINE BoundLaw bound_law() {
  const BoundPlaces at = bound_places();
  BoundLaw law{shared[0], 0.0f, shared[at.own + 2], 0.0};
  for (int other = 1; other < WARPS; ++other) law.most = shared[2 * other] > law.most ? shared[2 * other] : law.most;
  for (int other = 0; other < WARPS; ++other) law.others += shared[2 * other + 1] * expf(shared[2 * other] - law.most);
  law.scale = 1.0f / (static_cast<float>(law.others) + expf(shared[at.own] - law.most));
  return law;
}

template <typename T, int N>
INLINE void bound_sums(const BoundArguments& a, const T* logits, long long row) {
  const long long x = a.x[row];
  EACH_WARP(w) {
    const BoundLaw law = bound_law();
    Lanes<float> terms = {}, shares = {};
    EACH_LANE(l) {
      for (long long c = (32ll * w + l) * N; c < a.columns; c += 32ll * WARPS * N) {
        float logit[N];
        get(logits + c, logit);
        for (int i = 0; i < N; ++i) {
          if (c + i == a.banned || c + i == x) continue;
          const float p = expf(logit[i] - law.most) * law.scale;
          const BoundOfToken of = of_token(law.slope * p);
          terms[l] += of.term;
          shares[l] += p * of.share;
        }
      }
    }
    const float term = sum(terms), share = sum(shares);
    EACH_LANE(l) {
      if (l == 0) {
        shared[bound_places().sums + 2 * w] = term;
        shared[bound_places().sums + 2 * w + 1] = share;
      }
    }
  }
}

// By one thread: a logarithm in float64 is slow on many GPUs.
INLINE void bound_finish(const BoundArguments& a, long long row) {
  const BoundLaw law = bound_law();
  const BoundPlaces at = bound_places();
  const bool same = a.x[row] == a.z[row];
  BoundSums sums = logs_of(law.others, law.most, shared[at.own], shared[at.own + 1], same);
  for (int w = 0; w < WARPS; ++w) {
    sums.divergence += shared[at.sums + 2 * w];
    sums.share += shared[at.sums + 2 * w + 1];
  }
  sums.divergence *= every_at_least(a, row);
  const BoundSlopes s = slopes_of({a.alpha[row], a.every[row], a.weight[row], same, a.z[row] == a.banned}, sums);
  if (a.nats) a.nats[row] = static_cast<float>(s.nats);
  shared[at.slopes] = static_cast<float>(s.factor);
  shared[at.slopes + 1] = static_cast<float>(s.mean);
  shared[at.slopes + 2] = static_cast<float>(s.at_x);
  shared[at.slopes + 3] = static_cast<float>(s.more_at_z);
}

template <typename T, int N>
INLINE void bound_gradient(const BoundArguments& a, T* logits, long long row) {
  const long long x = a.x[row], z = a.z[row];
  EACH_WARP(w) {
    const BoundLaw law = bound_law();
    const float* slopes = shared + bound_places().slopes;
    const float factor = slopes[0], mean = slopes[1], at_x = slopes[2], more_at_z = slopes[3];
    EACH_LANE(l) {
      for (long long c = (32ll * w + l) * N; c < a.columns; c += 32ll * WARPS * N) {
        float g[N];
        get(logits + c, g);
        for (int i = 0; i < N; ++i) {
          const float p = expf(g[i] - law.most) * law.scale;
          g[i] = c + i == x ? at_x : factor * (p * of_token(law.slope * p).share - p * mean);
          if (c + i == z) g[i] += more_at_z;
          if (c + i == a.banned) g[i] = 0.0f;
        }
        put(logits + c, g);
      }
    }
  }
}

// A row that weighs nothing, whatever its logits are, or whose tokens are no columns.
template <typename T>
INLINE void bound_filled(const BoundArguments& a, T* logits, long long row, float value) {
  EACH_WARP(w) {
    EACH_LANE(l) {
      if (w == 0 && l == 0 && a.nats) a.nats[row] = value;
      for (long long c = 32ll * w + l; a.gradient && c < a.columns; c += 32ll * WARPS) narrow(value, logits[c]);
    }
  }
}

template <typename T, int N>
INLINE void bound_of(const BoundArguments& a) {
  for (long long row = BLOCK; row < a.rows; row += BLOCKS) {
    T* logits = static_cast<T*>(a.logits) + row * a.stride;
    const long long x = a.x[row], z = a.z[row];
    if (a.weight[row] == 0.0) {
      bound_filled(a, logits, row, 0.0f);
      continue;
    }
    if (x < 0 || x >= a.columns || z < 0 || z >= a.columns) {
      bound_filled(a, logits, row, number_of(0x7fc00000u));
      continue;
    }
    bound_powers<T, N>(a, logits, row);
    BARRIER;
    bound_sums<T, N>(a, logits, row);
    BARRIER;
    EACH_WARP(w) {
      EACH_LANE(l) {
        if (w == 0 && l == 0) bound_finish(a, row);
      }
    }
    BARRIER;
    if (a.gradient) bound_gradient<T, N>(a, logits, row);
    BARRIER;
  }
}

template <typename T>
INLINE void bound(const BoundArguments& a) {
  if (a.pack == 4) {
    bound_of<T, 4>(a);
  } else if (a.pack == 2) {
    bound_of<T, 2>(a);
  } else {
    bound_of<T, 1>(a);
  }
}

KERNEL(bound_f, BoundArguments) { bound<float>(a); }
KERNEL(bound_b, BoundArguments) { bound<bf16>(a); }
