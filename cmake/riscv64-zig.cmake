# cmake --toolchain cmake/riscv64-zig.cmake: builds the RISC-V variants on any machine that has the
# pip package ziglang; no system package is needed. `rillm build` uses the same compiler.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR riscv64)
set(CMAKE_CXX_COMPILER ${CMAKE_CURRENT_LIST_DIR}/../src/rillm/board/zig_cxx.py)
# Linking a test program would build zig's libc++ for the CPU of every variant: minutes.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
