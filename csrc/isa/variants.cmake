# One line per variant: name, processor, header folder, compiler flags, CPU features that must be
# there (names of probe.cpp) and score; GCC, the oldest one where only GCC will do; and LIKE, the
# variant whose objects it shares except for FILES. The loader takes the highest score whose features
# are all there.
rillm_variant(scalar      any      scalar      ""                            ""                                                       0)
rillm_variant(x86_avx2    x86_64   x86_avx2    "-march=x86-64-v3"            "avx2,fma,f16c,bmi2"                                   100)
rillm_variant(x86_avx512  x86_64   x86_avx512  "-march=x86-64-v4 -mavx512vnni" "avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni" 200)
rillm_variant(x86_amx     x86_64   x86_amx     "-march=x86-64-v4 -mavx512vnni -mamx-tile -mamx-int8" "avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,amx_tile,amx_int8" 300
  LIKE x86_avx512 FILES abi.cpp layouts/layout.cpp ops/matmul.cpp ops/peak.cpp program.cpp)
# RVV: exactly one VLEN each. _f16 converts binary16 in the vector unit; the others are for kernels
# that cannot name Zvfhmin, and for cores without it. Prefetches (zicbop) are no-ops elsewhere.
foreach(vlen 128 256 512 1024)
  rillm_variant(riscv_rvv${vlen}     riscv64 riscv_rvv
    "-march=rv64gcv_zvl${vlen}b_zicbop -mrvv-vector-bits=zvl" "v,vlen${vlen}" 100)
  rillm_variant(riscv_rvv${vlen}_f16 riscv64 riscv_rvv
    "-march=rv64gcv_zvl${vlen}b_zicbop_zba_zbb_zvfhmin -mrvv-vector-bits=zvl"
    "v,zba,zbb,zvfhmin,vlen${vlen}" 200)
endforeach()
# RVV 0.7.1. Older GCCs take the flag, but emit code that the assembler refuses or that is wrong
# (vsetvli x0,x0 keeps vl in 1.0 and sets VLMAX in 0.7.1: GCC bug 118357); clang knows no 0.7.1.
rillm_variant(riscv_xthead   riscv64 riscv_xthead
  "-march=rv64gc_xtheadvector -mrvv-vector-bits=zvl" "xtheadvector,vlen128" 100 GCC 15)
