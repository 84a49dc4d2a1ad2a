#include "formats/affine_search.h"

#include <limits>

namespace rillm {
namespace {

// Any min (the formats of 32 weights), or only min <= 0 (the K-quants).
enum class MinRange { Any, NotPositive };

struct AffineFit {
  Lanes scale, min;
  Lanes qq, q, one;  // sums of w * q * q, w * q, w: the curvature of the squared error
};

struct Sums {
  Lanes q, qq, xq;  // sums of w * q, w * q * q, w * x * q
};

// The sums for least squares when q is the integer nearest to (x - min) * inverse.
template <bool kWeighted, int kSize>
[[gnu::noinline]] void sum_products_of(const SubBlocks<kSize>& subs, const float high,
                                       const Lanes& inverse, const Lanes& min, Sums* sums) {
  for (int l = 0; l < kLanes; ++l) {
    float q_sum = 0.0f, qq_sum = 0.0f, xq_sum = 0.0f;
    for (int i = 0; i < kSize; ++i) {
      const float x = subs.x[i].v[l];
      const float q = round_to_int(clamp((x - min.v[l]) * inverse.v[l], 0.0f, high));
      const float wq = kWeighted ? subs.w[i].v[l] * q : q;
      q_sum += wq;
      qq_sum += wq * q;
      xq_sum += wq * x;
    }
    sums->q.v[l] = q_sum;
    sums->qq.v[l] = qq_sum;
    sums->xq.v[l] = xq_sum;
  }
}

template <int kSize>
void sum_products(const SubBlocks<kSize>& subs, const float high, const Lanes& inverse,
                  const Lanes& min, Sums* sums) {
  if (subs.has_importance) {
    sum_products_of<true>(subs, high, inverse, min, sums);
  } else {
    sum_products_of<false>(subs, high, inverse, min, sums);
  }
}

template <int kSize>
[[gnu::noinline]] void sum_errors(const SubBlocks<kSize>& subs, const float high,
                                  const Lanes& scale, const Lanes& min, Lanes* errors) {
  Lanes inverse;
  invert(scale, &inverse);
  for (int l = 0; l < kLanes; ++l) {
    float sum = 0.0f;
    for (int i = 0; i < kSize; ++i) {
      const float shifted = subs.x[i].v[l] - min.v[l];
      const float q = round_to_int(clamp(shifted * inverse.v[l], 0.0f, high));
      const float error = shifted - scale.v[l] * q;
      sum += subs.w[i].v[l] * error * error;
    }
    errors->v[l] = sum;
  }
}

struct Range {
  Lanes low, high, x, one;  // extremes of x; sums of w * x and of w
};

template <int kSize>
[[gnu::noinline]] void find_range(const SubBlocks<kSize>& subs, Range* range) {
  for (int l = 0; l < kLanes; ++l) {
    float low = subs.x[0].v[l], high = low, x_sum = 0.0f, one = 0.0f;
    for (int i = 0; i < kSize; ++i) {
      const float x = subs.x[i].v[l];
      low = x < low ? x : low;
      high = x > high ? x : high;
      x_sum += subs.w[i].v[l] * x;
      one += subs.w[i].v[l];
    }
    range->low.v[l] = low;
    range->high.v[l] = high;
    range->x.v[l] = x_sum;
    range->one.v[l] = one;
  }
}

// Least squares for scale and min of the codes that `sums` belong to; taken where it gains more.
[[gnu::noinline]] void take_better_fit(const Sums& sums, const Range& range, const float limit,
                                       Lanes* best_gain, AffineFit* fit) {
  for (int l = 0; l < kLanes; ++l) {
    const float one = range.one.v[l], x = range.x.v[l];
    const float q = sums.q.v[l], qq = sums.qq.v[l], xq = sums.xq.v[l];
    const float determinant = one * qq - q * q;
    const bool solvable = determinant > 1e-6f * one * qq;
    const float scale_with_min = (one * xq - q * x) / pick(solvable, determinant, 1.0f);
    const float fitted_min = (x - scale_with_min * q) / one;
    const float scale_alone = xq / pick(qq > 0.0f, qq, 1.0f);
    const bool alone = !solvable | (fitted_min > limit);  // no min: 0 is always allowed
    const float scale = pick(alone, scale_alone, scale_with_min);
    const float min = pick(alone, 0.0f, fitted_min);
    const float gain = scale * xq + min * x;  // the squared error falls by so much
    const bool better = (scale > 0.0f) & (gain > best_gain->v[l]);
    best_gain->v[l] = pick(better, gain, best_gain->v[l]);
    fit->scale.v[l] = pick(better, scale, fit->scale.v[l]);
    fit->min.v[l] = pick(better, min, fit->min.v[l]);
    fit->q.v[l] = pick(better, q, fit->q.v[l]);
    fit->qq.v[l] = pick(better, qq, fit->qq.v[l]);
  }
}

// Where the trial has less error: takes it.
[[gnu::noinline]] void keep_better(const Lanes& trial_scale, const Lanes& trial_min,
                                   const Lanes& trial_error, Lanes* scale, Lanes* min,
                                   Lanes* error) {
  for (int l = 0; l < kLanes; ++l) {
    const bool better = trial_error.v[l] < error->v[l];
    scale->v[l] = pick(better, trial_scale.v[l], scale->v[l]);
    min->v[l] = pick(better, trial_min.v[l], min->v[l]);
    error->v[l] = pick(better, trial_error.v[l], error->v[l]);
  }
}

// The half whose multiples by an integer in [0, limit] lie nearest to kCount values.
template <int kCount>
float choose_d(const float* values, const float* curvature, float limit) {
  constexpr int kCandidates = 32;
  const float largest = largest_of<kCount>(values);
  float candidates[kCandidates], inverses[kCandidates], costs[kCandidates];
  for (int c = 0; c < kCandidates; ++c) {
    const float target = limit * (1.06f - 0.015f * static_cast<float>(c));
    candidates[c] = nearest_nonzero_half(largest / target);
    inverses[c] = inverse_of(candidates[c]);
  }
  for (int c = 0; c < kCandidates; ++c) {
    float cost = 0.0f;
    for (int l = 0; l < kCount; ++l) {
      const float q = round_to_int(clamp(values[l] * inverses[c], 0.0f, limit));
      const float error = values[l] - candidates[c] * q;
      cost += curvature[l] * error * error;
    }
    costs[c] = cost;
  }
  return cheapest(candidates, costs);
}

// Fitted min when the scale is not the fitted one.
float moved_min(const AffineFit& fit, int lane, float scale) {
  const float q_mean = fit.q.v[lane] / fit.one.v[lane];
  return fit.min.v[lane] - q_mean * (scale - fit.scale.v[lane]);
}

// d, dmin and the integer scales and mins that are nearest to a fit.
template <int kCount>
void round_fit(const AffineFit& fit, float limit, Lanes* d, Lanes* dmin, Lanes* scale, Lanes* min) {
  Lanes curvature, wanted, inverse;
  for (int l = 0; l < kLanes; ++l) {  // as if the mins could follow the scales freely
    const float c = fit.qq.v[l] - fit.q.v[l] * fit.q.v[l] / fit.one.v[l];
    curvature.v[l] = pick(c > 0.0f, c, 0.0f);
  }
  for (int first = 0; first < kLanes; first += kCount) {
    const float chosen = choose_d<kCount>(fit.scale.v + first, curvature.v + first, limit);
    for (int l = first; l < first + kCount; ++l) (*d)[l] = chosen;
  }
  invert(*d, &inverse);
  for (int l = 0; l < kLanes; ++l) {
    scale->v[l] = round_to_int(clamp(fit.scale.v[l] * inverse.v[l], 0.0f, limit));
    const float m = -moved_min(fit, l, d->v[l] * scale->v[l]);
    wanted.v[l] = pick(m > 0.0f, m, 0.0f);
  }
  for (int first = 0; first < kLanes; first += kCount) {
    const float chosen = choose_d<kCount>(wanted.v + first, fit.one.v + first, limit);
    for (int l = first; l < first + kCount; ++l) (*dmin)[l] = chosen;
  }
  invert(*dmin, &inverse);
  for (int l = 0; l < kLanes; ++l) {
    min->v[l] = round_to_int(clamp(wanted.v[l] * inverse.v[l], 0.0f, limit));
  }
}

// Least squares for d and dmin of kCount lanes from `first`, given their codes (as sums).
template <int kCount>
void refit(const Sums& sums, const Range& range, const Lanes& scale, const Lanes& min, int first,
           Lanes* d, Lanes* dmin) {
  float ss = 0.0f, sm = 0.0f, mm = 0.0f, xs = 0.0f, xm = 0.0f;
  for (int l = first; l < first + kCount; ++l) {
    ss += scale[l] * scale[l] * sums.qq[l];
    sm -= scale[l] * min[l] * sums.q[l];
    mm += min[l] * min[l] * range.one[l];
    xs += scale[l] * sums.xq[l];
    xm -= min[l] * range.x[l];
  }
  const float determinant = ss * mm - sm * sm;
  if (!(determinant > 1e-6f * ss * mm)) return;
  const float fitted_d = nearest_half((xs * mm - xm * sm) / determinant);
  const float fitted_dmin = nearest_half((xm * ss - xs * sm) / determinant);
  for (int l = first; l < first + kCount; ++l) (*d)[l] = fitted_d;
  for (int l = first; l < first + kCount; ++l) (*dmin)[l] = fitted_dmin;
}

template <int kSize>
void search_affine(const SubBlocks<kSize>& subs, float high, MinRange allowed, Effort effort,
                   AffineFit* fit) {
  const float limit = allowed == MinRange::NotPositive ? 0.0f : kLargestWeight;
  Range range;
  find_range(subs, &range);
  Lanes best_gain, inverse, min;
  *fit = {};
  fit->one = range.one;
  for (int l = 0; l < kLanes; ++l) {  // to begin with, q = 0 everywhere
    range.low.v[l] = std::min(range.low.v[l], limit);
    const float mean = range.x.v[l] / range.one.v[l];
    fit->min.v[l] = std::min(mean, limit);
    best_gain.v[l] = fit->min.v[l] * range.x.v[l];
  }
  Sums sums;
  const auto try_codes = [&] {
    sum_products(subs, high, inverse, min, &sums);
    take_better_fit(sums, range, limit, &best_gain, fit);
  };
  // The lowest weight comes to lie at code -low_excess, the highest at high + high_excess.
  const auto try_range = [&](float low_excess, float high_excess) {
    const float steps = high + low_excess + high_excess;
    for (int l = 0; l < kLanes; ++l) {
      const float step = (range.high.v[l] - range.low.v[l]) / steps;
      min.v[l] = range.low.v[l] + low_excess * step;
      inverse.v[l] = inverse_of(step);
    }
    try_codes();
  };
  if (effort == Effort::Quick) {
    try_range(0.0f, 0.0f);
    try_range(0.6f, 0.6f);
    return;
  }
  constexpr float kExcess[] = {-0.25f, 0.0f, 0.3f, 0.6f, 1.0f};
  for (const float low_excess : kExcess) {
    for (const float high_excess : kExcess) try_range(low_excess, high_excess);
  }
  try_range(0.0f, -1.0f);  // an even number of steps: holds what was rounded to a bit less, exactly
  invert(fit->scale, &inverse);
  min = fit->min;
  try_codes();
}

}  // namespace

template <int kSize>
void search_half_affine(const SubBlocks<kSize>& subs, float high, Effort effort, Lanes* scale,
                        Lanes* min) {
  AffineFit fit;
  search_affine(subs, high, MinRange::Any, effort, &fit);
  if (effort == Effort::Quick) {
    for (int l = 0; l < kLanes; ++l) {
      scale->v[l] = nearest_nonzero_half(fit.scale.v[l]);
      min->v[l] = nearest_half(moved_min(fit, l, scale->v[l]));
    }
    return;
  }
  Lanes best_error = filled(std::numeric_limits<float>::infinity()), error, trial_scale, trial_min;
  *scale = *min = filled(0.0f);
  for (const float scale_step : {0.0f, -1.0f, 1.0f}) {
    for (const float min_step : {0.0f, -1.0f, 1.0f}) {
      for (int l = 0; l < kLanes; ++l) {
        trial_scale.v[l] = next_half(nearest_half(fit.scale.v[l]), scale_step);
        trial_min.v[l] = next_half(nearest_half(moved_min(fit, l, trial_scale.v[l])), min_step);
      }
      sum_errors(subs, high, trial_scale, trial_min, &error);
      keep_better(trial_scale, trial_min, error, scale, min, &best_error);
    }
  }
  // The plain range too: it holds what was in this format before exactly, where the sums of the fit
  // cannot tell no error from little.
  Range range;
  find_range(subs, &range);
  for (int l = 0; l < kLanes; ++l) {
    trial_scale.v[l] = nearest_nonzero_half((range.high.v[l] - range.low.v[l]) / high);
    trial_min.v[l] = nearest_half(range.low.v[l]);
  }
  sum_errors(subs, high, trial_scale, trial_min, &error);
  keep_better(trial_scale, trial_min, error, scale, min, &best_error);
}

template <int kSize>
void search_super_affine(const SubBlocks<kSize>& subs, float high, float limit, SuperAffine* out) {
  AffineFit fit;
  search_affine(subs, high, MinRange::NotPositive, Effort::Full, &fit);
  constexpr int kCount = 256 / kSize;  // lanes of a super-block
  Lanes d, dmin, scale, min;           // of each lane; the last two are integers
  round_fit<kCount>(fit, limit, &d, &dmin, &scale, &min);

  Range range;
  find_range(subs, &range);
  Lanes inverse, error, best_error, real_scale, real_min;
  const auto evaluate = [&](const Lanes& int_scale, const Lanes& int_min) {
    for (int l = 0; l < kLanes; ++l) {
      real_scale.v[l] = d.v[l] * int_scale.v[l];
      real_min.v[l] = -(dmin.v[l] * int_min.v[l]);
    }
    sum_errors(subs, high, real_scale, real_min, &error);
  };
  evaluate(scale, min);
  best_error = error;
  for (int round = 0; round < 2; ++round) {
    Lanes trial_scale, trial_min;
    const Lanes start_scale = scale, start_min = min;
    for (int step = 0; step < 9; ++step) {
      if (step == 4) continue;  // the start itself
      const float scale_step = static_cast<float>(step / 3 - 1);
      const float min_step = static_cast<float>(step % 3 - 1);
      for (int l = 0; l < kLanes; ++l) {
        trial_scale.v[l] = clamp(start_scale.v[l] + scale_step, 0.0f, limit);
        trial_min.v[l] = clamp(start_min.v[l] + min_step, 0.0f, limit);
      }
      evaluate(trial_scale, trial_min);
      keep_better(trial_scale, trial_min, error, &scale, &min, &best_error);
    }
    Sums sums;
    evaluate(scale, min);
    invert(real_scale, &inverse);
    sum_products(subs, high, inverse, real_min, &sums);
    const Lanes old_d = d, old_dmin = dmin;
    for (int first = 0; first < kLanes; first += kCount) {
      refit<kCount>(sums, range, scale, min, first, &d, &dmin);
    }
    evaluate(scale, min);
    for (int first = 0; first < kLanes; first += kCount) {
      const bool better = sum_lanes(error, first, kCount) < sum_lanes(best_error, first, kCount);
      for (int l = first; l < first + kCount; ++l) {
        d[l] = better ? d[l] : old_d[l];
        dmin[l] = better ? dmin[l] : old_dmin[l];
        best_error[l] = better ? error[l] : best_error[l];
      }
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    out->d[l / kCount] = d[l];
    out->dmin[l / kCount] = dmin[l];
    out->scale[l] = static_cast<uint8_t>(scale[l]);
    out->min[l] = static_cast<uint8_t>(min[l]);
    out->rounded_scale[l] = d[l] * scale[l];
    out->rounded_min[l] = -(dmin[l] * min[l]);
  }
}

template <int kSize>
void round_affine_codes(const SubBlocks<kSize>& subs, float high, const Lanes& scale,
                        const Lanes& min, uint8_t* codes) {
  Lanes inverse;
  float inverses[kLanes * kSize], mins[kLanes * kSize];  // of each weight
  invert(scale, &inverse);
  for (int l = 0; l < kLanes; ++l) {
    std::fill_n(inverses + l * kSize, kSize, inverse[l]);
    std::fill_n(mins + l * kSize, kSize, min[l]);
  }
  for (int i = 0; i < kLanes * kSize; ++i) {
    const float q = round_to_int(clamp((subs.rows[i] - mins[i]) * inverses[i], 0.0f, high));
    codes[i] = static_cast<uint8_t>(static_cast<int32_t>(q));
  }
}

#define RILLM_INSTANTIATE(kSize)                                                               \
  template void search_half_affine(const SubBlocks<kSize>&, float, Effort, Lanes*, Lanes*);    \
  template void search_super_affine(const SubBlocks<kSize>&, float, float, SuperAffine*);      \
  template void round_affine_codes(const SubBlocks<kSize>&, float, const Lanes&, const Lanes&, \
                                   uint8_t*);
RILLM_INSTANTIATE(16)
RILLM_INSTANTIATE(32)
#undef RILLM_INSTANTIATE

}  // namespace rillm
