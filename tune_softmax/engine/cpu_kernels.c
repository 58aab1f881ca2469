/* One epoch of softmax regression for P trials at once, on one CPU core.
 *
 * native.py calls this. Column c * P + p of the weights is class c of trial p, and columns past C * P
 * are zero and stay so. They stand in sides, each a matrix (K, length) of some panels of PANEL columns,
 * K = D + 1 with the bias last. The gradient's product keeps its sums in registers, so that momentum,
 * penalties and the step are applied there: weights and velocity are read and written once a
 * micro-batch, and no pass over them is left.
 *
 * A product need not add what a pixel of zero is multiplied by. Where many are zero, words of 64 bits
 * say which of 64 pixels an image lights, or which of 64 images light a pixel, and products run over
 * their ones, with a side's rows of a word in the first-level cache. A micro-batch's images stay the
 * bytes that they are, and a table says what each is. Sums keep their order, so the bits of the result
 * are the same as those of the products that leave nothing out: these have a side for every panel, and
 * scale a micro-batch once into a buffer that stays in the second-level cache.
 *
 * The body is compiled twice, for float and for double: this file includes itself.
 */
#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <string.h>

#define PANEL 16
#define MAX_ROWS 64 /* of a micro-batch's slice: 64 rows of 785 floats are 200 KB */
#define AHEAD 4     /* images from now is the one to fetch: memory answers by then */
#define LINE_BYTES 64
#define NARROW 16   /* fewer trials than this share the softmax's loops with their slice's rows */
#define WORD 64     /* bits of a word; MAX_ROWS is no more */
#define NUM_BYTES 256

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define NUM_SUMS 24 /* vectors of running sums that fit into the registers */
#define MAX_WIDTH 8    /* vectors of the only side: 64 rows of it fit into the first-level cache */
#define SHARED_WIDTH 8 /* of one of several: what they read and write in turn fits as well */
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define NUM_SUMS 12
#define MAX_WIDTH 14
#define SHARED_WIDTH 10
#else
#define VECTOR_BYTES 16
#define NUM_SUMS 12
#define MAX_WIDTH 14
#define SHARED_WIDTH 14
#endif

#define INLINE static inline __attribute__((always_inline))

/* Keep from the compiler where a vector comes from. */
#ifdef __SSE__
#define OPAQUE(vector) __asm__("" : "+x"(vector))
#else
#define OPAQUE(vector) __asm__("" : "+m"(vector))
#endif

/* Keep from the compiler what an address is the sum of, or it adds it up anew for each vector there. */
#define OPAQUE_ADDRESS(number) __asm__("" : "+r"(number))

/* Arrays of vectors stay in registers only where loops over them are unrolled, however long that gets. */
#define UNROLL _Pragma("GCC unroll 14")

/* What an epoch of one group needs; native.py holds the same structure. */
#define EPOCH_FIELDS(real)                                                                    \
    const uint8_t *pixels; /* (num_images, D); NULL where there are inputs */                 \
    const real *inputs;    /* (num_images, K) with the ones, in place of pixels */            \
    real pixel_max;        /* the pixel that becomes 1 */                                     \
    const int64_t *labels; /* (num_images,) */                                                \
    const int64_t *order;  /* (num_images,), which image comes when; NULL as they lie */      \
    int64_t num_images, num_features, num_classes, num_trials, num_columns;                   \
    real *weights, *velocity; /* (K, N), in sides */                                          \
    int64_t num_rows;         /* of a micro-batch */                                          \
    int64_t skips_zeros;      /* whether products leave zeros out; only of pixels */          \
    /* Tables of a row a micro-batch and a column a trial; a stride of 0 repeats one row. */  \
    const real *loss_weights, *momentum, *weight_decay, *l1, *rates;                          \
    int64_t momentum_stride, weight_decay_stride, l1_stride;                                  \
    real *scratch; /* see scratch_size */                                                     \
    double *loss;         /* (P,) sums of cross-entropy, added to */                          \
    int64_t *num_correct; /* (P,) */

/* Take numbers too small for full precision as zero while an epoch lasts: weights of pixels that are
 * always zero decay through them, and each such number costs a hundred others. */
INLINE unsigned flush_denormals(void) {
#ifdef __SSE__
    const unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040); /* flush to zero, and denormals are zeros */
    return before;
#else
    return 0;
#endif
}

INLINE void restore_denormals(unsigned before) {
#ifdef __SSE__
    __builtin_ia32_ldmxcsr(before);
#else
    (void)before;
#endif
}

/* Write a permutation of 0 to num - 1: Fisher and Yates's, as torch.randperm draws it. */
void shuffle(int64_t *order, const uint32_t *random, int64_t num) {
    for (int64_t i = 0; i < num; i++) order[i] = i;
    for (int64_t i = 0; i + 1 < num; i++) {
        const int64_t other = i + random[i] % (num - i), swapped = order[i];
        order[i] = order[other];
        order[other] = swapped;
    }
}

