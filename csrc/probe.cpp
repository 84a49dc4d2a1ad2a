// What this CPU can do, compiled without any -march: it must run everywhere.
//
// A library of its own, loaded before a variant is chosen. Feature names are those of
// /proc/cpuinfo on x86 and the ISA string's on RISC-V, and vlen256 for a vector register of exactly
// 256 bits. Nothing is read from the build machine.
#include <cstdio>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__riscv)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

struct List {
  char* text;
  size_t size;
  size_t used = 0;

  void add(const char* name) {
    const int n = std::snprintf(text + used, size - used, "%s%s", used > 0 ? "," : "", name);
    if (n > 0 && used + static_cast<size_t>(n) < size) used += static_cast<size_t>(n);
  }
};

#if defined(__x86_64__)

unsigned long long enabled_states() {
  unsigned int low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<unsigned long long>(high) << 32) | low;
}

void find(List& list) {
  struct Bit {
    const char* name;
    int leaf, subleaf, reg, bit;
    unsigned long long states;  // XCR0 bits that the kernel must have enabled
  };
  constexpr unsigned long long kYmm = 0x6, kZmm = 0xe6, kTile = 0x60000;
  enum { A, B, C, D };
  static const Bit bits[] = {
      {"fma", 1, 0, C, 12, kYmm},       {"f16c", 1, 0, C, 29, kYmm},
      {"avx2", 7, 0, B, 5, kYmm},       {"bmi2", 7, 0, B, 8, kYmm},
      {"avx512f", 7, 0, B, 16, kZmm},   {"avx512dq", 7, 0, B, 17, kZmm},
      {"avx512cd", 7, 0, B, 28, kZmm},  {"avx512bw", 7, 0, B, 30, kZmm},
      {"avx512vl", 7, 0, B, 31, kZmm},  {"avx512vnni", 7, 0, C, 11, kZmm},
      {"avx512bf16", 7, 1, A, 5, kZmm}, {"amx_bf16", 7, 0, D, 22, kTile},
      {"amx_tile", 7, 0, D, 24, kTile}, {"amx_int8", 7, 0, D, 25, kTile},
  };
  unsigned int r[4] = {0, 0, 0, 0};
  if (__get_cpuid(1, &r[A], &r[B], &r[C], &r[D]) == 0 || (r[C] >> 27 & 1) == 0) return;
  const unsigned long long states = enabled_states();
  for (const Bit& bit : bits) {
    if (__get_cpuid_count(static_cast<unsigned>(bit.leaf), static_cast<unsigned>(bit.subleaf),
                          &r[A], &r[B], &r[C], &r[D]) == 0) {
      continue;
    }
    if ((r[bit.reg] >> bit.bit & 1) != 0 && (states & bit.states) == bit.states) {
      list.add(bit.name);
    }
  }
}

#elif defined(__aarch64__)

void find(List& list) {
  const unsigned long hwcap = getauxval(AT_HWCAP);
  if ((hwcap >> 20 & 1) != 0) list.add("asimddp");
  if ((hwcap >> 10 & 1) != 0) list.add("asimdhp");
  if ((hwcap >> 22 & 1) != 0) list.add("sve");
  if ((getauxval(AT_HWCAP2) >> 13 & 1) != 0) list.add("i8mm");
}

#elif defined(__riscv)

struct HwProbe {
  long long key;
  unsigned long long value;
};

// Linux 6.4 and later; older kernels know only hwcap. By number: libc has had it only since 2.40.
// The answers are those that hold for all CPUs that this thread may run on.
bool ask_kernel(HwProbe* pairs, unsigned long count) {
  unsigned long cpus[128] = {};
  const long size = syscall(SYS_sched_getaffinity, 0, sizeof cpus, cpus);  // bytes of the mask
  if (size > 0 && syscall(258, pairs, count, size, cpus, 0UL) == 0) return true;
  return syscall(258, pairs, count, 0UL, nullptr, 0UL) == 0;
}

// Whether the vector unit takes a vtype of RVV 1.0 (e32, m1, ta, ma). In 0.7.1 the same bits mean
// an impossible element width, which sets vill, the sign bit. Only where the kernel has turned the
// unit on.
bool is_vector_1_0() {
  long vtype = 0;
  asm volatile(".4byte 0x0d0072d7\n\tcsrr %0, 0xc21" : "=r"(vtype) : : "t0");  // vsetvli; vtype
  return vtype >= 0;
}

void find(List& list) {
  constexpr long long kVendor = 0, kArchitecture = 1, kExtensions = 4, kThead = 11;
  constexpr int kV = 2;
  struct Bit {
    const char* name;
    int bit;  // of kExtensions
  };
  static const Bit bits[] = {{"zba", 3}, {"zbb", 4}, {"zfh", 27}, {"zvfh", 30}, {"zvfhmin", 31}};
  HwProbe answers[] = {{kVendor, 0}, {kArchitecture, 0}, {kExtensions, 0}, {kThead, 0}};
  bool has_vector = false, has_thead_vector = false;
  if (ask_kernel(answers, 4)) {
    // A kernel that does not know a key sets it to -1.
    const auto value = [&](int i) { return answers[i].key < 0 ? 0 : answers[i].value; };
    const unsigned long long extensions = value(2);
    has_thead_vector = (value(3) & 1) != 0;
    // T-Head's first vector cores (C906, C910, C920) have RVV 0.7.1 and an architecture id of 0;
    // some kernels call it V all the same.
    const bool is_old_thead = value(0) == 0x5b7 && answers[1].key >= 0 && answers[1].value == 0;
    has_vector = (extensions >> kV & 1) != 0 && !is_old_thead && !has_thead_vector;
    for (const Bit& bit : bits) {
      if ((extensions >> bit.bit & 1) != 0) list.add(bit.name);
    }
  } else {
    has_vector = (getauxval(AT_HWCAP) >> ('v' - 'a') & 1) != 0;
  }
  if (has_thead_vector) list.add("xtheadvector");
  if (!has_vector || !is_vector_1_0()) return;
  list.add("v");
  unsigned long bytes = 0;
  asm volatile("csrr %0, 0xc22" : "=r"(bytes));  // vlenb: the register length, in bytes
  char name[32];
  std::snprintf(name, sizeof name, "vlen%lu", 8 * bytes);
  list.add(name);
}

#else

void find(List&) {}

#endif

}  // namespace

// Writes the names, separated by commas, into text (NUL-terminated, cut at size).
extern "C" __attribute__((visibility("default"))) void probe_features(char* text, size_t size) {
  if (size == 0) return;
  text[0] = '\0';
  List list{text, size};
  find(list);
}
