// Rounding to Q4_K, Q5_K and Q6_K, sixteen groups of weights at a time, to the same bytes as ggml's own routines.
//
// The formats are ggml's (ggml/src/ggml-common.h); so are the sums that choose a group's scale (ggml/src/ggml-quants.c:
// quantize_row_q4_K_ref, quantize_row_q5_K_ref, quantize_row_q6_K_ref; with importance quantize_row_q4_K_impl and its like). ggml adds a group's terms one after the other, so that a
// processor that adds sixteen numbers at once does one. Here a vector holds one term of sixteen groups: each group's sum is still
// added in the same order, and every bit comes out as there. That needs -ffp-contract=off: a fused product and sum rounds once.
//
// Who calls it compares it with ggml first (toolkit/export/k_quants.py).

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define SUPER 256 // weights that share a float16 scale
#define MOST 32   // weights of the largest group

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINED static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

// Groups of one vector: weight i of all of them, and what they are rounded to.
typedef struct {
    floats x[MOST];
    floats level[MOST];
} groups;

INLINED floats chosen(ints which, floats yes, floats no) {
    return (floats)(((ints)yes & which) | ((ints)no & ~which));
}

INLINED floats absolute(floats v) {
    return (floats)((ints)v & 0x7fffffff);
}

INLINED int any(ints which) {
    uint64_t found[LANES / 2];
    memcpy(found, &which, sizeof found);
    return (found[0] | found[1] | found[2] | found[3] | found[4] | found[5] | found[6] | found[7]) != 0;
}

// To the nearest whole number, ties to even, within bounds: the last bits of a float of 2^23 and a half count in ones.
INLINED floats whole(floats v, int low, int high) {
    ints found = ((ints)(v + 12582912.f) & 0x007fffff) - 0x00400000;
    found = (found & (found > low)) | (low & ~(found > low));
    found = (found & (found < high)) | (high & ~(found < high));
    return __builtin_convertvector(found, floats);
}

static int whole_of(float value) {
    float moved = value + 12582912.f;
    int32_t bits;
    memcpy(&bits, &moved, 4);
    return (bits & 0x007fffff) - 0x00400000;
}

static uint16_t half_of(float value) {
    uint32_t bits, sign;
    memcpy(&bits, &value, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits >= 0x47800000) return sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00);
    if (bits >= 0x38800000) return sign | (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
    float small; // less than 2^-14: the last bit of a float between a half and one is worth as much as that of such a half float
    memcpy(&small, &bits, 4);
    small += 0.5f;
    memcpy(&bits, &small, 4);
    return sign | (bits - 0x3f000000);
}

static float float_of(uint16_t half) {
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    float size = exponent == 31 ? INFINITY : exponent ? ldexpf(1024 + mantissa, exponent - 25) : ldexpf(mantissa, -24);
    return half & 0x8000 ? -size : size;
}

// Groups that lie one after the other → vectors, of which each holds one weight of all.
INLINED void read(floats *to, const float *x, int size) {
    float turned[MOST][LANES];
    for (int lane = 0; lane < LANES; ++lane)
        for (int i = 0; i < size; ++i) turned[i][lane] = x[lane * size + i];
    memcpy(to, turned, sizeof(floats) * size);
}

// Levels as bytes, group after group.
INLINED void write(const groups *g, uint8_t *level, int size) {
    int32_t turned[LANES];
    for (int i = 0; i < size; ++i) {
        ints found = __builtin_convertvector(g->level[i], ints);
        memcpy(turned, &found, sizeof turned);
        for (int lane = 0; lane < LANES; ++lane) level[lane * size + i] = turned[lane];
    }
}

INLINED void keep(groups *g, ints which, const floats *level, int size) {
    for (int i = 0; i < size; ++i) g->level[i] = chosen(which, level[i], g->level[i]);
}

// What the errors of groups of 32 are weighed with: the group's root mean square and their own size.
INLINED void weigh_by_size(const groups *g, floats *weight) {
    floats squares = {0};
    for (int i = 0; i < 32; ++i) squares += g->x[i] * g->x[i];
    for (int lane = 0; lane < LANES; ++lane) squares[lane] = sqrtf(squares[lane] / 32);
    for (int i = 0; i < 32; ++i) weight[i] = squares + absolute(g->x[i]);
}