/* Return a word whose bit i says whether byte i is not zero, of at most 64. */
INLINE uint64_t lit_bytes(const uint8_t *pixels, int64_t num) {
    uint64_t lit = 0;
    int64_t i = 0;
#ifdef __SSE2__
    typedef char bytes __attribute__((vector_size(16), aligned(1)));
    for (; i + 16 <= num; i += 16) {
        const bytes is_lit = *(const bytes *)(pixels + i) != 0;
        lit |= (uint64_t)__builtin_ia32_pmovmskb128(is_lit) << i;
    }
#endif
    for (; i < num; i++) lit |= (uint64_t)(pixels[i] != 0) << i;
    return lit;
}

/* Turn 64 words about: bit j of word i becomes bit i of word j (Warren 2013, section 7-3). */
INLINE void turn(uint64_t *restrict words) {
#define SWAP(distance, mask)                                                                  \
    for (int64_t first = 0; first < WORD; first += 2 * (distance))                            \
        for (int64_t i = first; i < first + (distance); i++) {                                \
            const uint64_t moved =                                                            \
                ((words[i] >> (distance)) ^ words[i + (distance)]) & UINT64_C(mask);          \
            words[i] ^= moved << (distance);                                                  \
            words[i + (distance)] ^= moved;                                                   \
        }
    SWAP(32, 0x00000000ffffffff)
    SWAP(16, 0x0000ffff0000ffff)
    SWAP(8, 0x00ff00ff00ff00ff)
    SWAP(4, 0x0f0f0f0f0f0f0f0f)
    SWAP(2, 0x3333333333333333)
    SWAP(1, 0x5555555555555555)
#undef SWAP
}

/* Return the words of an image's pixels and of the one behind them. */
INLINE int64_t num_words(int64_t num_features) { return num_features / WORD + 1; }

/* Round to the nearest that bfloat16 holds, ties to even. */
INLINE float round_to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
    float rounded;
    memcpy(&rounded, &bits, sizeof rounded);
    return x == x ? rounded : x;
}

/* Which penalties some weights have: biases have none, and few others L1. */
typedef enum { NONE, DECAY, DECAY_AND_L1 } Penalties;

#define REAL float
#define NAME(name) name##_float32
#define EXP vector_exp_float32
#define FMA __builtin_fmaf
#include "cpu_kernels.c"
#undef REAL
#undef NAME
#undef EXP
#undef FMA

#define REAL double
#define IS_DOUBLE
#define NAME(name) name##_float64
#define EXP vector_exp_float64
#define FMA __builtin_fma
#include "cpu_kernels.c"
#undef REAL
#undef NAME
#undef EXP
#undef FMA
#undef IS_DOUBLE

#else /* the body */

#define LANES ((int64_t)(VECTOR_BYTES / sizeof(REAL)))
#define NUM_VECTORS ((int64_t)(PANEL / LANES)) /* of a panel's row */
#define HALF (NUM_VECTORS > 1 ? NUM_VECTORS / 2 : 1)
#define BLOCK(vectors) (NUM_SUMS > (vectors) ? NUM_SUMS / (vectors) : 1) /* rows of sums */
#define MAX_SUMS (NUM_SUMS > NUM_VECTORS ? NUM_SUMS : NUM_VECTORS)
#define PANELS(width) /* of a side */ ((width) > NUM_VECTORS ? (width) / NUM_VECTORS : 1)

typedef REAL NAME(vector) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL))));
#define VECTOR NAME(vector)

typedef struct {
    EPOCH_FIELDS(REAL)
} NAME(Epoch);

INLINE VECTOR NAME(load)(const REAL *from) { return *(const VECTOR *)from; }
INLINE void NAME(store)(REAL *to, VECTOR value) { *(VECTOR *)to = value; }

INLINE int64_t NAME(row_stride)(int64_t num_features) {
    return (num_features + 1 + PANEL - 1) / PANEL * PANEL;
}

/* Of N columns' logits, with room behind a row for a vector more. An odd number of panels, for rows a
 * power of two apart would have few places in the cache to share. */
INLINE int64_t NAME(z_stride)(int64_t N) { return (N / PANEL + 1) / 2 * 2 * PANEL + PANEL; }

/* Where the parts of the scratch space are. */
typedef struct {
    uint64_t *lit;      /* (words, WORD), which pixels an image lights; turned, who lights a pixel */
    uint8_t *bytes;     /* (words, MAX_ROWS, WORD), the slice's images as they are */
    REAL *of_byte;      /* (NUM_BYTES,), what they mean */
    REAL *x;            /* (MAX_ROWS, row_stride), or the images, scaled */
    REAL *z;            /* (MAX_ROWS, z_stride), their logits, then their residuals */
    REAL *coefficients; /* (4, N) */
    double *tally;      /* (3, P) */
    int64_t lanes;      /* of the softmax: trials, or trials with rows; with room for a vector more */
    REAL *of_lane;      /* (4, lanes) */
    REAL *by_class;     /* (C, lanes), where lanes are not as they lie in z */
} NAME(Scratch);

