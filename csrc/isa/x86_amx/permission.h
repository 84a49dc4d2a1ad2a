// Whether AMX may be used here: asked by the probe and by the kernels, which are loaded apart.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

namespace rillm {

// Linux wants a process to ask for the 8 KB of registers before any of its threads uses them
// (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). A forked process has the permission too. Refused where
// a thread has a signal stack that they do not fit on.
inline bool may_use_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

}  // namespace rillm
