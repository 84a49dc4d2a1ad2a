#include "sampling/samplers.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace rillm {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();

// The last `count` tokens (-1 = all of them).
struct Window {
  const int32_t* tokens;
  int32_t size;

  Window(const CoreSampling& request, int32_t count)
      : size(count < 0 ? request.num_history : std::min(count, request.num_history)) {
    tokens = request.history + (request.num_history - size);
  }
  int32_t back(int32_t i) const { return tokens[size - 1 - i]; }  // 0 = the newest
};

// per_token[token] = combine(per_token[token]), remembering the token the first time.
template <class Combine>
void note(HistoryScratch& scratch, int32_t token, Combine&& combine) {
  if (token < 0 || static_cast<size_t>(token) >= scratch.per_token.size()) return;
  int32_t& value = scratch.per_token[static_cast<size_t>(token)];
  if (value == 0) scratch.seen.push_back(token);
  value = combine(value);
}

// Calls change(logit, value) -> logit for the candidates noted, and clears the notes.
template <class Change>
void change_noted(Candidates& candidates, HistoryScratch& scratch, Change&& change) {
  for (const int32_t token : scratch.seen) {
    int32_t& value = scratch.per_token[static_cast<size_t>(token)];
    const int32_t i = candidates.find(token);
    if (i >= 0) candidates.set_logit(i, change(candidates.logit(i), value));
    value = 0;
  }
  scratch.seen.clear();
}

void reserve(HistoryScratch& scratch, const CoreSampling& request) {
  const size_t vocab_size = static_cast<size_t>(request.vocab_size);
  if (scratch.per_token.size() < vocab_size) scratch.per_token.resize(vocab_size);
  scratch.seen.reserve(static_cast<size_t>(std::min(request.num_history, request.vocab_size)));
}

// matches[k]: how many of the newest tokens also stand right before the k-th newest one's successor
// (k >= 1), that is the Z array of the reversed window, capped by `limit`.
void find_matches(const Window& window, int32_t limit, std::vector<int32_t>& matches) {
  matches.resize(static_cast<size_t>(window.size));
  int32_t begin = 0, end = 0;  // the match that reaches furthest back is [begin, end)
  for (int32_t k = 1; k < window.size; ++k) {
    int32_t length = k < end ? std::min(matches[static_cast<size_t>(k - begin)], end - k) : 0;
    while (k + length < window.size && window.back(length) == window.back(k + length)) ++length;
    matches[static_cast<size_t>(k)] = length;
    if (k + length > end) begin = k, end = k + length;
  }
  for (int32_t& length : matches) length = std::min(length, limit);
}

}  // namespace

void apply_penalties(Candidates& candidates, const CoreSampling& request, HistoryScratch& scratch) {
  const float repeat = request.repeat_penalty;
  if (repeat == 1 && request.presence_penalty == 0 && request.frequency_penalty == 0) return;
  const Window window(request, request.repeat_last_n);
  reserve(scratch, request);
  for (int32_t i = 0; i < window.size; ++i) {
    note(scratch, window.tokens[i], [](int32_t count) { return count + 1; });
  }
  change_noted(candidates, scratch, [&](float logit, int32_t count) {
    const float scaled = logit > 0 ? logit / repeat : logit * repeat;
    return scaled - static_cast<float>(count) * request.frequency_penalty -
           request.presence_penalty;
  });
}

void apply_dry(Candidates& candidates, const CoreSampling& request, HistoryScratch& scratch) {
  const Window window(request, request.dry_penalty_last_n);
  const int32_t allowed = request.dry_allowed_length;
  if (request.dry_multiplier == 0 || request.dry_base < 1 || window.size <= allowed) return;
  const int32_t* breakers = request.dry_breakers;
  const auto is_breaker = [&](int32_t token) {
    return std::binary_search(breakers, breakers + request.num_dry_breakers, token);
  };
  int32_t limit = 0;  // a match may not reach over the newest breaker
  while (limit < window.size && !is_breaker(window.back(limit))) ++limit;
  if (limit < allowed) return;

  reserve(scratch, request);
  find_matches(window, limit, scratch.matches);
  for (int32_t k = 1; k < window.size; ++k) {
    const int32_t length = scratch.matches[static_cast<size_t>(k)];
    const int32_t next = window.back(k - 1);
    if (length < allowed || is_breaker(next)) continue;
    // One more than the length: 0 means that there is none.
    note(scratch, next, [&](int32_t longest) { return std::max(longest, length + 1); });
  }
  const float log_base = std::log(request.dry_base);
  change_noted(candidates, scratch, [&](float logit, int32_t noted) {
    // base^exponent must stay finite
    const float exponent = static_cast<float>(noted - 1 - allowed);
    return logit - request.dry_multiplier * std::exp(std::min(exponent * log_base, 88.7f));
  });
}

void apply_top_n_sigma(Candidates& candidates, float num_sigmas) {
  if (num_sigmas <= 0) return;
  candidates.compact();
  const int32_t size = candidates.size();
  const float max = candidates.max_logit();
  // Relative to the maximum, for float32 sums of logits that share a large offset.
  const auto below = [&](int32_t i) { return std::min(max - candidates.logit(i), 1e18f); };
  const double mean = sum_of(size, below) / size;
  const float center = static_cast<float>(mean);
  const double variance =
      sum_of(size, [&](int32_t i) { return (below(i) - center) * (below(i) - center); }) / size;
  candidates.keep_at_least(max - num_sigmas * static_cast<float>(std::sqrt(variance)));
}

void apply_top_k(Candidates& candidates, int32_t k) {
  if (k > 0) candidates.keep_top(k);
}