// The same with an importance for each: the root of twice the super-block's mean square and of their own.
INLINED void weigh_by_importance(const groups *g, const float *x, const float *importance, floats *weight) {
    floats squares;
    for (int block = 0; block < 2; ++block) {
        float sum = 0;
        for (int i = 0; i < SUPER; ++i) sum += x[block * SUPER + i] * x[block * SUPER + i];
        for (int lane = 0; lane < 8; ++lane) squares[8 * block + lane] = 2 * sum / SUPER;
    }
    read(weight, importance, 32);
    for (int i = 0; i < 32; ++i) {
        floats root = squares + g->x[i] * g->x[i];
        for (int lane = 0; lane < LANES; ++lane) root[lane] = sqrtf(root[lane]);
        weight[i] *= root;
    }
}

// Scale s and offset m >= 0 of groups of 32, so that x = s level - m, with levels from 0 to `top`: a first guess from the
// extremes, then the best of `steps` + 1 weighted least squares behind other roundings. Gives the sum of the weights.
INLINED floats with_offset(groups *g, const floats *weight, int top, float first, float further, int steps,
                           floats *scale, floats *offset) {
    floats level[32];
    floats low = g->x[0], high = g->x[0], sum_w = weight[0], sum_x = sum_w * g->x[0];
    for (int i = 1; i < 32; ++i) {
        low = chosen(g->x[i] < low, g->x[i], low);
        high = chosen(g->x[i] > high, g->x[i], high);
        sum_w += weight[i];
        sum_x += weight[i] * g->x[i];
    }
    low = chosen(low > 0, (floats){0}, low);
    const ints flat = high == low;

    floats inverse = (float)top / (high - low);
    floats s = 1 / inverse, m = low, error = {0};
    for (int i = 0; i < 32; ++i) {
        g->level[i] = whole(inverse * (g->x[i] - m), 0, top);
        floats off = s * g->level[i] + m - g->x[i];
        error += weight[i] * (off * off);
    }
    // Where a better one is found, the bottom that later roundings start from is the new offset, as in ggml.
    for (int step = 0; step <= steps; ++step) {
        floats sum_l = {0}, sum_l2 = {0}, sum_xl = {0};
        inverse = (first + further * step + (float)top) / (high - m);
        for (int i = 0; i < 32; ++i) {
            level[i] = whole(inverse * (g->x[i] - m), 0, top);
            floats wl = weight[i] * level[i];
            sum_l += wl;
            sum_l2 += wl * level[i];
            sum_xl += wl * g->x[i];
        }
        floats determinant = sum_w * sum_l2 - sum_l * sum_l;
        floats new_s = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        floats new_m = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        const ints above = new_m > 0;
        new_m = chosen(above, (floats){0}, new_m);
        new_s = chosen(above, sum_xl / sum_l2, new_s);
        floats new_error = {0};
        for (int i = 0; i < 32; ++i) {
            floats off = new_s * level[i] + new_m - g->x[i];
            new_error += weight[i] * (off * off);
        }
        const ints better = (determinant > 0) & (new_error < error) & ~flat;
        if (!any(better)) continue;
        keep(g, better, level, 32);
        error = chosen(better, new_error, error);
        s = chosen(better, new_s, s);
        m = chosen(better, new_m, m);
    }
    for (int i = 0; i < 32; ++i) g->level[i] = chosen(flat, (floats){0}, g->level[i]);
    *scale = chosen(flat, (floats){0}, s);
    *offset = -m;
    return sum_w;
}

