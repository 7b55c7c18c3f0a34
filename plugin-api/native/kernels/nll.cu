// Cross-entropy of rows of logits, and its gradient in their place. A block has a row, which it reads twice and writes once.

template <typename T, int N>
INLINE void nll_of(const NllArguments& a) {
  for (long long row = BLOCK; row < a.rows; row += BLOCKS) {
    T* logits = static_cast<T*>(a.logits) + row * a.stride;
    const long long target = a.target[row];
    const float weight = a.weight[row];
    EACH_WARP(w) {
      // So low that no number of a row is lower; not infinite, since infinities have no difference.
      Lanes<float> peak, total;
      EACH_LANE(l) {
        peak[l] = -3.0e38f;
        total[l] = 0.0f;
        for (long long c = (32ll * w + l) * N; c < a.columns; c += 32ll * WARPS * N) {
          float x[N];
          get(logits + c, x);
          for (int i = 0; i < N; ++i) {
            if (c + i == a.banned) continue;
            if (x[i] > peak[l]) {
              total[l] = total[l] * expf(peak[l] - x[i]) + 1.0f;
              peak[l] = x[i];
            } else {
              total[l] += expf(x[i] - peak[l]);
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
          // Before its place is written to. A target that is no column is NaN, and so is all that follows from it.
          const bool is_there = target >= 0 && target < a.columns;
          if (w == 0) shared[2 * WARPS] = !is_there ? number_of(0x7fc00000u) : target == a.banned ? number_of(0xff800000u) : wide(logits[target]);
        }
      }
    }
    BARRIER;
    EACH_WARP(w) {
      float most = shared[0], all = 0.0f;
      for (int other = 1; other < WARPS; ++other) most = shared[2 * other] > most ? shared[2 * other] : most;
      for (int other = 0; other < WARPS; ++other) all += shared[2 * other + 1] * expf(shared[2 * other] - most);
      const float own = shared[2 * WARPS], lost = own != own ? own : 0.0f, share = weight / all + lost;
      EACH_LANE(l) {
        if (w == 0 && l == 0 && a.nll) a.nll[row] = weight * (logf(all) + most - own);
        for (long long c = (32ll * w + l) * N; a.gradient && c < a.columns; c += 32ll * WARPS * N) {
          float x[N];
          get(logits + c, x);
          for (int i = 0; i < N; ++i) {
            x[i] = (c + i == a.banned ? 0.0f : share * expf(x[i] - most)) - (c + i == target ? weight : 0.0f);
          }
          put(logits + c, x);
        }
      }
    }
    BARRIER;
  }
}

template <typename T>
INLINE void nll(const NllArguments& a) {
  if (a.pack == 4) {
    nll_of<T, 4>(a);
  } else if (a.pack == 2) {
    nll_of<T, 2>(a);
  } else {
    nll_of<T, 1>(a);
  }
}

KERNEL(nll_f, NllArguments) { nll<float>(a); }
KERNEL(nll_b, NllArguments) { nll<bf16>(a); }