/* Return the reals of a scratch space, and say where its parts are. */
INLINE int64_t NAME(divide)(REAL *from, int64_t D, int64_t C, int64_t P, int64_t N,
                            NAME(Scratch) * parts) {
    /* Numbers are such that every part begins where a line of the cache does, as the space does. */
#define WHOLE_LINES(num) (((num) + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES)
    const int64_t lanes = WHOLE_LINES((P < NARROW ? MAX_ROWS * P : P) + LANES);
    parts->lit = (uint64_t *)from;
    parts->bytes = (uint8_t *)(parts->lit + num_words(D) * WORD);
    parts->tally = (double *)(parts->bytes + MAX_ROWS * num_words(D) * WORD);
    parts->of_byte = (REAL *)(parts->tally + WHOLE_LINES(3 * P));
    parts->x = parts->of_byte + NUM_BYTES;
    parts->z = parts->x + MAX_ROWS * NAME(row_stride)(D);
    parts->coefficients = parts->z + MAX_ROWS * NAME(z_stride)(N);
    parts->lanes = lanes;
    parts->of_lane = parts->coefficients + 4 * N;
    parts->by_class = parts->of_lane + 4 * lanes;
    return parts->by_class + (P < NARROW ? C * lanes : 0) - from;
#undef WHOLE_LINES
}

/* A pixel over the largest, rounded as a division rounds it, but in a third of its time: what the
 * product by the inverse lacks is exact in a fused multiply-add (Markstein 1990, theorem 7). */
INLINE REAL NAME(quotient)(uint8_t pixel, REAL pixel_max, REAL inverse) {
#ifdef __FMA__
    const REAL first = (REAL)pixel * inverse;
    return FMA(FMA(-first, pixel_max, (REAL)pixel), inverse, first);
#else
    (void)inverse;
    return (REAL)pixel / pixel_max;
#endif
}

/* Say what each byte means, where images stay bytes. */
static void NAME(note_bytes)(const NAME(Epoch) * e, const NAME(Scratch) * s) {
    if (!e->skips_zeros) return;
    const REAL inverse = 1 / e->pixel_max;
    for (int64_t i = 0; i < NUM_BYTES; i++)
        s->of_byte[i] = NAME(quotient)((uint8_t)i, e->pixel_max, inverse);
}

/* Copy image b's bytes, put the largest pixel, a one, behind them, and say which are lit. */
static void NAME(copy_bytes)(const NAME(Epoch) * e, const uint8_t *image, int64_t b,
                             const NAME(Scratch) * s) {
    const int64_t D = e->num_features, whole = D / WORD;
    uint8_t *bytes = s->bytes + b * WORD;
    uint64_t *lit = s->lit + b;
    for (int64_t word = 0; word < whole; word++) {
        memcpy(bytes, image + word * WORD, WORD);
        lit[word * WORD] = lit_bytes(bytes, WORD);
        bytes += MAX_ROWS * WORD;
    }
    memcpy(bytes, image + whole * WORD, (size_t)(D % WORD));
    bytes[D % WORD] = (uint8_t)e->pixel_max;
    lit[whole * WORD] = lit_bytes(bytes, D % WORD + 1);
}

/* Take a micro-batch's images, and put a one behind each. They come in a random order, which no
 * processor foresees: the one that comes AHEAD images later is fetched now. */
static void NAME(gather)(const NAME(Epoch) * e, int64_t first, int64_t rows,
                         const NAME(Scratch) * s) {
    const int64_t D = e->num_features, stride = NAME(row_stride)(D);
    const REAL inverse = 1 / e->pixel_max;
    for (int64_t b = 0; b < rows; b++) {
        REAL *x = s->x + b * stride;
        const int64_t i = e->order ? e->order[first + b] : first + b;
        if (e->inputs) {
            memcpy(x, e->inputs + i * (D + 1), sizeof(REAL) * (size_t)(D + 1));
            continue;
        }
        if (e->order && first + b + AHEAD < e->num_images) {
            const uint8_t *later = e->pixels + e->order[first + b + AHEAD] * D;
            for (int64_t d = 0; d < D; d += LINE_BYTES) __builtin_prefetch(later + d);
        }
        const uint8_t *image = e->pixels + i * D;
        if (e->skips_zeros) {
            NAME(copy_bytes)(e, image, b, s);
            continue;
        }
        for (int64_t d = 0; d < D; d++) x[d] = NAME(quotient)(image[d], e->pixel_max, inverse);
        x[D] = 1;
    }
}

/* Say which of a slice's images light each pixel, in place of which pixels an image lights. */
static void NAME(turn_lit)(int64_t D, int64_t rows, const NAME(Scratch) * s) {
    for (int64_t word = 0; word < num_words(D); word++) {
        uint64_t *lit = s->lit + word * WORD;
        for (int64_t b = rows; b < WORD; b++) lit[b] = 0;
        turn(lit);
    }
}

/* Columns whose rows stand side by side: one panel or, where zeros are left out, some of them. */
typedef struct {
    int64_t column, length; /* the first column, and how many; none behind the last side */
    int64_t width;          /* in vectors, without those that no trial fills */
} NAME(Side);

INLINE NAME(Side) NAME(side_from)(int64_t column, int64_t num_columns, int64_t num_filled,
                                  int64_t skips_zeros) {
    const int64_t left = (num_columns - column) / PANEL;
    const int64_t among = PANELS(SHARED_WIDTH);
    const int64_t sides =
        !skips_zeros ? left : left <= PANELS(MAX_WIDTH) ? 1 : (left + among - 1) / among;
    const int64_t panels = left ? left / sides : 0; /* about as many in each */
    /* Where trials fill no more than half of the last one, half of its vectors are left out. */
    const int is_half = NUM_VECTORS > 1 && column + panels * PANEL - PANEL / 2 >= num_filled;
    return (NAME(Side)){column, panels * PANEL,
                        panels * NUM_VECTORS - (is_half ? NUM_VECTORS - HALF : 0)};
}