// Scale of groups of 16, so that x = s level, with levels from -32 to 31: the best of 19 roundings.
INLINED void around_zero(groups *g, const floats *weight, floats *scale) {
    floats level[16], wx[16];
    floats largest = {0}, signed_largest = {0};
    for (int i = 0; i < 16; ++i) {
        floats size = absolute(g->x[i]);
        const ints larger = size > largest;
        largest = chosen(larger, size, largest);
        signed_largest = chosen(larger, g->x[i], signed_largest);
        wx[i] = weight[i] * g->x[i];
    }
    const ints nothing = largest < 1e-15f;
    floats s = {0}, best = {0};
    for (int step = 0; step <= 18; ++step) {
        // First the whole range, then -9 to 9 tenths beside it.
        int beside = step == 0 ? 0 : step <= 9 ? step - 10 : step - 9;
        floats inverse = step == 0 ? -32.f / signed_largest : -(32 + 0.1f * beside) / signed_largest;
        floats sum_xl = {0}, sum_l2 = {0};
        for (int i = 0; i < 16; ++i) {
            level[i] = whole(inverse * g->x[i], -32, 31);
            sum_xl += wx[i] * level[i];
            sum_l2 += weight[i] * level[i] * level[i];
        }
        if (step == 0) {
            for (int i = 0; i < 16; ++i) g->level[i] = level[i] + 32;
            s = chosen(sum_l2 != 0, sum_xl / sum_l2, (floats){0});
            best = s * sum_xl;
            continue;
        }
        const ints better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2);
        if (!any(better)) continue;
        for (int i = 0; i < 16; ++i) level[i] += 32;
        keep(g, better, level, 16);
        s = chosen(better, sum_xl / sum_l2, s);
        best = chosen(better, s * sum_xl, best);
    }
    for (int i = 0; i < 16; ++i) g->level[i] = chosen(nothing, (floats){0}, g->level[i]);
    *scale = chosen(nothing, (floats){0}, s);
}

// The 6 bits of eight scales and eight offsets in twelve bytes.
static void pack_six_bits(uint8_t *out, const uint8_t *scales, const uint8_t *offsets) {
    for (int j = 0; j < 4; ++j) {
        out[j] = scales[j] | (scales[j + 4] >> 4) << 6;
        out[j + 4] = offsets[j] | (offsets[j + 4] >> 4) << 6;
        out[j + 8] = (scales[j + 4] & 15) | (offsets[j + 4] & 15) << 4;
    }
}

static void unpack_six_bits(const uint8_t *from, uint8_t *scales, uint8_t *offsets) {
    for (int j = 0; j < 4; ++j) {
        scales[j] = from[j] & 63;
        offsets[j] = from[j + 4] & 63;
        scales[j + 4] = (from[j + 8] & 15) | (from[j] >> 6) << 4;
        offsets[j + 4] = from[j + 8] >> 4 | (from[j + 4] >> 6) << 4;
    }
}

static uint8_t six_bits(float value) {
    uint8_t found = whole_of(value);
    return found < 63 ? found : 63;
}

// Eight numbers as whole ones from 0 to 63, and their scale: the best of nine by weighed error, then each moved while that helps.
// Where few weights count, one may come out below zero; ggml keeps it as a byte, from 255 downwards, and so is it here.
static float scale_of_eight(const float *x, const float *weight, uint8_t *level) {
    float most = 0;
    for (int i = 0; i < 8; ++i) most = most > x[i] ? most : x[i];
    memset(level, 0, 8);
    if (most < 1e-15f) return 0;
    float best = 0, least = 0;
    for (int step = 0; step <= 8; ++step) {
        // First the whole range, then -4 to 4 tenths beside it.
        int beside = step == 0 ? 0 : step <= 4 ? step - 5 : step - 4;
        float inverse = step == 0 ? 63 / most : (0.1f * beside + 63) / most, s = 1 / inverse, error = 0;
        for (int i = 0; i < 8; ++i) {
            int l = whole_of(inverse * x[i]);
            l = step == 0 ? (uint8_t)l : l < 63 ? l : 63;
            float off = x[i] - s * l;
            error += weight[i] * off * off;
        }
        if (step == 0 || error < least) {
            least = error;
            best = inverse;
        }
    }
    float sum_xl = 0, sum_l2 = 0;
    for (int i = 0; i < 8; ++i) {
        int l = whole_of(best * x[i]);
        level[i] = l = l < 63 ? l : 63;
        sum_xl += weight[i] * x[i] * l;
        sum_l2 += weight[i] * l * l;
    }
    for (int round = 0, moved = 1; round < 5 && moved; ++round) {
        moved = 0;
        for (int i = 0; i < 8; ++i) {
            float without_xl = sum_xl - weight[i] * x[i] * level[i], without_l2 = sum_l2 - weight[i] * level[i] * level[i];
            if (!(without_xl > 0 && without_l2 > 0)) continue;
            int l = whole_of(x[i] * without_l2 / without_xl);
            l = l < 63 ? l : 63;
            if (l == level[i]) continue;
            without_xl += weight[i] * x[i] * l;
            without_l2 += weight[i] * l * l;
            if (without_xl * without_xl * sum_l2 > sum_xl * sum_xl * without_l2) {
                level[i] = l;
                sum_xl = without_xl;
                sum_l2 = without_l2;
                moved = 1;
            }
        }
    }
    return sum_l2 > 0 ? sum_xl / sum_l2 : 0;
}

