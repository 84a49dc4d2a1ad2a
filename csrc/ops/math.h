// Vector functions that the ISA folders need not write.
#pragma once

#include <initializer_list>

#include "isa/simd.h"

namespace rillm {

// e^x to about 2 ulp, between e^-87.9 and e^88: never infinity.
inline Simd::F exp(Simd::F x) {
  x = Simd::max(x, Simd::set1(-87.9f));
  const Simd::F negative = Simd::max(Simd::sub(Simd::zero(), x), Simd::set1(-88.0f));
  x = Simd::sub(Simd::zero(), negative);
  // x = n ln2 + r with |r| <= ln2 / 2; ln2 in two parts keeps r exact (Cody and Waite).
  const Simd::I n = Simd::round(Simd::mul(x, Simd::set1(0x1.715476p+0f)));
  const Simd::F nf = Simd::to_float(n);
  Simd::F r = Simd::fma(nf, Simd::set1(-0x1.62e400p-1f), x);
  r = Simd::fma(nf, Simd::set1(-0x1.7f7d1cp-20f), r);
  // Taylor to r^7 / 7!: the next term is below 6e-9 for |r| <= 0.347.
  Simd::F sum = Simd::set1(1.0f / 5040);
  for (const float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    sum = Simd::fma(sum, r, Simd::set1(factor));
  }
  return Simd::scale2(sum, n);
}

// 2^x for x <= 0, to about 1 ulp. exp2(0) is exactly 1 and exp2(x) exactly 0 from -127 on:
// attention relies on both, so that a masked key changes nothing, bit for bit.
inline Simd::F exp2(Simd::F x) {
  x = Simd::max(x, Simd::set1(-127.0f));
  const Simd::I n = Simd::round(x);
  const Simd::F r = Simd::sub(x, Simd::to_float(n));
  // The best polynomial of its degree with 1 at 0 for |r| <= 0.5: 9.2e-8 off at most.
  Simd::F sum = Simd::set1(0x1.5bba14p-10f);
  for (const float factor :
       {0x1.3cea88p-7f, 0x1.c6b752p-5f, 0x1.ebf9bcp-3f, 0x1.62e42ap-1f, 1.0f}) {
    sum = Simd::fma(sum, r, Simd::set1(factor));
  }
  return Simd::scale2(sum, n);
}

}  // namespace rillm