#define FOR_SIDES(side, N, filled, skips)                                                     \
    for (NAME(Side) side = NAME(side_from)(0, N, filled, skips); (side).length;               \
         side = NAME(side_from)((side).column + (side).length, N, filled, skips))
#define FOR_SIDES_OF(side, e)                                                                 \
    FOR_SIDES(side, (e)->num_columns, (e)->num_classes *(e)->num_trials, (e)->skips_zeros)

/* Copy trial p's weights, (K, C), to where its columns stand, or out from there. */
void NAME(copy_trial)(REAL *weights, REAL *trial, int64_t p, int64_t K, int64_t C, int64_t P,
                      int64_t N, int64_t skips_zeros, int64_t out) {
    FOR_SIDES(side, N, C * P, skips_zeros)
        for (int64_t c = 0; c < C; c++) {
            const int64_t column = c * P + p - side.column;
            if (column < 0 || column >= side.length) continue;
            REAL *at = weights + side.column * K + column;
            for (int64_t k = 0; k < K; k++, at += side.length) {
                if (out) trial[k * C + c] = *at;
                else *at = trial[k * C + c];
            }
        }
}

/* Logits of `num` rows and one panel, of so many vectors. */
INLINE void NAME(forward_block)(const REAL *x, int64_t stride, const REAL *panel, int64_t K,
                                REAL *z, int64_t z_stride, const int64_t num,
                                const int64_t vectors) {
    VECTOR sums[MAX_SUMS][NUM_VECTORS];
    for (int64_t r = 0; r < num; r++)
        for (int64_t v = 0; v < vectors; v++) sums[r][v] = (VECTOR){0};
    for (int64_t k = 0; k < K; k++, panel += PANEL) {
        __builtin_prefetch(panel + K * PANEL); /* the next panel comes from further away */
        VECTOR w[NUM_VECTORS];
        for (int64_t v = 0; v < vectors; v++) w[v] = NAME(load)(panel + v * LANES);
        for (int64_t r = 0; r < num; r++)
            for (int64_t v = 0; v < vectors; v++) sums[r][v] += x[r * stride + k] * w[v];
    }
    for (int64_t r = 0; r < num; r++)
        for (int64_t v = 0; v < vectors; v++)
            NAME(store)(z + r * z_stride + v * LANES, sums[r][v]);
}

INLINE void NAME(forward_panel)(const NAME(Epoch) * e, const REAL *x, int64_t rows, int64_t column,
                                REAL *z, const int64_t vectors) {
    const int64_t K = e->num_features + 1, stride = NAME(row_stride)(e->num_features);
    const int64_t z_stride = NAME(z_stride)(e->num_columns);
    const REAL *panel = e->weights + column * K;
    int64_t r = 0;
#define ROWS(num)                                                                             \
    for (; r + (num) <= rows; r += (num))                                                     \
        NAME(forward_block)(x + r * stride, stride, panel, K, z + r * z_stride + column,      \
                            z_stride, num, vectors);
    ROWS(BLOCK(vectors))
    if (BLOCK(vectors) > 4) { ROWS(4) }
    if (BLOCK(vectors) > 2) { ROWS(2) }
    ROWS(1)
#undef ROWS
}

/* Add to sums, for each i that is a one of a word, what the byte i steps on means times row i of others,
 * which are so many reals apart. */
#define ADD_LIT(sums, word, bytes, step, others, length, width)                               \
    for (uint64_t lit = (word); lit; lit &= lit - 1) {                                        \
        const int64_t i = __builtin_ctzll(lit);                                               \
        const REAL factor = of_byte[(bytes)[i * (step)]];                                     \
        int64_t row = i * (length);                                                           \
        OPAQUE_ADDRESS(row);                                                                  \
        UNROLL for (int64_t v = 0; v < (width); v++)                                          \
            (sums)[v] += factor * NAME(load)((others) + row + v * LANES);                     \
    }

/* The logits of a slice and a side, a word of pixels at a time. */
INLINE void NAME(forward_side)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t rows,
                               NAME(Side) side, const int64_t width) {
    const int64_t words = num_words(e->num_features), z_stride = NAME(z_stride)(e->num_columns);
    const REAL *weights = e->weights + side.column * (e->num_features + 1);
    const REAL *of_byte = s->of_byte;
    REAL *z = s->z + side.column;
    OPAQUE_ADDRESS(weights);
    for (int64_t b = 0; b < rows; b++)
        memset(z + b * z_stride, 0, sizeof(REAL) * (size_t)side.length);
    for (int64_t word = 0; word < words; word++, weights += WORD * side.length)
        for (int64_t b = 0; b < rows; b++) {
            const uint8_t *bytes = s->bytes + (word * MAX_ROWS + b) * WORD;
            VECTOR sums[MAX_WIDTH];
            for (int64_t v = 0; v < width; v++) {
                sums[v] = NAME(load)(z + b * z_stride + v * LANES);
                OPAQUE(sums[v]); /* or a call would copy them */
            }
            ADD_LIT(sums, s->lit[word * WORD + b], bytes, 1, weights, side.length, width)
            for (int64_t v = 0; v < width; v++)
                NAME(store)(z + b * z_stride + v * LANES, sums[v]);
        }
}

