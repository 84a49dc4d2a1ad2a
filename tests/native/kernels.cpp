// Checks one variant of the core against float64 references, through its ABI:
//
//     kernels LIBRARY [case ...]          one line for each case; exit status 1 if any is wrong.
//                                         A case is a format, linear, attention or rows
//     kernels LIBRARY --repeat FORMAT ROWS COLS TOKENS COUNT     one linear op, COUNT times
//     kernels LIBRARY --blas OPENBLAS     float weights by that OpenBLAS, on two threads
//     kernels PROBE --features            what the probe library finds
//
// The second form is for counting instructions under an emulator: two counts, one difference. No
// Python and nothing but libc, so that it runs on a bare emulator or board.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "core_library.h"

namespace {

std::mt19937 generator(1);
int failures = 0;

std::vector<float> random_floats(int64_t n, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(n);
  for (float& value : values) value = normal(generator);
  return values;
}

std::vector<int32_t> iota(int32_t first, int32_t n) {
  std::vector<int32_t> ids(n);
  for (int32_t i = 0; i < n; ++i) ids[i] = first + i;
  return ids;
}

uint64_t hash(const std::vector<float>& values) {
  uint64_t sum = 1469598103934665603u;
  for (const float value : values) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    sum = (sum ^ bits) * 1099511628211u;
  }
  return sum;
}

// error: largest |got - want| over the largest |want|. same: results that must be equal bit for
// bit.
void report(const std::string& name, const std::vector<float>& got, const std::vector<double>& want,
            double tolerance, bool same = true) {
  double error = 0, top = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(got[i]) - want[i]);
    if (!(difference <= error)) error = difference;  // keeps a NaN
    top = std::max(top, std::fabs(want[i]));
  }
  error /= top;
  const bool good = error <= tolerance && same && top > 0;
  failures += !good;
  std::printf("%s %s %s error %.1e of %.1e%s %016llx\n", good ? "ok  " : "FAIL", core_variant_(),
              name.c_str(), error, tolerance, same ? "" : " (batched differs from alone)",
              static_cast<unsigned long long>(hash(got)));
  std::fflush(stdout);
}

// What the core multiplies with: 8 bits and a scale for every 32 (ops/activations.h).
std::vector<double> quantized(const std::vector<float>& x) {
  std::vector<double> out(x.size());
  for (size_t i = 0; i < x.size(); i += 32) {
    float max = 0;
    for (int k = 0; k < 32; ++k) max = std::max(max, std::fabs(x[i + k]));
    const float inverse = max > 0 ? 127.0f / max : 0.0f, d = max / 127.0f;
    for (int k = 0; k < 32; ++k) {
      const float scaled = x[i + k] * inverse;
      out[i + k] = static_cast<double>(d) * std::nearbyint(scaled);
    }
  }
  return out;
}

// The cache's Q8_0: the plain rounding, not the quantiser's search.
std::vector<float> cached_q8_0(const std::vector<float>& x) {
  std::vector<float> out(x.size());
  for (size_t i = 0; i < x.size(); i += 32) {
    float max = 0;
    for (int k = 0; k < 32; ++k) max = std::max(max, std::fabs(x[i + k]));
    const float d = make_tensor(find_format("F16"), 1, 1, {max / 127.0f}).values[0];
    for (int k = 0; k < 32; ++k) out[i + k] = d * std::nearbyint(x[i + k] * (127.0f / max));
  }
  return out;
}

CoreFormat f32() { return find_format("F32"); }

// Weight 0 is the input, weight 1 the matrix; the result is in the buffer that is returned.
int32_t add_linear(Program& program, const Tensor& w, const Tensor* bias) {
  const int32_t weight = program.add_weight(CORE_MATRIX, w);
  const int32_t q8 = program.add_buffer(CORE_BUFFER_Q8, w.cols);
  const int32_t y = program.add_buffer(CORE_BUFFER_F32, w.rows);
  const bool quantized = program.is_quantized(weight);
  if (quantized) program.add_op(make_op(CORE_QUANTIZE, {0}, {-1, q8}, {}));
  std::vector<int32_t> weights{weight};
  if (bias != nullptr) weights = {weight, -1, -1, program.add_weight(CORE_VECTOR, *bias)};
  program.add_op(make_op(CORE_LINEAR, {quantized ? q8 : -1, -1, quantized ? -1 : 0}, {y}, weights));
  return y;
}