// The same by the largest of them alone.
static float scale_by_largest(const float *x, uint8_t *level) {
    float most = 0;
    for (int i = 0; i < 8; ++i) most = x[i] > most ? x[i] : most;
    float inverse = most > 0 ? 63.f / most : 0.f;
    for (int i = 0; i < 8; ++i) level[i] = six_bits(inverse * x[i]);
    return most / 63.f;
}

INLINED int bytes_of_k(int bits) {
    return 16 + SUPER * bits / 8;
}

// Two super-blocks of Q4_K or Q5_K: float16 scale and offset, twelve bytes of six bits, the fifth bits (Q5_K), four bits.
// `importance`: of each of their weights; null: errors are weighed by size.
INLINED void two_of_k(const float *x, uint8_t *out, int blocks, int bits, const float *importance) {
    const int top = (1 << bits) - 1, size = bytes_of_k(bits);
    groups g;
    floats scale, offset, weight[32], weights, s = {0}, m = {0};
    read(g.x, x, 32);
    if (importance) {
        weigh_by_importance(&g, x, importance, weight);
        weights = with_offset(&g, weight, top, -0.9f, 0.05f, 36, &scale, &offset);
    } else {
        weigh_by_size(&g, weight);
        weights = with_offset(&g, weight, top, bits == 4 ? -1.f : -0.5f, 0.1f, bits == 4 ? 20 : 15, &scale, &offset);
    }
    for (int block = 0; block < blocks; ++block) {
        uint8_t scales[8], offsets[8], *to = out + block * size;
        float own_scale[8], own_offset[8], own_weight[8], of_scales, of_offsets;
        for (int j = 0; j < 8; ++j) {
            own_scale[j] = scale[8 * block + j];
            own_offset[j] = offset[8 * block + j];
            own_weight[j] = weights[8 * block + j];
        }
        if (importance) {
            of_scales = scale_of_eight(own_scale, own_weight, scales);
            of_offsets = scale_of_eight(own_offset, own_weight, offsets);
        } else {
            of_scales = scale_by_largest(own_scale, scales);
            of_offsets = scale_by_largest(own_offset, offsets);
        }
        uint16_t d = half_of(of_scales), dmin = half_of(of_offsets);
        memcpy(to, &d, 2);
        memcpy(to + 2, &dmin, 2);
        for (int j = 0; bits == 5 && j < 8; ++j) {
            scales[j] = scales[j] < 63 ? scales[j] : 63;
            offsets[j] = offsets[j] < 63 ? offsets[j] : 63;
        }
        pack_six_bits(to + 4, scales, offsets);
        unpack_six_bits(to + 4, scales, offsets);
        of_scales = float_of(d);
        of_offsets = float_of(dmin);
        for (int j = 0; j < 8; ++j) {
            s[8 * block + j] = of_scales * scales[j];
            m[8 * block + j] = of_offsets * offsets[j];
        }
    }
    const ints some = s != 0;
    for (int i = 0; i < 32; ++i) g.level[i] = chosen(some, whole((g.x[i] + m) / s, 0, top), g.level[i]);
    uint8_t level[2 * SUPER];
    write(&g, level, 32);
    for (int block = 0; block < blocks; ++block) {
        uint8_t *to = out + block * size + 16, *fifth = to;
        if (bits == 5) {
            memset(fifth, 0, 32);
            to += 32;
        }
        for (int pair = 0; pair < 4; ++pair)
            for (int i = 0; i < 32; ++i) {
                const uint8_t *l = level + block * SUPER + pair * 64 + i;
                to[32 * pair + i] = (l[0] & 15) | (l[32] & 15) << 4;
                if (bits == 5) fifth[i] |= (l[0] >> 4) << 2 * pair | (l[32] >> 4) << (2 * pair + 1);
            }
    }
}