/* What a slice's gradient does to a vector of columns, whose coefficients are (4, N). */
INLINE void NAME(move)(const REAL *coefficients, int64_t N, Penalties penalties, VECTOR gradient,
                       REAL *weights, REAL *velocity) {
    const VECTOR w = NAME(load)(weights);
    VECTOR moved = NAME(load)(velocity) * NAME(load)(coefficients);
    /* Rounded here: of `a * b + c * d` a compiler may fuse either product with the sum, here this one
     * and there the other, and a trial's bits would depend on where its column stands. */
    OPAQUE(moved);
    if (penalties != NONE) moved += NAME(load)(coefficients + N) * w;
    if (penalties == DECAY_AND_L1) /* comparisons give -1 where they hold */
        moved += NAME(load)(coefficients + 2 * N) *
                 __builtin_convertvector((w < 0) - (w > 0), VECTOR);
    moved += gradient;
    NAME(store)(velocity, moved);
    NAME(store)(weights, w - NAME(load)(coefficients + 3 * N) * moved);
}

/* The gradient of `num` rows of one panel of weights, and what SGD does with it. */
INLINE void NAME(backward_block)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t rows,
                                 int64_t k, int64_t column, Penalties penalties,
                                 const int64_t num, const int64_t vectors) {
    const int64_t K = e->num_features + 1, z_stride = NAME(z_stride)(e->num_columns);
    const int64_t stride = NAME(row_stride)(e->num_features), at = column * K + k * PANEL;
    const REAL *x = s->x + k, *residual = s->z + column;
    VECTOR sums[MAX_SUMS][NUM_VECTORS];
    for (int64_t i = 0; i < num; i++) {
        for (int64_t v = 0; v < vectors; v++) sums[i][v] = (VECTOR){0};
        /* What the sums are for is fetched while they are computed. */
        __builtin_prefetch(e->velocity + at + i * PANEL, 1);
        __builtin_prefetch(e->weights + at + i * PANEL, 1);
    }
    for (int64_t b = 0; b < rows; b++) {
        VECTOR r[NUM_VECTORS];
        for (int64_t v = 0; v < vectors; v++)
            r[v] = NAME(load)(residual + b * z_stride + v * LANES);
        __builtin_prefetch(x + b * stride + PANEL); /* the next weights' pixels, row by row */
        for (int64_t i = 0; i < num; i++)
            for (int64_t v = 0; v < vectors; v++) sums[i][v] += x[b * stride + i] * r[v];
    }
    for (int64_t v = 0; v < vectors; v++)
        for (int64_t i = 0; i < num; i++)
            NAME(move)(s->coefficients + column + v * LANES, e->num_columns,
                       k + i < e->num_features ? penalties : NONE, sums[i][v],
                       e->weights + at + i * PANEL + v * LANES,
                       e->velocity + at + i * PANEL + v * LANES);
}

INLINE void NAME(backward_panel)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t rows,
                                 int64_t column, Penalties penalties, const int64_t vectors) {
    const int64_t K = e->num_features + 1;
    int64_t k = 0;
#define WEIGHTS(num)                                                                          \
    for (; k + (num) <= K; k += (num))                                                        \
        NAME(backward_block)(e, s, rows, k, column, penalties, num, vectors);
    WEIGHTS(BLOCK(vectors))
    if (BLOCK(vectors) > 4) { WEIGHTS(4) }
    if (BLOCK(vectors) > 2) { WEIGHTS(2) }
    WEIGHTS(1)
#undef WEIGHTS
}

/* The gradients of a side's weights of pixels `first` to `end` by a slice, and what SGD does with them
 * while they are in registers. */
INLINE void NAME(descend)(const NAME(Epoch) * e, const NAME(Scratch) * s, NAME(Side) side,
                          Penalties penalties, int64_t first, int64_t end,
                          const int64_t width) {
    const int64_t N = e->num_columns, K = e->num_features + 1, z_stride = NAME(z_stride)(N);
    const int64_t length = side.length;
    const REAL *residuals = s->z + side.column, *of_byte = s->of_byte;
    const REAL *coefficients = s->coefficients + side.column;
    OPAQUE_ADDRESS(residuals);
    for (int64_t k = first; k < end; k++) {
        const uint8_t *bytes = s->bytes + k / WORD * (MAX_ROWS * WORD) + k % WORD;
        const int64_t at = side.column * K + k * length;
        VECTOR sums[MAX_WIDTH];
        for (int64_t v = 0; v < width; v++) {
            sums[v] = (VECTOR){0};
            OPAQUE(sums[v]);
        }
        ADD_LIT(sums, s->lit[k], bytes, WORD, residuals, z_stride, width)
        UNROLL for (int64_t v = 0; v < width; v++)
            NAME(move)(coefficients + v * LANES, N, penalties, sums[v],
                       e->weights + at + v * LANES, e->velocity + at + v * LANES);
    }
}

