#include "sampling/candidates.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

namespace rillm {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();
constexpr int32_t kBins = 1024;
constexpr int32_t kSortable = 256;  // sorting so few costs less than another histogram

}  // namespace

void Candidates::start(int32_t vocab_size) {
  const size_t size = static_cast<size_t>(vocab_size);
  size_ = vocab_size;
  dense_ = true;
  block_max_valid_ = false;
  if (logits_.size() >= size) return;
  for (auto* buffer : {&logits_, &weights_, &keys_}) buffer->resize(size);
  for (auto* buffer : {&ids_, &order_, &bins_}) buffer->resize(size);
  block_max_.resize(size / kBlock + 1);
}

void Candidates::load(const float* logits, int32_t vocab_size) {
  start(vocab_size);
  float* out = logits_.data();
  for (int32_t i = 0; i < vocab_size; ++i) out[i] = logits[i] == logits[i] ? logits[i] : kNever;
  spread_infinity();
}

void Candidates::load_allowed(const CoreSampling& request) {
  start(request.vocab_size);
  float* out = logits_.data();
  std::copy_n(request.logits, size_, out);
  for (int32_t i = 0; i < request.num_bias; ++i) out[request.bias[i].id] += request.bias[i].logit;
  for (int32_t i = 0; i < size_; ++i) out[i] = out[i] == out[i] ? out[i] : kNever;
  if (request.mask != nullptr) {
    for (int32_t begin = 0; begin < size_; begin += 32) {
      const uint32_t bits = request.mask[begin / 32];
      const int32_t count = std::min(32, size_ - begin);
      if (bits == ~0u) continue;
      for (int32_t i = 0; i < count; ++i) {
        out[begin + i] = ((bits >> i) & 1u) != 0 ? out[begin + i] : kNever;
      }
    }
  }
  spread_infinity();
}

void Candidates::spread_infinity() {
  was_infinite_ = max_logit() == -kNever;
  if (!was_infinite_) return;
  for (int32_t i = 0; i < size_; ++i) {
    float& logit = logits_[static_cast<size_t>(i)];
    logit = logit == -kNever ? 0.0f : kNever;
  }
  block_max_valid_ = false;
}

int32_t Candidates::find(int32_t id) const {
  if (dense_) return id >= 0 && id < size_ && logit(id) != kNever ? id : -1;
  const auto end = ids_.begin() + size_;
  const auto found = std::lower_bound(ids_.begin(), end, id);
  return found != end && *found == id ? static_cast<int32_t>(found - ids_.begin()) : -1;
}

void Candidates::set_logit(int32_t i, float value) {
  logits_[static_cast<size_t>(i)] = std::clamp(value, -kLargest, kLargest);
  block_max_valid_ = false;
}

void Candidates::divide_by(float temperature) {
  float* logits = logits_.data();
  for (int32_t i = 0; i < size_; ++i) logits[i] /= temperature;
  block_max_valid_ = false;
}

void Candidates::find_block_max() {
  if (block_max_valid_) return;
  for (int32_t begin = 0; begin < size_; begin += kBlock) {
    block_max_[static_cast<size_t>(begin / kBlock)] =
        maximum(logits_.data() + begin, std::min(kBlock, size_ - begin));
  }
  block_max_valid_ = true;
}

float Candidates::max_logit() {
  if (!dense_) return maximum(logits_.data(), size_);
  find_block_max();
  return maximum(block_max_.data(), (size_ + kBlock - 1) / kBlock);
}

void Candidates::keep_at_least(float threshold) {
  if (!dense_) {
    // Of flat logits this often keeps all: to see that takes a tenth of the time of copying them.
    const float* logits = logits_.data();
    int32_t num_below = 0;
    for (int32_t i = 0; i < size_; ++i) num_below += logits[i] < threshold ? 1 : 0;
    if (num_below > 0) keep_if([&](int32_t i) { return logit(i) >= threshold; });
    return;
  }
  find_block_max();
  int32_t kept = 0;
  for (int32_t begin = 0; begin < size_; begin += kBlock) {
    if (block_max_[static_cast<size_t>(begin / kBlock)] < threshold) continue;
    const int32_t end = std::min(begin + kBlock, size_);
    for (int32_t i = begin; i < end; ++i) kept = append(kept, i, logit(i) >= threshold);
  }
  shrink(kept);
}

void Candidates::compact() {
  if (!dense_) return;
  const float* logits = logits_.data();
  int32_t num_never = 0;
  for (int32_t i = 0; i < size_; ++i) num_never += logits[i] == kNever ? 1 : 0;
  if (num_never > 0) return keep_at_least(-kLargest);
  std::iota(ids_.begin(), ids_.begin() + size_, 0);
  dense_ = false;
}

