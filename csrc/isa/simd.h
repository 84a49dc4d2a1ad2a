// The vector primitives that an ISA provides, as `rillm::Simd` and `rillm::Tile`. CMake picks the
// header per variant.
//
// Everything above this folder is written once against these names:
//
// Simd: elementwise float vectors.
//
//   kLanes   float lanes of a vector, at most 32 (rows are cut into 32s)
//   kScores  vectors of scores that attention keeps in registers
//   F, I     kLanes float32 / int32
//
//   F: zero set1 load store add sub mul div fma(a,b,c)=a*b+c max abs load_half set1_half store_half
//   load_bfloat16
//      round(F)->I scale2(F,I)->F (a * 2^i, of the same sign) to_float(I)->F
//      reduce_add reduce_max
//   I: istore iload_i8
//   set1 may give a scalar that becomes an F only where an operation has no form for it.
//
// Tile: the weight rows that are multiplied together. The same as Simd where a lane is a row.
//
//   kRows    rows of a tile
//   kGroup   columns of a unit, the vector that codes are unpacked in
//   kColumnMajor     a unit is stored column after column instead of row after row
//   kByteShifts      wshl and wshr keep bits in their bytes (else: mask afterwards)
//   kMaxTokens       tokens that a quantised matmul takes together (a power of two)
//   kMaxFloatTokens  tokens that a float matmul takes together
//   kRegisterTokens  tokens whose sums stay in registers; where kMaxTokens is more,
//                    block_kernel.h multiplies the larger groups and pair_kernel.h these
//   kByteOffset      added to int8 weights when they are unpacked (128 where dot wants unsigned
//                    ones)
//   F        kRows float32: zero set1 load store sub mul fma load_half load_bfloat16
//   I        kRows scale codes (integers of 8 bits or more):
//            iset1 isub iload_u8 iload_i8 iand(I,int) ior ishl<n> ishr<n> to_float(I)->F
//   W        one unit, kRows * kGroup bytes of unsigned codes:
//            wload wand(W,mask) wor wshl<n> wshr<n>
//            wint8 (stored int8 -> code + kByteOffset), wlut(W, table of 16 int8, + kByteOffset)
//
// and what multiplies, in one of two forms:
//
//   a group of columns at once (ops/group_kernel.h):
//     dot<kMaxCode>(I sum, const W (&w)[n], const int8_t* x): sum[row] += sum over units and bytes
//        of code * x. kMaxCode bounds the codes (255: an int8 byte), so an ISA may sum in int16
//        first
//   the same for two tiles and one or two tokens (ops/pair_kernel.h), where RILLM_BLOCK_TILES is
//   defined:
//     dot_units<kMaxCode, n>(I (&sum)[tokens][tiles], const int8_t* x, stride of x, code(unit,
//        tile) -> W): the same sums as dot
//     unpack_k32(bytes, to): the scales and mins of Scales::K32Min, one byte each
//   the same for groups of more than kRegisterTokens tokens, with unpacked codes in the first-level
//   cache (ops/block_kernel.h), where RILLM_BLOCK_TILES is defined:
//     split<kMaxCode>(W, W* to [kParts<kMaxCode>]): what dot_block multiplies;
//     kBlockOffset<kMaxCode>: what it adds to a code
//     dot_block<kMaxCode, n>(I (&sum)[tokens][tiles], const W* [n][tiles][kParts], const int8_t* x,
//        stride of x): the same sums as dot; tokens = kBlockTokens<kMaxCode, n>
//   the same for 16 tokens, where RILLM_MATRIX_UNIT is defined: MatrixUnit (ops/matrix_kernel.h) of
//   registers that are matrices
//     kTokens, and kRows of Tile, are the rows and columns of a product; kSums, kInputs registers
//     Use<columns>: while it lives, products are of 16 or 32 columns
//     load_input<input>(q of kTokens tokens, stride); multiply<sum, input>(codes): sum = product of
//        units as store_codes(bytes, W, offset) left them, signed; store<sum>(int32 [kTokens] of
//        kRows, stride); add_product<sum, input, place>(): += a product of what is loaded
//     to_float(kRows int32 in memory)->F
//   a column at a time (ops/column_kernel.h), where RILLM_COLUMN_TILES is defined:
//     S, T     kRows int16 sums (they wrap) / int32 sums, in kWides vectors Wide
//     codes are signed or below 128; activations are q[column], of the next token q[32 + column]
//     Run(q) Run(q, start): one token's sums of a run of columns; sum()->S
//     add_units<first, sets>(Run, q, const W (&w)[n]): += the units' codes * q[first] .., or =;
//        n <= kMaxUnits
//     add_strip<n, runs, has_min>(bytes, q, d, factors, constants, y): a strip of wstored units, in
//        runs of 32 or 16 columns, for n tokens: y[token] += d[token] * (factors * (sum of codes *
//        q) + constants * (sum of q))
//     add_runs<n>(bytes, q, d, first, second, y): the same of two int16 scales, for 16 columns
//        each; a unit of bytes is at pair_place(unit)
//     add_bytes(n, bytes, q, d, factors, y): y[token] += d[token] * factors * (sum of 32 columns of
//        int8 * q), for n tokens
//     add_product<i, sets>(Wide, S factor, const S (&sums)[1 or 2]): in the rows of Wide i,
//        += factor * (sum of the sums), or =; to_int16(I)->S
//     P        one of the kParts parts of an F: pmul pfma(P, float or P, P) pfnma(a,b,c) = c - a*b
//        pload(P in memory) padd(P in memory, a, b): += a * b
//     sum_packed<codes, first>(start, q, strip)->S: start + a run from packed codes, where
//        packed_columns(codes) is not 0; kWholeQ6: add_q6_block(block, activations, F) for one
//        token
//     ScaleCodes   kRows scale codes, set_scales(ScaleCodes or S, I)
//     to_float<part>(S or T or ScaleCodes) sum_to_float<part>(S, S)
//     products_to_float<part>(S, int, S, int)
//     kFloatsAtOnce: to_floats(S, P (&)[kParts]) gives all parts cheaper than one by one
//     wstore(bytes, W) wsub(W, code) wsra<n> (of int8) wmacc(a, x, b) = a + x * b
//     of Simd: pack16(int32 [16], int8 [16]): stores their low bytes, gives their sum
//
// load/store take any alignment. Arithmetic is IEEE float32 and the same in every lane, so which
// lane or tile a row is in never changes its bits. fma is fused where the ISA has it.
#pragma once

#include <cstdint>

#include RILLM_SIMD_HEADER