// Rows that fill no tile; 31 tokens make a group of every size; outliers and a row of zeros.
void check_linear(const CoreFormat& format, int64_t rows, int32_t num_tokens, int64_t cols = 512) {
  std::vector<float> x = random_floats(num_tokens * cols);
  for (int64_t i = 0; i < cols; ++i) x[3 * cols + i] = 0.0f;
  for (int64_t i = 0; i < cols; ++i) x[5 * cols + i] = i % 2 != 0 ? 1.0f : -1.0f;  // |q| = 127
  for (int64_t i = 0; i < cols; ++i) x[6 * cols + i] = 1.0f;
  x[7 * cols + 40] = 1000.0f;
  std::vector<float> weights = random_floats(rows * cols, 0.05f);
  for (int64_t i = 0; i < cols; ++i) {
    weights[7 * cols + i] = i % 2 != 0 ? 0.1f : -0.1f;  // codes at both ends, signs as token 5's
    weights[8 * cols + i] = i % 32 == 0 ? -0.1f : 0.1f;
    weights[9 * cols + i] = 0.0f;
  }
  const Tensor input = make_tensor(f32(), num_tokens, cols, x);
  const Tensor w = make_tensor(format, rows, cols, weights);
  const Tensor bias = make_tensor(f32(), 1, rows, random_floats(rows));
  Program program(input, num_tokens);
  const int32_t y = add_linear(program, w, &bias);
  const bool is_quantized = format.block_size > 1;
  const std::vector<float> got = program.run(iota(0, num_tokens), y);

  const std::vector<double> activations =
      is_quantized ? quantized(x) : std::vector<double>(x.begin(), x.end());
  std::vector<double> want;
  for (int32_t token = 0; token < num_tokens; ++token) {
    for (int64_t row = 0; row < rows; ++row) {
      double sum = bias.values[row];
      for (int64_t k = 0; k < cols; ++k) {
        sum += activations[token * cols + k] * static_cast<double>(w.values[row * cols + k]);
      }
      want.push_back(sum);
    }
  }
  bool same = true;
  for (const auto& [first, count] :
       {std::pair{0, 1}, {5, 1}, {7, 2}, {2, 7}, {20, 1}, {1, 15}, {1, 16}, {1, 17}, {3, 64}}) {
    if (first + count > num_tokens) continue;
    const std::vector<float> part = program.run(iota(first, count), y);
    same &= std::memcmp(part.data(), got.data() + first * rows, 4 * part.size()) == 0;
  }
  // A float matmul adds products one by one, and one activation here is 1000 times the others.
  report("linear " + std::string(format.name) + " " + std::to_string(rows) + "x" +
             std::to_string(num_tokens),
         got, want, is_quantized ? 2e-6 : 1e-5, same);
}

