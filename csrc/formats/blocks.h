// Helpers for reading and writing the bytes of GGUF blocks. Little endian, unaligned.
#pragma once

#include <cstdint>
#include <cstring>

#include "float16.h"
#include "formats/format.h"

namespace rillm {

inline constexpr int kSuperBlock = 256;  // weights in a block of a K-quant

inline uint16_t load_u16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
inline uint32_t load_u32(const uint8_t* p) {
  return load_u16(p) | static_cast<uint32_t>(load_u16(p + 2)) << 16;
}
inline void store_u16(uint8_t* p, uint16_t value) {
  p[0] = static_cast<uint8_t>(value);
  p[1] = static_cast<uint8_t>(value >> 8);
}
inline void store_u32(uint8_t* p, uint32_t value) {
  store_u16(p, static_cast<uint16_t>(value));
  store_u16(p + 2, static_cast<uint16_t>(value >> 16));
}
inline float load_half(const uint8_t* p) { return half_to_float(load_u16(p)); }
inline void store_half(uint8_t* p, float value) { store_u16(p, float_to_half(value)); }

// Codes are moved eight at a time, in the bytes of a word: fast without vectors, and compilers turn
// the loops into vectors of any width.
inline uint64_t load_word(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}
inline void store_word(uint8_t* p, uint64_t word) { std::memcpy(p, &word, sizeof word); }
inline constexpr uint64_t in_every_byte(uint64_t byte) { return byte * 0x0101010101010101u; }

// 32 codes of 4 bits in 16 bytes: code i in the low half of byte i, code i + 16 in the high half.
// Their fifth bits, where there are some: bit i of a little-endian 32-bit word is of code i.
inline uint64_t fifth_bits_of_eight(uint32_t word) {
  const uint64_t bits = in_every_byte(word & 255) & 0x8040201008040201u;  // bit b of byte b
  return (bits + in_every_byte(127)) >> 3 & in_every_byte(16);            // any bit gives the fifth
}
inline void unpack_nibbles(const uint8_t* bytes, uint8_t* codes, uint32_t fifth_bits = 0) {
  for (int i = 0; i < 16; i += 8) {
    const uint64_t word = load_word(bytes + i);
    const uint64_t low = word & in_every_byte(15), high = word >> 4 & in_every_byte(15);
    store_word(codes + i, low | fifth_bits_of_eight(fifth_bits >> i));
    store_word(codes + i + 16, high | fifth_bits_of_eight(fifth_bits >> (i + 16)));
  }
}
inline void pack_nibbles(const uint8_t* codes, uint8_t* bytes) {
  for (int i = 0; i < 16; i += 8) {
    const uint64_t low = load_word(codes + i) & in_every_byte(15);
    store_word(bytes + i, low | (load_word(codes + i + 16) & in_every_byte(15)) << 4);
  }
}
inline uint32_t pack_fifth_bits(const uint8_t* codes) {
  uint32_t word = 0;
  for (int i = 0; i < 32; i += 8) {
    const uint64_t bits = load_word(codes + i) >> 4 & in_every_byte(1);
    word |= static_cast<uint32_t>(bits * 0x0102040810204080u >> 56) << i;  // byte b to bit b
  }
  return word;
}

}  // namespace rillm