// A super-block of Q6_K: four bits, two bits, sixteen scales of eight bits, float16 scale.
INLINED void one_of_q6_k(const float *x, uint8_t *out, const float *importance) {
    groups g;
    floats scale, weight[16], s;
    read(g.x, x, 16);
    if (importance) read(weight, importance, 16);
    else
        for (int i = 0; i < 16; ++i) weight[i] = g.x[i] * g.x[i];
    around_zero(&g, weight, &scale);
    float most = 0, signed_most = 0;
    for (int j = 0; j < 16; ++j)
        if (fabsf(scale[j]) > most) {
            most = fabsf(scale[j]);
            signed_most = scale[j];
        }
    if (most < 1e-15f) {
        memset(out, 0, 210);
        return;
    }
    float inverse = -128.f / signed_most;
    uint16_t d = half_of(1 / inverse);
    const float of_scales = float_of(d);
    for (int j = 0; j < 16; ++j) {
        int found = whole_of(inverse * scale[j]);
        int8_t kept = found < 127 ? found : 127;
        memcpy(out + 192 + j, &kept, 1);
        s[j] = of_scales * kept;
    }
    memcpy(out + 208, &d, 2);
    const ints some = s != 0;
    for (int i = 0; i < 16; ++i) g.level[i] = chosen(some, whole(g.x[i] / s, -32, 31) + 32, g.level[i]);
    uint8_t level[SUPER];
    write(&g, level, 16);
    for (int half = 0; half < 2; ++half)
        for (int i = 0; i < 32; ++i) {
            const uint8_t *l = level + 128 * half + i;
            out[64 * half + i] = (l[0] & 15) | (l[64] & 15) << 4;
            out[64 * half + 32 + i] = (l[32] & 15) | (l[96] & 15) << 4;
            out[128 + 32 * half + i] = l[0] >> 4 | l[32] >> 4 << 2 | l[64] >> 4 << 4 | l[96] >> 4 << 6;
        }
}

// `super` super-blocks of float32 without NaN or infinity, rounded to `out`. `importance`: of each weight of a row, which has
// `a_row` super-blocks; null: none.

INLINED void all_of_k(const float *x, uint8_t *out, int64_t super, int bits, const float *importance, int64_t a_row) {
    float last[2 * SUPER] = {0}, own[2 * SUPER]; // an odd one is rounded beside zeros
    for (int64_t i = 0; i < super; i += 2) {
        const float *from = x + i * SUPER;
        const int blocks = i + 1 < super ? 2 : 1;
        if (blocks == 1) from = memcpy(last, from, SUPER * sizeof(float));
        for (int block = 0; importance && block < 2; ++block)
            memcpy(own + block * SUPER, importance + (i + block) % a_row * SUPER, SUPER * sizeof(float));
        two_of_k(from, out + i * bytes_of_k(bits), blocks, bits, importance ? own : 0);
    }
}

FOR_EACH_PROCESSOR void round_to_q4_k(const float *x, uint8_t *out, int64_t super, const float *importance, int64_t a_row) {
    if (importance) all_of_k(x, out, super, 4, importance, a_row);
    else all_of_k(x, out, super, 4, 0, 0);
}

FOR_EACH_PROCESSOR void round_to_q5_k(const float *x, uint8_t *out, int64_t super, const float *importance, int64_t a_row) {
    if (importance) all_of_k(x, out, super, 5, importance, a_row);
    else all_of_k(x, out, super, 5, 0, 0);
}

FOR_EACH_PROCESSOR void round_to_q6_k(const float *x, uint8_t *out, int64_t super, const float *importance, int64_t a_row) {
    for (int64_t i = 0; i < super; ++i)
        one_of_q6_k(x + i * SUPER, out + i * 210, importance ? importance + i % a_row * SUPER : 0);
}