void check_attention(const char* cache_type, int32_t num_heads, int32_t num_kv_heads,
                     int32_t head_dim) {
  const CoreFormat format = find_format(cache_type);
  const int32_t num_tokens = 299, group = num_heads / num_kv_heads;
  const int64_t width = int64_t{num_heads + 2 * num_kv_heads} * head_dim;
  const std::vector<float> qkv = random_floats(num_tokens * width);
  const Tensor input = make_tensor(f32(), num_tokens, width, qkv);
  const CoreCacheConfig config{1, num_kv_heads, head_dim, 16, 64, format.ggml_type};
  CoreCache* cache = nullptr;
  must(core_cache_create_(&config, &cache));
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  Program program(input, num_tokens, cache);
  const int32_t y = program.add_buffer(CORE_BUFFER_F32, int64_t{num_heads} * head_dim);
  CoreOp op = make_op(CORE_ATTENTION, {0}, {y}, {});
  op.i[1] = num_heads;
  op.f[0] = scale;
  program.add_op(op);
  const std::vector<float> got = program.run(iota(0, num_tokens), y);

  const int32_t split = 270;  // a prompt, then the rest one token at a time
  program.run(iota(0, split), y);
  bool same = true;
  for (int32_t token = split; token < num_tokens; ++token) {
    const std::vector<float> alone = program.run({token}, y, token);
    same &= std::memcmp(alone.data(), got.data() + token * alone.size(), 4 * alone.size()) == 0;
  }

  std::vector<float> values = make_tensor(find_format("F16"), num_tokens, width, qkv).values;
  if (format.block_size > 1) values = cached_q8_0(qkv);
  const auto key = [&](int32_t position, int32_t head) {
    return values.data() + position * width + int64_t{num_heads + head} * head_dim;
  };
  std::vector<double> want;
  for (int32_t token = 0; token < num_tokens; ++token) {
    for (int32_t head = 0; head < num_heads; ++head) {
      const float* q = qkv.data() + token * width + int64_t{head} * head_dim;
      std::vector<double> out(head_dim);
      double total = 0;
      for (int32_t position = 0; position <= token; ++position) {
        const float* k = key(position, head / group);
        const float* v = k + int64_t{num_kv_heads} * head_dim;
        double score = 0;
        for (int32_t d = 0; d < head_dim; ++d) score += double{q[d]} * double{k[d]};
        const double weight = std::exp(score * double{scale});
        total += weight;
        for (int32_t d = 0; d < head_dim; ++d) out[d] += weight * double{v[d]};
      }
      for (const double value : out) want.push_back(value / total);
    }
  }
  report("attention " + std::string(cache_type) + " heads " + std::to_string(num_heads) + "/" +
             std::to_string(num_kv_heads) + " of " + std::to_string(head_dim),
         got, want, 5e-6, same);
  core_cache_destroy_(cache);
}

void check_rows() {
  const int32_t num_tokens = 5;
  const int64_t width = 288;
  std::vector<float> x = random_floats(num_tokens * 2 * width, 4.0f);
  x[0] = 100.0f;  // silu where e^-x leaves float32's range
  x[1] = -100.0f;
  const Tensor wide = make_tensor(f32(), num_tokens, 2 * width, x);
  {
    Program program(wide, num_tokens);
    const int32_t y = program.add_buffer(CORE_BUFFER_F32, width);
    program.add_op(make_op(CORE_SWIGLU, {0}, {y}, {}));
    std::vector<double> want;
    for (int32_t token = 0; token < num_tokens; ++token) {
      const float* row = x.data() + token * 2 * width;
      for (int64_t i = 0; i < width; ++i) {
        want.push_back(double{row[i]} / (1.0 + std::exp(-double{row[i]})) * double{row[width + i]});
      }
    }
    report("swiglu", program.run(iota(0, num_tokens), y), want, 1e-6);
  }
  const Tensor norm = make_tensor(f32(), 1, 2 * width, random_floats(2 * width));
  Program program(wide, num_tokens);
  const int32_t y = program.add_buffer(CORE_BUFFER_F32, 2 * width);
  const int32_t sum = program.add_buffer(CORE_BUFFER_F32, 2 * width);
  CoreOp op = make_op(CORE_RMSNORM, {0, 0}, {y}, {program.add_weight(CORE_VECTOR, norm)});
  op.f[0] = 1e-5f;
  program.add_op(op);
  program.add_op(make_op(CORE_ADD, {y, 0}, {sum}, {}));
  std::vector<double> want;
  for (int32_t token = 0; token < num_tokens; ++token) {
    const float* row = x.data() + token * 2 * width;
    double squares = 0;
    for (int64_t i = 0; i < 2 * width; ++i) squares += double{row[i]} * double{row[i]};
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(2 * width) + 1e-5);
    for (int64_t i = 0; i < 2 * width; ++i) {
      want.push_back(2.0 * double{row[i]} + double{row[i]} * scale * double{norm.values[i]});
    }
  }
  report("rmsnorm, add", program.run(iota(0, num_tokens), sum), want, 1e-6);
}

