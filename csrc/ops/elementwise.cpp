#include "ops/elementwise.h"

#include <cmath>

#include "ops/math.h"

namespace rillm {

void rmsnorm_row(const float* x, const float* weight, const float* residual, float eps, float* out,
                 int64_t width) {
  Simd::F squares = Simd::zero();
  for (int64_t i = 0; i < width; i += Simd::kLanes) {
    const Simd::F value = Simd::load(x + i);
    squares = Simd::fma(value, value, squares);
  }
  const float mean = Simd::reduce_add(squares) / static_cast<float>(width);
  const Simd::F scale = Simd::set1(1.0f / std::sqrt(mean + eps));
  for (int64_t i = 0; i < width; i += Simd::kLanes) {
    const Simd::F value = Simd::mul(Simd::mul(Simd::load(x + i), scale), Simd::load(weight + i));
    Simd::store(out + i, residual == nullptr ? value : Simd::add(Simd::load(residual + i), value));
  }
}

void swiglu_row(const float* x, float* out, int64_t width) {
  const Simd::F one = Simd::set1(1.0f);
  for (int64_t i = 0; i < width; i += Simd::kLanes) {
    const Simd::F gate = Simd::load(x + i), up = Simd::load(x + width + i);
    const Simd::F sigmoid_inverse = Simd::add(one, exp(Simd::sub(Simd::zero(), gate)));
    Simd::store(out + i, Simd::mul(Simd::div(gate, sigmoid_inverse), up));
  }
}

void sum_squares_columns(const float* x, int64_t num_rows, int64_t stride, float* out,
                         int64_t width) {
  for (int64_t i = 0; i < width; i += Simd::kLanes) {
    Simd::F sum = Simd::zero();
    for (int64_t row = 0; row < num_rows; ++row) {
      const Simd::F value = Simd::load(x + row * stride + i);
      sum = Simd::fma(value, value, sum);
    }
    Simd::store(out + i, sum);
  }
}

void add_row(const float* a, const float* b, float* out, int64_t width) {
  for (int64_t i = 0; i < width; i += Simd::kLanes) {
    Simd::store(out + i, Simd::add(Simd::load(a + i), Simd::load(b + i)));
  }
}

void rope_table_row(int32_t position, const float* frequency, float magnitude, float* table,
                    int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    // In double: at position 1e5 a float32 angle would be off by a hundredth of a radian.
    const double angle = static_cast<double>(position) * static_cast<double>(frequency[i]);
    table[i] = static_cast<float>(std::cos(angle)) * magnitude;
    table[n + i] = static_cast<float>(std::sin(angle)) * magnitude;
  }
}

void rope_head(const float* table, bool interleaved, float* head, int64_t n) {
  const float* cosine = table;
  const float* sine = table + n;
  if (interleaved) {
    for (int64_t i = 0; i < n; ++i) {
      const float a = head[2 * i], b = head[2 * i + 1];
      head[2 * i] = a * cosine[i] - b * sine[i];
      head[2 * i + 1] = a * sine[i] + b * cosine[i];
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const float a = head[i], b = head[i + n];
      head[i] = a * cosine[i] - b * sine[i];
      head[i + n] = a * sine[i] + b * cosine[i];
    }
  }
}

}  // namespace rillm