void Candidates::keep_top(int32_t count) {
  const int32_t num_blocks = (size_ + kBlock - 1) / kBlock;
  if (dense_ && count <= num_blocks) {
    // `count` blocks have a maximum of at least the count-th largest one: so many tokens do, too.
    find_block_max();
    float* sorted = keys_.data();
    std::copy_n(block_max_.data(), num_blocks, sorted);
    std::nth_element(sorted, sorted + (count - 1), sorted + num_blocks, std::greater<>());
    keep_at_least(std::max(sorted[count - 1], -kLargest));
  }
  compact();
  if (count >= size_) return;
  order_by_logit();
  keep_mass(0, false, count);
}

void Candidates::order_by_logit() {
  const float* logits = logits_.data();
  float* keys = keys_.data();
  for (int32_t i = 0; i < size_; ++i) keys[i] = -logits[i];
}

double Candidates::softmax() {
  softmax_max_ = max_logit();
  float* weights = weights_.data();
  exp_below(logits_.data(), softmax_max_, weights, size_);
  return sum_of(size_, [weights](int32_t i) { return weights[i]; });
}

double Candidates::entropy(double sum) {
  const float max = softmax_max_;
  const float *logits = logits_.data(), *weights = weights_.data();
  // A weight of 0 times a distance of infinity would be NaN.
  const double mean =
      sum_of(size_, [=](int32_t i) { return weights[i] * -at_least(logits[i] - max, kExpBound); });
  return std::log(sum) + mean / sum;
}

// Counts the keys in bins, finds the bin in which the prefix ends and stores its items, which may
// overwrite those that item_of reads. Returns how many there are, or 0 if all keys are alike.
template <class ItemOf>
int32_t Candidates::narrow(int32_t num_items, ItemOf&& item_of, Prefix& prefix) {
  const float *keys = keys_.data(), *weights = weights_.data();
  int32_t *items = order_.data(), *bins = bins_.data();
  const float most = max_of(num_items, [=](int32_t i) { return keys[item_of(i)]; });
  const float least = -max_of(num_items, [=](int32_t i) { return -keys[item_of(i)]; });
  const float low = 0.5f * least;  // halves, as the range may be more than a float can hold
  const float scale = static_cast<float>(kBins) / (0.5f * most - low);
  if (!std::isfinite(scale)) return 0;
  for (int32_t i = 0; i < num_items; ++i) {
    bins[i] = std::min(static_cast<int32_t>((0.5f * keys[item_of(i)] - low) * scale), kBins - 1);
  }
  struct {
    double mass = 0;
    int32_t count = 0;
  } histogram[kBins];
  for (int32_t i = 0; i < num_items; ++i) {
    auto& bin = histogram[bins[i]];
    bin.mass += static_cast<double>(weights[item_of(i)]);
    bin.count += 1;
  }
  int32_t last = 0;
  while (last < kBins - 1 && !prefix.ends(histogram[last].mass, histogram[last].count)) {
    prefix.mass += histogram[last].mass;
    prefix.count += histogram[last++].count;
  }
  int32_t num_left = 0;
  for (int32_t i = 0; i < num_items; ++i) {
    items[num_left] = item_of(i);
    num_left += bins[i] == last ? 1 : 0;
  }
  return num_left;
}

void Candidates::keep_mass(double target, bool strict, int32_t min_keep) {
  const float *keys = keys_.data(), *weights = weights_.data();
  int32_t* items = order_.data();
  Prefix prefix{target, strict, min_keep};
  int32_t num_items = 0;
  if (size_ > kSortable) {
    num_items = narrow(size_, [](int32_t i) { return i; }, prefix);
  }
  if (num_items == 0) {
    num_items = size_;
    std::iota(items, items + num_items, 0);
  }
  while (num_items > kSortable) {
    const int32_t num_left = narrow(num_items, [=](int32_t i) { return items[i]; }, prefix);
    if (num_left == 0) break;
    num_items = num_left;
  }
  std::sort(items, items + num_items, [=](int32_t a, int32_t b) {
    return keys[a] < keys[b] || (keys[a] == keys[b] && a < b);
  });
  int32_t i = 0;
  while (i < num_items - 1 && !prefix.ends(static_cast<double>(weights[items[i]]), 1)) {
    prefix.mass += static_cast<double>(weights[items[i++]]);
    prefix.count += 1;
  }
  const int32_t last = items[i];
  const float last_key = keys[last];
  keep_if([=](int32_t j) {  // without branches, as no predictor can tell the tokens kept
    return ((keys[j] < last_key) | ((keys[j] == last_key) & (j <= last))) != 0;
  });
}

void Candidates::take_top(CoreProb* top, int32_t num_top, double sum) {
  keep_top(num_top);
  int32_t* items = order_.data();
  std::iota(items, items + size_, 0);
  std::sort(items, items + size_, [this](int32_t a, int32_t b) {
    return logit(a) > logit(b) || (logit(a) == logit(b) && a < b);
  });
  for (int32_t i = 0; i < num_top; ++i) {
    if (i >= size_) {
      top[i] = {-1, kNever, 0.0f};
      continue;
    }
    const float weight = exp_nonpositive(logit(items[i]) - softmax_max_);
    top[i] = {id(items[i]), logit(items[i]), static_cast<float>(weight / sum)};
  }
}

}  // namespace rillm
