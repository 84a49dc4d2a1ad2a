// What this CPU can do, compiled without any -march: it must run everywhere.
//
// A library of its own, loaded before a variant is chosen. Feature names are those of
// /proc/cpuinfo on x86 and the ISA string's on RISC-V, and vlen256 for a vector register of exactly
// 256 bits. Nothing is read from the build machine.
#include "probe_riscv.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include "isa/x86_amx/permission.h"
#elif defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__riscv)
#include <fcntl.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#endif

namespace {

using probe::Text;

struct List : Text {
  void add(const char* name) { print("%s%s", used > 0 ? "," : "", name); }
};

void add_vector(const ProbeEvidence& evidence, List* list, Text* reason) {
  long vlen = 0;
  const probe::Unit unit = probe::judge(evidence, &vlen, reason);
  if (unit == probe::Unit::kNone) return;
  list->add(unit == probe::Unit::kRvv ? "v" : "xtheadvector");
  list->print(",vlen%ld", vlen);
}

#if defined(__x86_64__)

unsigned long long enabled_states() {
  unsigned int low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<unsigned long long>(high) << 32) | low;
}

void find(List& list, Text&) {
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
  unsigned long long states = enabled_states();
  if ((states & kTile) == kTile && !rillm::may_use_tiles()) states &= ~kTile;
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

void find(List& list, Text&) {
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

// vsetvli t0, x0, vtype: the elements of one register. These two are the only vector instructions
// of this library, and VLEN comes from them too: 0.7.1 has no register vlenb.
constexpr unsigned kVtype0 = 0x000072d7, kVtype8 = 0x008072d7;
struct sigaction previous_action;

// Steps over them where they are illegal: t0 keeps its 0. A fault of anything else (another thread
// may have one just now) is repeated under the action that was there before.
void step_over(int, siginfo_t*, void* context) {
  auto& pc = static_cast<ucontext_t*>(context)->uc_mcontext.__gregs[REG_PC];
  unsigned instruction = 0;
  std::memcpy(&instruction, reinterpret_cast<const void*>(pc), sizeof instruction);
  if (instruction == kVtype0 || instruction == kVtype8) {
    pc += sizeof instruction;
  } else {
    sigaction(SIGILL, &previous_action, nullptr);
  }
}

void try_vsetvli(ProbeEvidence* evidence) {
  struct sigaction action = {};
  action.sa_sigaction = step_over;
  action.sa_flags = SA_SIGINFO;
  if (sigaction(SIGILL, &action, &previous_action) != 0) return;
  register long t0 asm("t0") = 0;
  asm volatile(".4byte %1" : "+r"(t0) : "i"(kVtype0));
  evidence->vl_of_vtype_0 = t0;
  t0 = 0;
  asm volatile(".4byte %1" : "+r"(t0) : "i"(kVtype8));
  evidence->vl_of_vtype_8 = t0;
  sigaction(SIGILL, &previous_action, nullptr);
}

void read_file(const char* path, char* text, size_t size) {
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  size_t used = 0;
  while (file >= 0 && used + 1 < size) {
    const ssize_t n = read(file, text + used, size - 1 - used);
    if (n <= 0) break;
    used += static_cast<size_t>(n);
  }
  text[used] = '\0';
  if (file >= 0) close(file);
}

void find(List& list, Text& reason) {
  constexpr long long kVendor = 0, kArchitecture = 1, kExtensions = 4, kThead = 11;
  struct Bit {
    const char* name;
    int bit;  // of kExtensions
  };
  static const Bit bits[] = {{"zba", 3}, {"zbb", 4}, {"zfh", 27}, {"zvfh", 30}, {"zvfhmin", 31}};
  static char cpuinfo[1 << 16];  // 64 CPUs need 10 KB
  read_file("/proc/cpuinfo", cpuinfo, sizeof cpuinfo);
  ProbeEvidence evidence = {cpuinfo, -1, -1, 0, 0, 0, 0, 0, 0};
  evidence.hwcap_v = (getauxval(AT_HWCAP) >> ('v' - 'a') & 1) != 0;
  HwProbe answers[] = {{kVendor, 0}, {kArchitecture, 0}, {kExtensions, 0}, {kThead, 0}};
  if (ask_kernel(answers, 4)) {
    // A kernel that does not know a key sets it to -1; where CPUs differ, the value is -1.
    const auto value = [&](int i) { return answers[i].key < 0 ? 0 : answers[i].value; };
    const unsigned long long extensions = value(2);
    evidence.has_hwprobe = 1;
    evidence.hwprobe_v = (extensions >> 2 & 1) != 0;
    evidence.hwprobe_thead = (value(3) & 1) != 0;
    if (answers[0].key >= 0) evidence.vendor = static_cast<long long>(answers[0].value);
    if (answers[1].key >= 0) evidence.architecture = static_cast<long long>(answers[1].value);
    for (const Bit& bit : bits) {
      if ((extensions >> bit.bit & 1) != 0) list.add(bit.name);
    }
  }
  if (probe::is_claimed(evidence)) try_vsetvli(&evidence);
  add_vector(evidence, &list, &reason);
}

#else

void find(List&, Text&) {}

#endif

}  // namespace

#define PROBE_API extern "C" __attribute__((visibility("default")))

// Writes the names, separated by commas, and why the vector unit of a RISC-V CPU is used or not
// (else nothing), each NUL-terminated and cut at size.
PROBE_API void probe_features(char* features, char* reason, size_t size) {
  if (size == 0) return;
  features[0] = reason[0] = '\0';
  List list{{features, size}};
  Text why{reason, size};
  find(list, why);
}

// The same for a RISC-V CPU that is not here, of which only the vector unit is judged.
PROBE_API void probe_judge(const ProbeEvidence* evidence, char* features, char* reason,
                           size_t size) {
  if (size == 0) return;
  features[0] = reason[0] = '\0';
  List list{{features, size}};
  Text why{reason, size};
  add_vector(*evidence, &list, &why);
}
