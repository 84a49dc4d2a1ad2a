"""/proc/cpuinfo of RISC-V boards, the first CPU of each, as their users posted it."""

from __future__ import annotations

# fenrus75/powertop pull request 141
LICHEE_PI_4A_VENDOR = """\
processor\t: 0
hart\t\t: 0
isa\t\t: rv64imafdcvsu
mmu\t\t: sv39
cpu-freq\t: 1.848Ghz
cpu-icache\t: 64KB
cpu-dcache\t: 64KB
cpu-l2cache\t: 1MB
cpu-tlb\t\t: 1024 4-ways
cpu-cacheline\t: 64Bytes
cpu-vector\t: 0.7.1
"""
# The kernel of irradium 3.8 (6.6.90); ruyisdk/support-matrix
LICHEE_PI_4A_PATCHED = """\
processor       : 0
hart            : 0
isa             : rv64imafdc_zicntr_zicsr_zifencei_zihpm_xtheadvector
mmu             : sv39
uarch           : thead,c910
mvendorid       : 0x5b7
marchid         : 0x0
mimpid          : 0x0
"""
# openEuler 24.03 (6.6), which leaves the unit off; ruyisdk/support-matrix
LICHEE_PI_4A_MAINLINE = LICHEE_PI_4A_PATCHED.replace("_xtheadvector", "")
# Fedora 38 (6.1.55): 0.7.1 called v; ruyisdk/support-matrix
PIONEER = """\
processor       : 0
hart            : 2
isa             : rv64imafdcv
mmu             : sv39
mvendorid       : 0x5b7
marchid         : 0x0
mimpid          : 0x0
"""
# camel-cdr/rvv-bench-results issue 8 (6.17.8)
BPI_F3 = """\
processor\t: 0
hart\t\t: 0
model name\t: Spacemit(R) X60
isa\t\t: rv64imafdcv_zicbom_zicboz_zicntr_zicond_zicsr_zifencei_zihintpause_zihpm_zfh_zvfh
mmu\t\t: sv39
uarch\t\t: spacemit,x60
mvendorid\t: 0x710
marchid\t\t: 0x8000000058000001
mimpid\t\t: 0x1000000049772200
hart isa\t: rv64imafdcv_zicbom_zicboz_zicntr_zicond_zicsr_zifencei_zihintpause_zihpm_zfh_zvfh
"""
# A C908 under Linux 6.6.36: T-Head's ids and RVV 1.0
K230 = """\
processor\t: 0
hart\t\t: 0
isa\t\t: rv64imafdcv_zicbom_zicboz_zicntr_zicsr_zifencei_zihpm_zba_zbb_zbs_svpbmt
mmu\t\t: sv39
uarch\t\t: thead,c908
mvendorid\t: 0x5b7
marchid\t\t: 0x8000000009140d00
mimpid\t\t: 0x50000
"""
# Milk-V Mars; fastfetch-cli/fastfetch issue 1529
JH7110 = """\
processor       : 0
hart            : 2
isa             : rv64imafdc_zicntr_zicsr_zifencei_zihpm_zca_zcd_zba_zbb
mmu             : sv39
uarch           : sifive,u74-mc
mvendorid       : 0x489
marchid         : 0x8000000000000007
mimpid          : 0x4210427
hart isa        : rv64imafdc_zicntr_zicsr_zifencei_zihpm_zca_zcd_zba_zbb
"""