/* All gradients of a side; a copy for each kind of penalty asks no questions on the way. */
INLINE void NAME(backward_side)(const NAME(Epoch) * e, const NAME(Scratch) * s, NAME(Side) side,
                                const int64_t width) {
    const int64_t D = e->num_features;
    if (e->l1) NAME(descend)(e, s, side, DECAY_AND_L1, 0, D, width);
    else NAME(descend)(e, s, side, DECAY, 0, D, width);
    NAME(descend)(e, s, side, NONE, D, D + 1, width);
}

/* Both once for every width that a side can have, so that sums stay in registers. */
#define WIDTHS                                                                                \
    WIDTH(1) WIDTH(2) WIDTH(3) WIDTH(4) WIDTH(5) WIDTH(6) WIDTH(7)                            \
    WIDTH(8) WIDTH(9) WIDTH(10) WIDTH(11) WIDTH(12) WIDTH(13) WIDTH(14)
#define KNOWN(num) ((num) <= MAX_WIDTH ? (num) : MAX_WIDTH)
#define WIDTH(num)                                                                            \
    static void NAME(forward_##num)(const NAME(Epoch) * e, const NAME(Scratch) * s,           \
                                    int64_t rows, NAME(Side) side) {                          \
        NAME(forward_side)(e, s, rows, side, KNOWN(num));                                     \
    }                                                                                         \
    static void NAME(backward_##num)(const NAME(Epoch) * e, const NAME(Scratch) * s,          \
                                     NAME(Side) side) {                                       \
        NAME(backward_side)(e, s, side, KNOWN(num));                                          \
    }
WIDTHS
#undef WIDTH
#define WIDTH(num) {NAME(forward_##num), NAME(backward_##num)},
static const struct {
    void (*forward)(const NAME(Epoch) *, const NAME(Scratch) *, int64_t, NAME(Side));
    void (*backward)(const NAME(Epoch) *, const NAME(Scratch) *, NAME(Side));
} NAME(of_width)[] = {{NULL, NULL}, WIDTHS};
#undef WIDTH

static void NAME(forward)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t rows) {
    FOR_SIDES_OF(side, e) {
        if (e->skips_zeros) NAME(of_width)[side.width].forward(e, s, rows, side);
        else if (side.width == NUM_VECTORS)
            NAME(forward_panel)(e, s->x, rows, side.column, s->z, NUM_VECTORS);
        else NAME(forward_panel)(e, s->x, rows, side.column, s->z, HALF);
    }
}

static void NAME(backward)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t rows) {
    const Penalties penalties = e->l1 ? DECAY_AND_L1 : DECAY;
    if (e->skips_zeros) NAME(turn_lit)(e->num_features, rows, s);
    FOR_SIDES_OF(side, e) {
        if (e->skips_zeros) NAME(of_width)[side.width].backward(e, s, side);
        else if (side.width == NUM_VECTORS)
            NAME(backward_panel)(e, s, rows, side.column, penalties, NUM_VECTORS);
        else NAME(backward_panel)(e, s, rows, side.column, penalties, HALF);
    }
}

typedef __typeof__((VECTOR){0} < (VECTOR){0}) NAME(mask);

INLINE VECTOR NAME(select)(NAME(mask) where, VECTOR yes, VECTOR no) {
    return (VECTOR)((where & (NAME(mask))yes) | (~where & (NAME(mask))no));
}

/* exp, for arguments that are not positive; NaN stays NaN. */
INLINE VECTOR EXP(VECTOR x) {
#ifdef IS_DOUBLE
    for (int64_t l = 0; l < LANES; l++) x[l] = exp(x[l]);
    return x;
#else
    /* Cephes' expf: 2^n times a polynomial in the rest, within 2 units in the last place. */
    x = NAME(select)(x < -87.0f, (VECTOR){0} - 87.0f, x);
    const VECTOR shifted = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: rounds to n */
    const VECTOR n = shifted - 12582912.0f;
    const VECTOR rest = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    VECTOR sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    return sum * (VECTOR)(((NAME(mask))shifted + 127) << 23); /* the low bits hold n */
#endif
}

/* Copy P reals, and what is behind them up to a whole vector: copies in order write that anew. */
INLINE void NAME(copy_lanes)(const REAL *from, int64_t P, REAL *to) {
    for (int64_t p = 0; p < P; p += LANES) NAME(store)(to + p, NAME(load)(from + p));
}

/* Copy a slice's logits from z, class by class within a row, to row by row within a class. */
static void NAME(by_class)(const REAL *z, int64_t z_stride, int64_t rows, int64_t C, int64_t P,
                           REAL *out) {
    for (int64_t c = 0; c < C; c++)
        for (int64_t b = 0; b < rows; b++, out += P)
            NAME(copy_lanes)(z + b * z_stride + c * P, P, out);
}

static void NAME(by_row)(const REAL *from, int64_t z_stride, int64_t rows, int64_t C, int64_t P,
                         REAL *z) {
    for (int64_t c = 0; c < C; c++)
        for (int64_t b = 0; b < rows; b++, from += P)
            NAME(copy_lanes)(from, P, z + b * z_stride + c * P);
}

/* Of lanes that stand side by side, class after class `stride` apart: the largest logit, the first class
 * that has it, and the sum of all exponentials over the largest one. If there are weights, logits become
 * weight * softmax. */
