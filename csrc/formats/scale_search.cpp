#include "formats/scale_search.h"

#include <utility>

#include "formats/blocks.h"

namespace rillm {
namespace {

struct ScaleFit {
  Lanes scale;      // the best scale of each lane
  Lanes curvature;  // sum of w * q * q: what an error of 1 in the scale costs
};

// A step function is a sum of steps: comparisons vectorise on every ISA, table look-ups do not.
template <size_t... i>
float count_steps(float x, std::index_sequence<i...>) {
  return ((x > 0.5f * (kIq4Values[i] + kIq4Values[i + 1]) ? 1.0f : 0.0f) + ... + 0.0f);
}
template <size_t... i>
float sum_steps(float x, std::index_sequence<i...>) {
  return ((x > 0.5f * (kIq4Values[i] + kIq4Values[i + 1])
               ? static_cast<float>(kIq4Values[i + 1] - kIq4Values[i])
               : 0.0f) +
          ... + static_cast<float>(kIq4Values[0]));
}
constexpr auto kSteps = std::make_index_sequence<15>();

float nearest(const Iq4Grid&, float x) { return sum_steps(x, kSteps); }
float code_of(const Iq4Grid&, float x) { return count_steps(x, kSteps); }
float nearest(const UniformGrid& grid, float x) {
  return round_to_int(clamp(x, grid.low, grid.high));
}
float code_of(const UniformGrid& grid, float x) { return nearest(grid, x) - grid.low; }

// The sums for least squares when q is the grid value nearest to x * inverse.
template <bool kWeighted, int kSize, class Grid>
[[gnu::noinline]] void sum_products_of(const SubBlocks<kSize>& subs, const Grid grid,
                                       const Lanes& inverse, Lanes* xq_sums, Lanes* qq_sums) {
  for (int l = 0; l < kLanes; ++l) {
    float xq = 0.0f, qq = 0.0f;
    for (int i = 0; i < kSize; ++i) {
      const float x = subs.x[i].v[l];
      const float q = nearest(grid, x * inverse.v[l]);
      const float wq = kWeighted ? subs.w[i].v[l] * q : q;
      xq += wq * x;
      qq += wq * q;
    }
    xq_sums->v[l] = xq;
    qq_sums->v[l] = qq;
  }
}

template <int kSize, class Grid>
void sum_products(const SubBlocks<kSize>& subs, const Grid& grid, const Lanes& inverse,
                  Lanes* xq_sums, Lanes* qq_sums) {
  if (subs.has_importance) {
    sum_products_of<true>(subs, grid, inverse, xq_sums, qq_sums);
  } else {
    sum_products_of<false>(subs, grid, inverse, xq_sums, qq_sums);
  }
}

template <int kSize, class Grid>
[[gnu::noinline]] void sum_errors(const SubBlocks<kSize>& subs, const Grid grid, const Lanes& scale,
                                  Lanes* errors) {
  Lanes inverse;
  invert(scale, &inverse);
  for (int l = 0; l < kLanes; ++l) {
    float sum = 0.0f;
    for (int i = 0; i < kSize; ++i) {
      const float x = subs.x[i].v[l];
      const float error = x - scale.v[l] * nearest(grid, x * inverse.v[l]);
      sum += subs.w[i].v[l] * error * error;
    }
    errors->v[l] = sum;
  }
}

// The weight of largest magnitude of each lane, with its sign.
template <int kSize>
Lanes largest_weights(const SubBlocks<kSize>& subs) {
  Lanes lowest = subs.x[0], highest = subs.x[0], largest;
  for (int l = 0; l < kLanes; ++l) {
    float low = subs.x[0].v[l], high = low;
    for (int i = 0; i < kSize; ++i) {
      const float x = subs.x[i].v[l];
      low = x < low ? x : low;
      high = x > high ? x : high;
    }
    lowest.v[l] = low;
    highest.v[l] = high;
  }
  for (int l = 0; l < kLanes; ++l) {
    largest.v[l] = pick(-lowest.v[l] > highest.v[l], lowest.v[l], highest.v[l]);
  }
  return largest;
}

// Least squares for the scale of the codes that the sums belong to; taken where it gains more.
[[gnu::noinline]] void take_better_fit(const Lanes& xq, const Lanes& qq, Lanes* best_gain,
                                       ScaleFit* fit) {
  for (int l = 0; l < kLanes; ++l) {
    const float scale = xq.v[l] / pick(qq.v[l] > 0.0f, qq.v[l], 1.0f);
    const float gain = scale * xq.v[l];  // by how much the squared error falls from sum(w x x)
    const bool better = gain > best_gain->v[l];
    best_gain->v[l] = pick(better, gain, best_gain->v[l]);
    fit->scale.v[l] = pick(better, scale, fit->scale.v[l]);
    fit->curvature.v[l] = pick(better, qq.v[l], fit->curvature.v[l]);
  }
}

// Where `trial` has less error: takes it.
[[gnu::noinline]] void keep_better(const Lanes& trial, const Lanes& trial_error, Lanes* kept,
                                   Lanes* kept_error) {
  for (int l = 0; l < kLanes; ++l) {
    const bool better = trial_error.v[l] < kept_error->v[l];
    kept->v[l] = pick(better, trial.v[l], kept->v[l]);
    kept_error->v[l] = pick(better, trial_error.v[l], kept_error->v[l]);
  }
}

[[gnu::noinline]] void multiply(const Lanes& a, const Lanes& b, Lanes* product) {
  for (int l = 0; l < kLanes; ++l) product->v[l] = a.v[l] * b.v[l];
}

// Integer scales one step on, within [low, high].
[[gnu::noinline]] void move(const Lanes& scale, float step, float low, float high, Lanes* moved) {
  for (int l = 0; l < kLanes; ++l) moved->v[l] = clamp(scale.v[l] + step, low, high);
}

// The half d for the fitted scales of kCount lanes from `first`: the one whose integer multiples
// lie nearest to them.
template <int kCount>
float choose_d(const ScaleFit& fit, int first, float low, float high) {
  constexpr int kCandidates = 32;
  const float* scale = fit.scale.v + first;
  const float* curvature = fit.curvature.v + first;
  const float largest = largest_of<kCount>(scale);
  float candidates[kCandidates], inverses[kCandidates], costs[kCandidates];
  for (int c = 0; c < kCandidates; ++c) {
    const float target = (c % 2 ? low : high) * (1.04f - 0.02f * static_cast<float>(c / 2));
    candidates[c] = nearest_nonzero_half(largest / target);
    inverses[c] = inverse_of(candidates[c]);
  }
  for (int c = 0; c < kCandidates; ++c) {
    float cost = 0.0f;
    for (int l = 0; l < kCount; ++l) {
      const float error =
          scale[l] - candidates[c] * round_to_int(clamp(scale[l] * inverses[c], low, high));
      cost += curvature[l] * error * error;
    }
    costs[c] = cost;
  }
  return cheapest(candidates, costs);
}

template <int kSize, class Grid>
void search_scale(const SubBlocks<kSize>& subs, const Grid& grid, std::span<const float> targets,
                  bool again, ScaleFit* fit) {
  Lanes unit, best_gain = filled(0.0f), inverse, xq, qq;
  invert(largest_weights(subs), &unit);
  *fit = {};
  const auto try_inverse = [&] {
    sum_products(subs, grid, inverse, &xq, &qq);
    take_better_fit(xq, qq, &best_gain, fit);
  };
  for (const float target : targets) {
    for (int l = 0; l < kLanes; ++l) inverse.v[l] = target * unit.v[l];
    try_inverse();
  }
  if (!again) return;
  invert(fit->scale, &inverse);
  try_inverse();
}

// Makes the scale of each lane a half: the nearest, or a neighbour if that gives less error.
template <int kSize, class Grid>
void choose_half_scale(const SubBlocks<kSize>& subs, const Grid& grid, Lanes* scale) {
  Lanes nearest, trial, error, best_error;
  for (int l = 0; l < kLanes; ++l) nearest.v[l] = nearest_half(scale->v[l]);
  sum_errors(subs, grid, nearest, &best_error);
  *scale = nearest;
  for (const float direction : {-1.0f, 1.0f}) {
    for (int l = 0; l < kLanes; ++l) trial.v[l] = next_half(nearest.v[l], direction);
    sum_errors(subs, grid, trial, &error);
    keep_better(trial, error, scale, &best_error);
  }
}

}  // namespace

template <int kSize, class Grid>
void search_half_scale(const SubBlocks<kSize>& subs, const Grid& grid,
                       std::span<const float> targets, Lanes* scale) {
  ScaleFit fit;
  search_scale(subs, grid, targets, true, &fit);
  *scale = fit.scale;
  choose_half_scale(subs, grid, scale);
}

template <int kSize, class Grid>
void quick_half_scale(const SubBlocks<kSize>& subs, const Grid& grid,
                      std::span<const float> targets, Lanes* scale) {
  ScaleFit fit;
  search_scale(subs, grid, targets, false, &fit);
  for (int l = 0; l < kLanes; ++l) scale->v[l] = nearest_nonzero_half(fit.scale.v[l]);
}

template <int kSize, class Grid>
void search_super_scale(const SubBlocks<kSize>& subs, const Grid& grid,
                        std::span<const float> targets, float low, float high, SuperScale* out) {
  ScaleFit fit;
  search_scale(subs, grid, targets, true, &fit);
  constexpr int kCount = 256 / kSize;  // lanes of a super-block
  Lanes d, scale;                      // of each lane; scale is an integer
  for (int first = 0; first < kLanes; first += kCount) {
    const float chosen = choose_d<kCount>(fit, first, low, high);
    for (int l = first; l < first + kCount; ++l) d[l] = chosen;
  }
  Lanes inverse, product, error, best_error, trial;
  const auto evaluate = [&](const Lanes& scales) {
    multiply(d, scales, &product);
    sum_errors(subs, grid, product, &error);
  };
  invert(d, &inverse);
  for (int l = 0; l < kLanes; ++l) {
    scale.v[l] = round_to_int(clamp(fit.scale.v[l] * inverse.v[l], low, high));
  }
  evaluate(scale);
  best_error = error;
  for (int round = 0; round < 2; ++round) {
    for (const float step : {-1.0f, 1.0f}) {
      move(scale, step, low, high, &trial);
      evaluate(trial);
      keep_better(trial, error, &scale, &best_error);
    }
    // With the codes that these scales give, refit d.
    Lanes xq, qq;
    const Lanes old_d = d;
    multiply(d, scale, &product);
    invert(product, &inverse);
    sum_products(subs, grid, inverse, &xq, &qq);
    for (int first = 0; first < kLanes; first += kCount) {
      float numerator = 0.0f, denominator = 0.0f;
      for (int l = first; l < first + kCount; ++l) {
        numerator += scale[l] * xq[l];
        denominator += scale[l] * scale[l] * qq[l];
      }
      const float fitted = nearest_half(denominator > 0.0f ? numerator / denominator : 0.0f);
      for (int l = first; l < first + kCount; ++l) d[l] = fitted;
    }
    evaluate(scale);
    for (int first = 0; first < kLanes; first += kCount) {
      const bool better = sum_lanes(error, first, kCount) < sum_lanes(best_error, first, kCount);
      for (int l = first; l < first + kCount; ++l) {
        d[l] = better ? d[l] : old_d[l];
        best_error[l] = better ? error[l] : best_error[l];
      }
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    out->d[l / kCount] = d[l];
    out->scale[l] = static_cast<int8_t>(scale[l]);
    out->rounded[l] = d[l] * scale[l];
  }
}

template <int kSize, class Grid>
void round_codes(const SubBlocks<kSize>& subs, const Grid& grid, const Lanes& scale,
                 uint8_t* codes) {
  Lanes inverse;
  float inverses[kLanes * kSize];  // of each weight
  invert(scale, &inverse);
  for (int l = 0; l < kLanes; ++l) std::fill_n(inverses + l * kSize, kSize, inverse[l]);
  for (int i = 0; i < kLanes * kSize; ++i) {
    const float code = code_of(grid, subs.rows[i] * inverses[i]);
    codes[i] = static_cast<uint8_t>(static_cast<int32_t>(code));
  }
}

#define RILLM_INSTANTIATE(kSize, Grid)                                                           \
  template void search_half_scale(const SubBlocks<kSize>&, const Grid&, std::span<const float>,  \
                                  Lanes*);                                                       \
  template void quick_half_scale(const SubBlocks<kSize>&, const Grid&, std::span<const float>,   \
                                 Lanes*);                                                        \
  template void search_super_scale(const SubBlocks<kSize>&, const Grid&, std::span<const float>, \
                                   float, float, SuperScale*);                                   \
  template void round_codes(const SubBlocks<kSize>&, const Grid&, const Lanes&, uint8_t*);
RILLM_INSTANTIATE(16, UniformGrid)
RILLM_INSTANTIATE(32, UniformGrid)
RILLM_INSTANTIATE(32, Iq4Grid)
#undef RILLM_INSTANTIATE

}  // namespace rillm