void apply_typical(Candidates& candidates, float p, int32_t min_keep) {
  if (p >= 1) return;
  candidates.compact();
  const double sum = candidates.softmax();
  // The surprise max + log(sum) - logit of a token, less the entropy.
  const float offset = static_cast<float>(std::log(sum) - candidates.entropy(sum));
  const float max = candidates.softmax_max();
  float* keys = candidates.keys();
  for (int32_t i = 0; i < candidates.size(); ++i) {
    keys[i] = std::min(std::abs(max - candidates.logit(i) + offset), kLargest);
  }
  candidates.keep_mass(static_cast<double>(p) * sum, true, min_keep);
}

void apply_top_p(Candidates& candidates, float p, int32_t min_keep) {
  if (p >= 1) return;
  const double sum = candidates.softmax();
  const int32_t size = candidates.size();
  if (min_keep <= 1) {
    // Tokens of a weight below (1 - p) * sum / size cannot reach 1 - p together: the prefix ends
    // before them. (Half of it, for the roundings.) On language models this leaves few to order.
    const double least = 0.5 * (1 - static_cast<double>(p)) * sum / candidates.size();
    const float threshold = candidates.softmax_max() + static_cast<float>(std::log(least));
    candidates.keep_at_least(at_least(threshold, -kLargest));
  } else {
    candidates.compact();
  }
  if (candidates.size() != size) candidates.softmax();  // else the weights are still theirs
  candidates.order_by_logit();
  candidates.keep_mass(static_cast<double>(p) * sum, false, min_keep);
}

void apply_min_p(Candidates& candidates, float p, int32_t min_keep) {
  if (p <= 0) return;
  candidates.compact();
  const float threshold = candidates.max_logit() + std::log(p);
  int32_t count = 0;
  for (int32_t i = 0; i < candidates.size(); ++i) count += candidates.logit(i) >= threshold;
  if (count >= min_keep) {
    candidates.keep_at_least(threshold);
  } else {
    candidates.keep_top(min_keep);
  }
}

void apply_xtc(Candidates& candidates, const CoreSampling& request, double chance) {
  if (request.xtc_probability <= 0 || request.xtc_threshold > 0.5f) return;
  if (chance > static_cast<double>(request.xtc_probability)) return;
  candidates.compact();
  const double least = static_cast<double>(request.xtc_threshold) * candidates.softmax();
  const auto is_top = [&](int32_t i) {
    return static_cast<double>(candidates.weights()[i]) >= least;
  };
  int32_t num_top = 0, last = -1;  // the least likely of the top choices stays
  for (int32_t i = 0; i < candidates.size(); ++i) {
    if (!is_top(i)) continue;
    ++num_top;
    if (last < 0 || candidates.logit(i) <= candidates.logit(last)) last = i;
  }
  if (num_top < 2 || candidates.size() - (num_top - 1) < request.min_keep) return;
  candidates.keep_if([&](int32_t i) { return i == last || !is_top(i); });
}

void apply_temperature(Candidates& candidates, float temperature, float range, float exponent) {
  if (range > 0) {
    candidates.compact();
    if (candidates.size() <= 1) return;
    const float low = std::max(0.0f, temperature - range), high = temperature + range;
    const double entropy = candidates.entropy(candidates.softmax());
    const double share = entropy / std::log(static_cast<double>(candidates.size()));
    temperature = low + (high - low) * static_cast<float>(std::pow(share, exponent));
  }
  const float max = candidates.max_logit();
  // So cold that even the largest logit overflows: greedy, too.
  if (temperature <= 0 || !std::isfinite(max / temperature)) {
    candidates.keep_top(1);
  } else if (temperature != 1) {
    candidates.divide_by(temperature);
  }
}

void apply_mirostat_1(Candidates& candidates, const CoreSampling& request) {
  candidates.compact();
  if (candidates.size() <= 1) return;
  // Zipf's exponent, estimated from the likeliest tokens.
  constexpr int32_t kEstimate = 100;
  const int32_t size = candidates.size();
  const int32_t num_top = std::min(kEstimate, size);
  float* top = candidates.keys();
  for (int32_t i = 0; i < size; ++i) top[i] = candidates.logit(i);
  std::partial_sort(top, top + num_top, top + size, [](float a, float b) { return a > b; });
  double products = 0, squares = 0;
  for (int32_t i = 0; i + 1 < num_top; ++i) {
    const double t = std::log((i + 2.0) / (i + 1.0));
    products += t * (static_cast<double>(top[i]) - static_cast<double>(top[i + 1]));
    squares += t * t;
  }
  const double s = products / squares;
  const double log_size = std::log(static_cast<double>(request.vocab_size));
  const double epsilon = s - 1;
  // epsilon / (1 - N^-epsilon), which tends to 1 / log N
  const double factor =
      std::abs(epsilon) < 1e-9 ? 1 / log_size : -epsilon / std::expm1(-epsilon * log_size);
  const double k = std::pow(factor * std::exp2(static_cast<double>(request.mirostat_mu)), 1 / s);
  if (k < size) candidates.keep_top(std::max(static_cast<int32_t>(k), 1));
}

void apply_mirostat_2(Candidates& candidates, const CoreSampling& request) {
  candidates.compact();
  const double least = candidates.softmax() * std::exp2(-static_cast<double>(request.mirostat_mu));
  const float* weights = candidates.weights();
  const bool none = std::none_of(weights, weights + candidates.size(), [=](float weight) {
    return static_cast<double>(weight) >= least;
  });
  if (none) return candidates.keep_top(1);
  candidates.keep_if([&](int32_t i) { return static_cast<double>(weights[i]) >= least; });
}

}  // namespace rillm