INLINE void NAME(softmax_lanes)(REAL *z, int64_t stride, int64_t C, int64_t num,
                                const REAL *weights, REAL *largest, REAL *best, REAL *total) {
    VECTOR top = NAME(load)(z), which = {0}, sum = {0};
    for (int64_t c = 1; c < C; c++) {
        const VECTOR of_class = NAME(load)(z + c * stride);
        const NAME(mask) is_larger = of_class > top;
        which = NAME(select)(is_larger, (VECTOR){0} + (REAL)c, which);
        top = NAME(select)(is_larger, of_class, top);
    }
    NAME(store)(largest, top);
    NAME(store)(best, which);
    /* Lanes past the last are of the next class, and stay as they are. */
    NAME(mask) is_ours;
    for (int64_t l = 0; l < LANES; l++) is_ours[l] = l < num ? -1 : 0;
    for (int64_t c = 0; c < C; c++) {
        const VECTOR before = NAME(load)(z + c * stride), power = EXP(before - top);
        sum += power;
        NAME(store)(z + c * stride, NAME(select)(is_ours, power, before));
    }
    NAME(store)(total, sum);
    if (!weights) return;
    const VECTOR scale = NAME(load)(weights) / sum;
    for (int64_t c = 0; c < C; c++) {
        const VECTOR power = NAME(load)(z + c * stride);
        NAME(store)(z + c * stride, NAME(select)(is_ours, power * scale, power));
    }
}

/* Tally cross-entropy and right answers of rows; turn logits, (C, rows * P), into the loss's gradient
 * by them, weight * (softmax - one-hot): Murphy 2022, equation 10.60. Weights are of lanes. */
static void NAME(softmax_rows)(const NAME(Epoch) * e, const NAME(Scratch) * s, REAL *z,
                               int64_t first, int64_t rows, const REAL *weights) {
    const int64_t C = e->num_classes, P = e->num_trials, L = rows * P;
    REAL *of_label = s->of_lane, *best = of_label + s->lanes, *total = best + s->lanes;
    double *product = s->tally, *sum = product + P, *right = sum + P;
#define LABEL(b) (e->labels[e->order ? e->order[first + (b)] : first + (b)])
    for (int64_t b = 0; b < rows; b++)
        NAME(copy_lanes)(z + LABEL(b) * L + b * P, P, of_label + b * P);
    for (int64_t l = 0; l < L; l += LANES) {
        REAL largest[LANES];
        NAME(softmax_lanes)(z + l, L, C, L - l, weights ? weights + l : NULL, largest, best + l,
                            total + l);
        NAME(store)(of_label + l, NAME(load)(of_label + l) - NAME(load)(largest));
    }
    for (int64_t b = 0; b < rows; b++) {
        const REAL label = (REAL)LABEL(b);
        for (int64_t p = 0, l = b * P; p < P; p++, l++) {
            product[p] *= (double)total[l];
            sum[p] += (double)of_label[l];
            right[p] += best[l] == label ? 1.0 : 0.0;
        }
        if (!weights) continue;
        REAL *of_class = z + LABEL(b) * L + b * P;
        for (int64_t p = 0; p < P; p++) of_class[p] -= weights[p];
    }
#undef LABEL
}

/* The same of a whole slice: row by row where trials alone fill the loops, else all rows at once. */
static void NAME(softmax)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t first,
                          int64_t rows, const REAL *loss_weights) {
    const int64_t C = e->num_classes, P = e->num_trials, z_stride = NAME(z_stride)(e->num_columns);
    REAL *weights = loss_weights ? s->of_lane + 3 * s->lanes : NULL;
    if (weights) memcpy(weights, loss_weights, sizeof(REAL) * (size_t)P);
    for (int64_t b = 1; weights && P < NARROW && b < rows; b++)
        NAME(copy_lanes)(weights, P, weights + b * P);
    double *product = s->tally, *sum = product + P, *right = sum + P; /* as `softmax_rows` has it */
    for (int64_t p = 0; p < P; p++) product[p] = 1, sum[p] = right[p] = 0;
    if (P < NARROW) {
        NAME(by_class)(s->z, z_stride, rows, C, P, s->by_class);
        NAME(softmax_rows)(e, s, s->by_class, first, rows, weights);
        NAME(by_row)(s->by_class, z_stride, rows, C, P, s->z);
    } else {
        for (int64_t b = 0; b < rows; b++)
            NAME(softmax_rows)(e, s, s->z + b * z_stride, first + b, 1, weights);
    }
    for (int64_t p = 0; p < P; p++) {
        /* One logarithm for 64 rows, whose sums are from 1 to C: a double holds 2^1023, so C may be
         * 65,000. */
        e->loss[p] += log(product[p]) - sum[p];
        e->num_correct[p] += (int64_t)right[p];
    }
    for (int64_t b = 0; b < rows; b++) /* columns of no trial */
        memset(s->z + b * z_stride + C * P, 0, sizeof(REAL) * (size_t)(e->num_columns - C * P));
}

/* Repeat a row of a table for every class. */
INLINE void NAME(widen)(const NAME(Epoch) * e, const REAL *row, REAL otherwise, REAL *columns) {
    const int64_t P = e->num_trials;
    for (int64_t j = 0; j < e->num_columns; j++) columns[j] = otherwise;
    if (row)
        for (int64_t c = 0; c < e->num_classes; c++)
            memcpy(columns + c * P, row, sizeof(REAL) * (size_t)P);
}