// Weights of several panels with a bias, added to the output in place; below the least number of
// rows the result is rillm's own, bit for bit.
void check_blas(const CoreFormat& format) {
  const int64_t rows = 610, cols = 1056;
  const int32_t num_tokens = 37, min_rows = 20;
  const std::vector<float> x = random_floats(num_tokens * cols);
  const Tensor input = make_tensor(f32(), num_tokens, cols, x);
  const Tensor w = make_tensor(format, rows, cols, random_floats(rows * cols, 0.05f));
  const Tensor bias = make_tensor(f32(), 1, rows, random_floats(rows));
  const auto run = [&](int32_t least, int32_t count) {
    Program program(input, num_tokens, nullptr, least);
    const int32_t y = add_linear(program, w, nullptr);
    CoreOp again = make_op(CORE_LINEAR, {-1, y, 0}, {y}, {0});
    again.weight[0] = program.add_weight(CORE_MATRIX, w);
    again.weight[3] = program.add_weight(CORE_VECTOR, bias);
    program.add_op(again);
    return program.run(iota(0, count), y);
  };
  std::vector<double> want;
  for (int32_t token = 0; token < num_tokens; ++token) {
    for (int64_t row = 0; row < rows; ++row) {
      double sum = 0;
      for (int64_t k = 0; k < cols; ++k) {
        sum += double{x[token * cols + k]} * double{w.values[row * cols + k]};
      }
      want.push_back(2 * sum + double{bias.values[row]});
    }
  }
  const bool same = run(min_rows, min_rows - 1) == run(0, min_rows - 1);
  report("blas " + std::string(format.name), run(min_rows, num_tokens), want, 2e-6, same);
}

int with_blas(const char* path) {
  must(core_team_create_(2, nullptr, &team));
  must(core_load_blas_(path));
  std::printf("%s\n", core_blas_info_());
  for (const char* name : {"F32", "F16", "BF16"}) check_blas(find_format(name));
  return failures > 0;
}

int repeat(char** argument) {
  const CoreFormat format = find_format(argument[0]);
  const int64_t rows = std::atoll(argument[1]), cols = std::atoll(argument[2]);
  const int32_t num_tokens = std::atoi(argument[3]);
  std::vector<uint8_t> blocks(rows * cols / format.block_size * format.block_bytes, 0x35);
  const Tensor input = make_tensor(f32(), num_tokens, cols, random_floats(num_tokens * cols));
  const Tensor w{format, rows, cols, blocks, {}};
  Program program(input, num_tokens);
  const int32_t y = add_linear(program, w, nullptr);
  for (int i = 0; i < std::atoi(argument[4]); ++i) program.run(iota(0, num_tokens), y);
  return 0;
}

int print_features(const char* path) {
  void* library = dlopen(path, RTLD_NOW);
  if (library == nullptr) return std::fprintf(stderr, "%s\n", dlerror()), 2;
  using Probe = void (*)(char*, char*, size_t);
  char features[1024], reason[1024];
  reinterpret_cast<Probe>(dlsym(library, "probe_features"))(features, reason, sizeof features);
  std::printf("%s\n%s\n", features, reason);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "kernels LIBRARY [case ...]\n"), 2;
  if (argc == 3 && std::strcmp(argv[2], "--features") == 0) return print_features(argv[1]);
  load_core(argv[1], 1);
  if (argc == 8 && std::strcmp(argv[2], "--repeat") == 0) return repeat(argv + 3);
  if (argc == 4 && std::strcmp(argv[2], "--blas") == 0) return with_blas(argv[3]);
  const auto wanted = [&](const std::string& name) {
    if (argc == 2) return true;
    return std::any_of(argv + 2, argv + argc, [&](const char* word) { return name == word; });
  };
  CoreFormat format;
  for (int i = 0; core_format_at_(i, &format) == CORE_OK; ++i) {
    if (!wanted("linear") && !wanted(format.name)) continue;
    check_linear(format, 133, 31);
    check_linear(format, 33, 33);
    // More groups than any kernel takes at once, and strips that are left over.
    check_linear(format, 44, 100, format.block_size <= 32 ? 608 : 768);
  }
  if (wanted("attention")) {
    check_attention("F16", 16, 1, 64);  // as in GLM-4-9B 16 heads share one
    check_attention("F16", 6, 2, 32);
    check_attention("Q8_0", 2, 2, 96);
  }
  if (wanted("rows")) check_rows();
  return failures > 0;
}
