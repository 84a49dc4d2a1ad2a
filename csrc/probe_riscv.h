// Which vector unit a RISC-V CPU has: a judgement on what the kernel says and on how the unit
// answers. Apart from the asking (probe.cpp), so that it can be tried on boards that are not here.
//
// The kernel alone cannot be believed. Vendors' kernels call RVV 0.7.1 (XTheadVector) `v` in hwcap
// and in /proc/cpuinfo (TH1520, SG2042). Mainline before 6.14 leaves that unit off on the same
// CPUs, with the same ids. The unit alone should not be asked where nothing claims it: a kernel
// that does not save its registers would mix up processes. So somebody must claim the unit, then
// vsetvli has the word, and a contradiction means that it is not used.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// What there is to judge by. A plain struct: tests fill it from Python.
struct ProbeEvidence {
  const char* cpuinfo;             // text of /proc/cpuinfo
  long long vendor, architecture;  // mvendorid, marchid by riscv_hwprobe; -1: unknown
  int has_hwprobe;                 // Linux 6.4 and later
  int hwprobe_v, hwprobe_thead;    // its bits for V and XTheadVector
  int hwcap_v;
  // Elements of one register by vsetvli with vtype 0 (8 bits in both versions) and with vtype 8: 16
  // bits in RVV 1.0, 32 in 0.7.1. 0: illegal, or not asked.
  long vl_of_vtype_0, vl_of_vtype_8;
};

namespace probe {

struct Text {
  char* text;
  size_t size;
  size_t used = 0;

  __attribute__((format(printf, 2, 3))) void print(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const int n = std::vsnprintf(text + used, size - used, format, arguments);
    va_end(arguments);
    if (n > 0)
      used = used + static_cast<size_t>(n) < size ? used + static_cast<size_t>(n) : size - 1;
  }
};

// What /proc/cpuinfo says of all CPUs together.
struct CpuInfo {
  bool claims_vector = false;  // `v` among the letters of an ISA string, or xtheadvector after them
  bool claims_0_7_1 = false;   // T-Head's kernels have a line for the version; or xtheadvector
  long long vendor = -1, architecture = -1;  // -1: no such line
};

inline bool is_word(const char* text, const char* end, const char* word) {
  const size_t length = std::strlen(word);
  return static_cast<size_t>(end - text) == length && std::memcmp(text, word, length) == 0;
}

inline bool contains(const char* text, const char* end, const char* word) {
  const char* found = std::strstr(text, word);
  return found != nullptr && found < end;
}

// The line `name : value`, without the white space around both.
inline void read_line(const char* line, const char* end, CpuInfo* info) {
  const auto* colon =
      static_cast<const char*>(std::memchr(line, ':', static_cast<size_t>(end - line)));
  if (colon == nullptr) return;
  const char *name_end = colon, *value = colon + 1;
  while (name_end > line && (name_end[-1] == ' ' || name_end[-1] == '\t')) --name_end;
  while (value < end && (*value == ' ' || *value == '\t')) ++value;
  if (is_word(line, name_end, "isa")) {
    const char* letters = value + 4;  // after rv64
    if (end - value < 4 || std::memcmp(value, "rv64", 4) != 0) return;
    while (letters < end && *letters >= 'a' && *letters <= 'z') {
      if (*letters++ == 'v') info->claims_vector = true;
    }
    if (contains(letters, end, "xtheadvector")) info->claims_vector = info->claims_0_7_1 = true;
  } else if (is_word(line, name_end, "cpu-vector") || is_word(line, name_end, "vector version")) {
    info->claims_vector = true;
    if (contains(value, end, "0.7.1")) info->claims_0_7_1 = true;
  } else if (is_word(line, name_end, "mvendorid")) {
    info->vendor = std::strtoll(value, nullptr, 0);
  } else if (is_word(line, name_end, "marchid")) {
    info->architecture = static_cast<long long>(std::strtoull(value, nullptr, 0));
  }
}

inline CpuInfo read_cpuinfo(const char* text) {
  CpuInfo info;
  while (*text != '\0') {
    const char* end = text + std::strcspn(text, "\n");
    read_line(text, end, &info);
    text = *end == '\0' ? end : end + 1;
  }
  return info;
}

// Whether somebody claims a vector unit, so that vsetvli may be tried.
inline bool is_claimed(const ProbeEvidence& evidence) {
  return evidence.hwprobe_v != 0 || evidence.hwprobe_thead != 0 || evidence.hwcap_v != 0 ||
         read_cpuinfo(evidence.cpuinfo).claims_vector;
}

enum class Unit { kNone, kRvv, kThead };

// The unit and its register length in bits, with the reason as one line.
inline Unit judge(const ProbeEvidence& evidence, long* vlen, Text* reason) {
  constexpr long long kThead = 0x5b7;
  const CpuInfo info = read_cpuinfo(evidence.cpuinfo);
  const long long vendor = evidence.vendor != -1 ? evidence.vendor : info.vendor;
  const long long architecture =
      evidence.architecture != -1 ? evidence.architecture : info.architecture;
  // C906, C910 and C920v1. The later cores (C908, C920v2: RVV 1.0) have an architecture id.
  const bool is_old_thead = vendor == kThead && architecture == 0;
  const bool says_0_7_1 = evidence.hwprobe_thead != 0 || info.claims_0_7_1 || is_old_thead;

  reason->print("%s", evidence.has_hwprobe == 0     ? "no hwprobe"
                      : evidence.hwprobe_v != 0     ? "hwprobe says V"
                      : evidence.hwprobe_thead != 0 ? "hwprobe says XTheadVector"
                                                    : "hwprobe says no vector");
  if (evidence.hwcap_v != 0) reason->print(", hwcap v");
  if (info.claims_0_7_1) {
    reason->print(", cpuinfo 0.7.1");
  } else if (info.claims_vector) {
    reason->print(", cpuinfo v");
  }
  if (vendor != -1) reason->print(", vendor 0x%llx", static_cast<unsigned long long>(vendor));
  if (architecture != -1) {
    reason->print(" architecture 0x%llx", static_cast<unsigned long long>(architecture));
  }
  if (!is_claimed(evidence)) {
    reason->print("; nothing claims a vector unit, so none is used");
    return Unit::kNone;
  }
  const long bytes = evidence.vl_of_vtype_0, elements = evidence.vl_of_vtype_8;
  *vlen = 8 * bytes;
  const bool is_0_7_1 = bytes > 0 && bytes == 4 * elements;
  const bool is_1_0 = bytes > 0 && bytes == 2 * elements;
  if (bytes <= 0) {
    reason->print("; vsetvli is illegal: the kernel leaves the unit off");
  } else if (!is_0_7_1 && !is_1_0) {
    reason->print("; vsetvli answers as no version that is known");
  } else {
    reason->print("; vsetvli answers as RVV %s, VLEN %ld", is_1_0 ? "1.0" : "0.7.1", *vlen);
    if (is_1_0 && !says_0_7_1) return Unit::kRvv;
    if (is_0_7_1 && (vendor == -1 || vendor == kThead)) return Unit::kThead;
    reason->print(", which contradicts the rest: not used");
  }
  return Unit::kNone;
}

}  // namespace probe