/* Repeat what SGD does after a slice for every class: a batch's first gradient finds the velocity as the
 * step before left it, the others add to it, and after the last one the weights move. */
static void NAME(note_coefficients)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t step,
                                    int begins, int ends) {
    const int64_t N = e->num_columns;
#define ROW(table, stride, applies) ((table) && (applies) ? (table) + step * (stride) : NULL)
    NAME(widen)(e, ROW(e->momentum, e->momentum_stride, begins), begins ? 0 : 1, s->coefficients);
    NAME(widen)(e, ROW(e->weight_decay, e->weight_decay_stride, begins), 0, s->coefficients + N);
    NAME(widen)(e, ROW(e->l1, e->l1_stride, begins), 0, s->coefficients + 2 * N);
    NAME(widen)(e, ROW(e->rates, e->num_trials, ends), 0, s->coefficients + 3 * N);
#undef ROW
}

/* Reals of scratch space. */
int64_t NAME(scratch_size)(int64_t num_features, int64_t num_classes, int64_t num_trials,
                           int64_t num_columns) {
    NAME(Scratch) parts;
    return NAME(divide)(NULL, num_features, num_classes, num_trials, num_columns, &parts);
}

void NAME(train_epoch)(const NAME(Epoch) * e) {
    const int64_t P = e->num_trials;
    NAME(Scratch) s;
    NAME(divide)(e->scratch, e->num_features, e->num_classes, P, e->num_columns, &s);
    NAME(note_bytes)(e, &s);
    const unsigned before = flush_denormals();
    for (int64_t first = 0, step = 0; first < e->num_images; first += e->num_rows, step++) {
        const int64_t end = first + e->num_rows < e->num_images ? first + e->num_rows
                                                                 : e->num_images;
        for (int64_t slice = first; slice < end; slice += MAX_ROWS) {
            const int64_t rows = end - slice < MAX_ROWS ? end - slice : MAX_ROWS;
            NAME(note_coefficients)(e, &s, step, slice == first, slice + rows == end);
            NAME(gather)(e, slice, rows, &s);
            NAME(forward)(e, &s, rows);
            NAME(softmax)(e, &s, slice, rows, e->loss_weights + step * P);
            NAME(backward)(e, &s, rows);
        }
    }
    restore_denormals(before);
}

void NAME(evaluate)(const NAME(Epoch) * e) {
    NAME(Scratch) s;
    NAME(divide)(e->scratch, e->num_features, e->num_classes, e->num_trials, e->num_columns, &s);
    NAME(note_bytes)(e, &s);
    const unsigned before = flush_denormals();
    for (int64_t first = 0; first < e->num_images; first += MAX_ROWS) {
        const int64_t left = e->num_images - first, rows = left < MAX_ROWS ? left : MAX_ROWS;
        NAME(gather)(e, first, rows, &s);
        NAME(forward)(e, &s, rows);
        NAME(softmax)(e, &s, first, rows, NULL);
    }
    restore_denormals(before);
}

/* One row of `step`. */
INLINE void NAME(step_row)(REAL *restrict w, REAL *restrict v, REAL *restrict first,
                           REAL *restrict second, const REAL *restrict rates,
                           const REAL *restrict momentum, const REAL *restrict weight_decay,
                           const REAL *restrict l1, int64_t N, const int is_penalized,
                           const int has_second) {
    for (int64_t n = 0; n < N; n++) {
        const REAL moved = w[n] - rates[n] * v[n];
        REAL next = momentum[n] * v[n];
        if (is_penalized)
            next += weight_decay[n] * moved + l1[n] * ((REAL)(moved > 0) - (REAL)(moved < 0));
        const REAL term = (REAL)round_to_bfloat16((float)moved);
        w[n] = moved;
        v[n] = next;
        first[n] = term;
        if (has_second) second[n] = (REAL)round_to_bfloat16((float)(moved - term));
    }
}

/* End one step and begin the next, for weights and velocity that stand as they do in torch, (K, N)
 * with the bias last: move the weights, split them into one or two bfloat16 terms, and set the
 * velocity to all of the next one but its gradient. Coefficients are (N,); `second` may be NULL. */
void NAME(step)(REAL *weights, REAL *velocity, REAL *first, REAL *second, const REAL *rates,
                const REAL *momentum, const REAL *weight_decay, const REAL *l1, int64_t K,
                int64_t N) {
#define STEP_ROW(is_penalized, has_second)                                                 \
    NAME(step_row)(weights + k * N, velocity + k * N, first + k * N,                       \
                   (has_second) ? second + k * N : NULL, rates, momentum, weight_decay, l1, \
                   N, is_penalized, has_second)
    for (int64_t k = 0; k < K; k++) {
        if (second && k < K - 1) STEP_ROW(1, 1);
        else if (second) STEP_ROW(0, 1);
        else if (k < K - 1) STEP_ROW(1, 0);
        else STEP_ROW(0, 0);
    }
#undef STEP_ROW
}

#undef LANES
#undef NUM_VECTORS
#undef HALF
#undef BLOCK
#undef MAX_SUMS
#undef PANELS
#undef FOR_SIDES
#undef FOR_SIDES_OF
#undef ADD_LIT
#undef WIDTHS
#undef KNOWN
#undef VECTOR
#endif
