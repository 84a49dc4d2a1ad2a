// How the K-quants spread the bits of 256 codes over planes. `place` is the lowest bit of a code
// that a plane holds; add_* functions OR bits into codes that the caller has set or cleared.
#pragma once

#include "formats/blocks.h"

namespace rillm {

// 4 bits in 128 bytes. A run of bytes holds as many codes in its low halves, and the codes that
// follow these in its high halves. kRun is 32 (Q4_K, Q5_K) or 64 (Q6_K).
template <int kRun>
void unpack_low_bits(const uint8_t* bytes, uint8_t* codes) {
  for (int run = 0; run < 128; run += kRun, codes += 2 * kRun) {
    for (int i = 0; i < kRun; i += 8) {
      const uint64_t word = load_word(bytes + run + i);
      store_word(codes + i, word & in_every_byte(15));
      store_word(codes + kRun + i, word >> 4 & in_every_byte(15));
    }
  }
}
template <int kRun>
void pack_low_bits(const uint8_t* codes, uint8_t* bytes) {
  for (int run = 0; run < 128; run += kRun, codes += 2 * kRun) {
    for (int i = 0; i < kRun; i += 8) {
      const uint64_t low = load_word(codes + i) & in_every_byte(15);
      store_word(bytes + run + i, low | (load_word(codes + kRun + i) & in_every_byte(15)) << 4);
    }
  }
}

// A plane of kBits bits: 32 bytes hold 256 / kBits codes, run s of 32 codes in their bits kBits *
// s.
//   2 bits in 64 bytes: Q2_K, Q3_K, Q6_K;   1 bit in 32 bytes: Q3_K, Q5_K
template <int kBits>
void add_bits(const uint8_t* bytes, int place, uint8_t* codes) {
  for (int part = 0; part < kBits; ++part, bytes += 32) {
    for (int run = 0; run < 8 / kBits; ++run, codes += 32) {
      for (int i = 0; i < 32; i += 8) {
        const uint64_t bits =
            load_word(bytes + i) >> (kBits * run) & in_every_byte((1 << kBits) - 1);
        store_word(codes + i, load_word(codes + i) | bits << place);
      }
    }
  }
}
template <int kBits>
void pack_bits(const uint8_t* codes, int place, uint8_t* bytes) {
  for (int part = 0; part < kBits; ++part, bytes += 32) {
    std::memset(bytes, 0, 32);
    for (int run = 0; run < 8 / kBits; ++run, codes += 32) {
      for (int i = 0; i < 32; i += 8) {
        const uint64_t bits = load_word(codes + i) >> place & in_every_byte((1 << kBits) - 1);
        store_word(bytes + i, load_word(bytes + i) | bits << (kBits * run));
      }
    }
  }
}

}  // namespace rillm
