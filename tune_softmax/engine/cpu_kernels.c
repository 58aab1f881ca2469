/* One epoch of softmax regression for P trials at once, on one CPU core.
 *
 * cpu_kernels.py calls these functions. Column c * P + p of the weights is class c of trial p; columns
 * past C * P are zero and stay zero. Columns are stored in strips. A strip is a matrix (K, length) of one
 * or more panels of PANEL columns, K = D + 1, with the bias as the last row.
 *
 * The gradient's product keeps its sums in registers, and momentum, penalties and the step are applied to
 * them there. So weights and velocity are read and written once a micro-batch, without another pass.
 *
 * A product may skip pixels that are zero. Where many are zero, masks of 64 bits say which of 64 pixels
 * of an image are not zero or, transposed, in which of 64 images a pixel is not zero, and the products
 * loop over their set bits while a strip's 64 rows stay in the first-level cache. Images stay bytes, and
 * a table gives the value of each byte. Otherwise every panel is a strip of its own, and a micro-batch is
 * scaled once into a buffer that stays in the second-level cache. Both add in the same order, so their
 * results are equal bit for bit.
 *
 * The body is compiled twice, for float and for double: this file includes itself.
 */
#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <string.h>

#define PANEL 16
#define MAX_ROWS 64 /* rows of a micro-batch's slice; 64 rows of 785 floats are 200 KB */
#define PREFETCH_IMAGES 4 /* how many images ahead memory is fetched */
#define LINE_BYTES 64
#define FEW_TRIALS 16 /* with fewer, the softmax's vectors run over trials and rows together */
#define WORD 64 /* bits of a mask; MAX_ROWS must not exceed it */
#define NUM_BYTES 256

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define NUM_SUMS 24 /* vectors of running sums that fit into the registers */
#define MAX_WIDTH 8 /* vectors in a row of a single strip; 64 rows fit into the first-level cache */
#define MAX_SHARED_WIDTH 8 /* the same where there are several strips */
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define NUM_SUMS 12
#define MAX_WIDTH 14
#define MAX_SHARED_WIDTH 10
#else
#define VECTOR_BYTES 16
#define NUM_SUMS 12
#define MAX_WIDTH 14
#define MAX_SHARED_WIDTH 14
#endif

#define INLINE static inline __attribute__((always_inline))

/* Hide from the compiler where a vector's value comes from. */
#ifdef __SSE__
#define OPAQUE(vector) __asm__("" : "+x"(vector))
#else
#define OPAQUE(vector) __asm__("" : "+m"(vector))
#endif

/* Hide from the compiler how an address was computed, or it recomputes it for each vector. */
#define OPAQUE_ADDRESS(number) __asm__("" : "+r"(number))

/* Unroll loops over arrays of vectors: only then do the arrays stay in registers. */
#define UNROLL _Pragma("GCC unroll 14")

/* Rows of a step's coefficients, in the order of plan.py's COEFFICIENTS. */
enum { RATE, MOMENTUM, WEIGHT_DECAY, L1, NUM_COEFFICIENTS };

/* The arguments of an epoch of one group; cpu_kernels.py declares the same structure. */
#define EPOCH_FIELDS(real)                                                                    \
    const uint8_t *pixels; /* (num_images, D); NULL if inputs are given */                    \
    const real *inputs;    /* (num_images, K), the last column ones; replaces the pixels */   \
    real pixel_max;        /* the pixel value that becomes 1 */                               \
    const int64_t *labels; /* (num_images,) */                                                \
    const int64_t *order;  /* (num_images,), the images' order; NULL for ascending */         \
    int64_t num_images, num_features, num_classes, num_trials, num_columns;                   \
    real *weights, *velocity; /* (K, N), in strips */                                         \
    int64_t num_rows;         /* of a micro-batch */                                          \
    int64_t skips_zeros;      /* whether products skip zero pixels; needs pixels */           \
    int64_t has_l1;           /* whether an L1 coefficient is not zero */                     \
    const real *loss_weights; /* (steps, P); a step is a micro-batch */                       \
    const real *coefficients; /* (steps, NUM_COEFFICIENTS, P) */                              \
    real *scratch;            /* of scratch_size */                                           \
    double *loss;             /* (P,) sums of cross-entropy, added to */                      \
    int64_t *num_correct;     /* (P,), added to */

/* Flush denormal numbers to zero during an epoch. Weights of pixels that are always zero decay through
 * them, and an operation on a denormal number takes about a hundred times as long. */
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

/* Write a permutation of 0 to num - 1 by the Fisher-Yates shuffle, as torch.randperm draws it. */
void shuffle(int64_t *order, const uint32_t *random, int64_t num) {
    for (int64_t i = 0; i < num; i++) order[i] = i;
    for (int64_t i = 0; i + 1 < num; i++) {
        const int64_t other = i + random[i] % (num - i), swapped = order[i];
        order[i] = order[other];
        order[other] = swapped;
    }
}

/* Return a mask: bit i says whether byte i of at most 64 is not zero. */
INLINE uint64_t nonzero_mask(const uint8_t *pixels, int64_t num) {
    uint64_t mask = 0;
    int64_t i = 0;
#ifdef __SSE2__
    typedef char bytes __attribute__((vector_size(16), aligned(1)));
    for (; i + 16 <= num; i += 16) {
        const bytes is_nonzero = *(const bytes *)(pixels + i) != 0;
        mask |= (uint64_t)__builtin_ia32_pmovmskb128(is_nonzero) << i;
    }
#endif
    for (; i < num; i++) mask |= (uint64_t)(pixels[i] != 0) << i;
    return mask;
}

/* Transpose 64 words: bit j of word i becomes bit i of word j (Warren 2013, section 7-3). */
INLINE void transpose(uint64_t *restrict words) {
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

/* Return the number of masks for an image's pixels and the one that follows them for the bias. */
INLINE int64_t num_words(int64_t num_features) { return num_features / WORD + 1; }

/* Round to the nearest bfloat16, ties to even. */
INLINE float round_to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
    float rounded;
    memcpy(&rounded, &bits, sizeof rounded);
    return x == x ? rounded : x;
}

/* Which penalties apply: none to biases, and L1 only where a trial has it. */
typedef enum { NO_PENALTY, DECAY, DECAY_AND_L1 } Penalties;

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
#define PANELS(width) /* of a strip */ ((width) > NUM_VECTORS ? (width) / NUM_VECTORS : 1)

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

/* Row stride of the logits of N columns, with room for one more vector. It is an odd number of panels,
 * because rows a power of two apart would compete for the same cache sets. */
INLINE int64_t NAME(z_stride)(int64_t N) { return (N / PANEL + 1) / 2 * 2 * PANEL + PANEL; }

/* Addresses of the parts of the scratch space. */
typedef struct {
    uint64_t *masks;    /* (words, WORD), nonzero pixels of each image, or, transposed, of each pixel */
    uint8_t *bytes;     /* (words, MAX_ROWS, WORD), the slice's images as bytes */
    REAL *pixel_values; /* (NUM_BYTES,), the value of each byte */
    REAL *x;            /* (MAX_ROWS, row_stride), the slice's images, scaled, if zeros are not skipped */
    REAL *z;            /* (MAX_ROWS, z_stride), logits, then residuals */
    REAL *coefficients; /* (NUM_COEFFICIENTS, N) */
    double *tally;      /* (3, P) */
    int64_t lanes;      /* of the softmax: trials, or trials times rows, and one vector more */
    REAL *lane_values;  /* (4, lanes) */
    REAL *class_major;  /* (C, lanes), logits in class-major order, if trials are few */
} NAME(Scratch);

/* Set the addresses of a scratch space's parts; return its size in reals. */
INLINE int64_t NAME(lay_out)(REAL *from, int64_t D, int64_t C, int64_t P, int64_t N,
                            NAME(Scratch) * parts) {
    /* All sizes are multiples of a cache line, so every part begins with one, as the space does. */
#define WHOLE_LINES(num) (((num) + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES)
    const int64_t lanes = WHOLE_LINES((P < FEW_TRIALS ? MAX_ROWS * P : P) + LANES);
    parts->masks = (uint64_t *)from;
    parts->bytes = (uint8_t *)(parts->masks + num_words(D) * WORD);
    parts->tally = (double *)(parts->bytes + MAX_ROWS * num_words(D) * WORD);
    parts->pixel_values = (REAL *)(parts->tally + WHOLE_LINES(3 * P));
    parts->x = parts->pixel_values + NUM_BYTES;
    parts->z = parts->x + MAX_ROWS * NAME(row_stride)(D);
    parts->coefficients = parts->z + MAX_ROWS * NAME(z_stride)(N);
    parts->lanes = lanes;
    parts->lane_values = parts->coefficients + NUM_COEFFICIENTS * N;
    parts->class_major = parts->lane_values + 4 * lanes;
    return parts->class_major + (P < FEW_TRIALS ? C * lanes : 0) - from;
#undef WHOLE_LINES
}

/* Return pixel / pixel_max, rounded as a division rounds it, in a third of its time: a fused multiply-add
 * computes the error of the product by the inverse exactly (Markstein 1990, theorem 7). */
INLINE REAL NAME(quotient)(uint8_t pixel, REAL pixel_max, REAL inverse) {
#ifdef __FMA__
    const REAL first = (REAL)pixel * inverse;
    return FMA(FMA(-first, pixel_max, (REAL)pixel), inverse, first);
#else
    (void)inverse;
    return (REAL)pixel / pixel_max;
#endif
}

/* Compute the value of each byte, if zeros are skipped. */
static void NAME(fill_pixel_values)(const NAME(Epoch) * e, const NAME(Scratch) * s) {
    if (!e->skips_zeros) return;
    const REAL inverse = 1 / e->pixel_max;
    for (int64_t i = 0; i < NUM_BYTES; i++)
        s->pixel_values[i] = NAME(quotient)((uint8_t)i, e->pixel_max, inverse);
}

/* Copy image b's bytes, append pixel_max as the bias's one, and compute the masks. */
static void NAME(copy_bytes)(const NAME(Epoch) * e, const uint8_t *image, int64_t b,
                             const NAME(Scratch) * s) {
    const int64_t D = e->num_features, whole = D / WORD;
    uint8_t *bytes = s->bytes + b * WORD;
    uint64_t *masks = s->masks + b;
    for (int64_t word = 0; word < whole; word++) {
        memcpy(bytes, image + word * WORD, WORD);
        masks[word * WORD] = nonzero_mask(bytes, WORD);
        bytes += MAX_ROWS * WORD;
    }
    memcpy(bytes, image + whole * WORD, (size_t)(D % WORD));
    bytes[D % WORD] = (uint8_t)e->pixel_max;
    masks[whole * WORD] = nonzero_mask(bytes, D % WORD + 1);
}

/* Gather a slice's images and append a one to each. Their order is random, so the processor cannot
 * prefetch them; this does, PREFETCH_IMAGES images ahead. */
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
        if (e->order && first + b + PREFETCH_IMAGES < e->num_images) {
            const uint8_t *later = e->pixels + e->order[first + b + PREFETCH_IMAGES] * D;
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

/* Turn masks of each image's nonzero pixels into masks of the images in which each pixel is nonzero. */
static void NAME(transpose_masks)(int64_t D, int64_t rows, const NAME(Scratch) * s) {
    for (int64_t word = 0; word < num_words(D); word++) {
        uint64_t *masks = s->masks + word * WORD;
        for (int64_t b = rows; b < WORD; b++) masks[b] = 0;
        transpose(masks);
    }
}

/* Columns that are stored as one matrix: one panel or, if zeros are skipped, several. */
typedef struct {
    int64_t column, length; /* the first column and the number of columns; 0 after the last strip */
    int64_t width;          /* vectors in a row, without those that no trial uses */
} NAME(Strip);

INLINE NAME(Strip) NAME(strip_from)(int64_t column, int64_t num_columns, int64_t num_filled,
                                  int64_t skips_zeros) {
    const int64_t left = (num_columns - column) / PANEL;
    const int64_t among = PANELS(MAX_SHARED_WIDTH);
    const int64_t strips =
        !skips_zeros ? left : left <= PANELS(MAX_WIDTH) ? 1 : (left + among - 1) / among;
    const int64_t panels = left ? left / strips : 0; /* about equally many in each */
    /* If trials use no more than half of the last panel, half of its vectors are not computed. */
    const int is_half_filled = NUM_VECTORS > 1 && column + panels * PANEL - PANEL / 2 >= num_filled;
    return (NAME(Strip)){column, panels * PANEL,
                        panels * NUM_VECTORS - (is_half_filled ? NUM_VECTORS - HALF : 0)};
}

#define FOR_STRIPS(strip, N, filled, skips)                                                   \
    for (NAME(Strip) strip = NAME(strip_from)(0, N, filled, skips); (strip).length;           \
         strip = NAME(strip_from)((strip).column + (strip).length, N, filled, skips))
#define FOR_STRIPS_OF(strip, e)                                                               \
    FOR_STRIPS(strip, (e)->num_columns, (e)->num_classes *(e)->num_trials, (e)->skips_zeros)

/* Copy trial p's weights, (K, C), into its columns, or out of them. */
void NAME(copy_trial)(REAL *weights, REAL *trial, int64_t p, int64_t K, int64_t C, int64_t P,
                      int64_t N, int64_t skips_zeros, int64_t out) {
    FOR_STRIPS(strip, N, C * P, skips_zeros)
        for (int64_t c = 0; c < C; c++) {
            const int64_t column = c * P + p - strip.column;
            if (column < 0 || column >= strip.length) continue;
            REAL *at = weights + strip.column * K + column;
            for (int64_t k = 0; k < K; k++, at += strip.length) {
                if (out) trial[k * C + c] = *at;
                else *at = trial[k * C + c];
            }
        }
}

/* Compute the logits of `num` rows for one panel of `vectors` vectors. */
INLINE void NAME(forward_block)(const REAL *x, int64_t stride, const REAL *panel, int64_t K,
                                REAL *z, int64_t z_stride, const int64_t num,
                                const int64_t vectors) {
    VECTOR sums[MAX_SUMS][NUM_VECTORS];
    for (int64_t r = 0; r < num; r++)
        for (int64_t v = 0; v < vectors; v++) sums[r][v] = (VECTOR){0};
    for (int64_t k = 0; k < K; k++, panel += PANEL) {
        __builtin_prefetch(panel + K * PANEL); /* the next panel is not in the cache yet */
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

/* For each set bit i of a mask add the value of bytes[i * step] times row i of `others` to the sums. Rows
 * of `others` are `length` reals apart. */
#define ADD_NONZERO(sums, word, bytes, step, others, length, width)                           \
    for (uint64_t mask = (word); mask; mask &= mask - 1) {                                    \
        const int64_t i = __builtin_ctzll(mask);                                              \
        const REAL factor = pixel_values[(bytes)[i * (step)]];                                \
        int64_t row = i * (length);                                                           \
        OPAQUE_ADDRESS(row);                                                                  \
        UNROLL for (int64_t v = 0; v < (width); v++)                                          \
            (sums)[v] += factor * NAME(load)((others) + row + v * LANES);                     \
    }

/* Compute the logits of a slice for one strip, a word of pixels at a time. */
INLINE void NAME(forward_strip)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t rows,
                               NAME(Strip) strip, const int64_t width) {
    const int64_t words = num_words(e->num_features), z_stride = NAME(z_stride)(e->num_columns);
    const REAL *weights = e->weights + strip.column * (e->num_features + 1);
    const REAL *pixel_values = s->pixel_values;
    REAL *z = s->z + strip.column;
    OPAQUE_ADDRESS(weights);
    for (int64_t b = 0; b < rows; b++)
        memset(z + b * z_stride, 0, sizeof(REAL) * (size_t)strip.length);
    for (int64_t word = 0; word < words; word++, weights += WORD * strip.length)
        for (int64_t b = 0; b < rows; b++) {
            const uint8_t *bytes = s->bytes + (word * MAX_ROWS + b) * WORD;
            VECTOR sums[MAX_WIDTH];
            for (int64_t v = 0; v < width; v++) {
                sums[v] = NAME(load)(z + b * z_stride + v * LANES);
                OPAQUE(sums[v]); /* otherwise gcc calls memcpy */
            }
            ADD_NONZERO(sums, s->masks[word * WORD + b], bytes, 1, weights, strip.length, width)
            for (int64_t v = 0; v < width; v++)
                NAME(store)(z + b * z_stride + v * LANES, sums[v]);
        }
}

/* Apply a slice's gradient to a vector of columns; their coefficients are (NUM_COEFFICIENTS, N). */
INLINE void NAME(apply_sgd)(const REAL *coefficients, int64_t N, Penalties penalties, VECTOR gradient,
                       REAL *weights, REAL *velocity) {
    const VECTOR w = NAME(load)(weights);
    VECTOR v = NAME(load)(velocity) * NAME(load)(coefficients + MOMENTUM * N);
    /* Round here. A compiler may fuse either product of `a * b + c * d` with the sum; if it chose
     * differently in two places, a trial's bits would depend on where its column is stored. */
    OPAQUE(v);
    if (penalties != NO_PENALTY) v += NAME(load)(coefficients + WEIGHT_DECAY * N) * w;
    if (penalties == DECAY_AND_L1) /* a comparison gives -1 where it holds */
        v += NAME(load)(coefficients + L1 * N) *
             __builtin_convertvector((w < 0) - (w > 0), VECTOR);
    v += gradient;
    NAME(store)(velocity, v);
    NAME(store)(weights, w - NAME(load)(coefficients + RATE * N) * v);
}

/* Compute the gradient of `num` rows of one panel's weights and apply it. */
INLINE void NAME(backward_block)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t rows,
                                 int64_t k, int64_t column, Penalties penalties,
                                 const int64_t num, const int64_t vectors) {
    const int64_t K = e->num_features + 1, z_stride = NAME(z_stride)(e->num_columns);
    const int64_t stride = NAME(row_stride)(e->num_features), at = column * K + k * PANEL;
    const REAL *x = s->x + k, *residual = s->z + column;
    VECTOR sums[MAX_SUMS][NUM_VECTORS];
    for (int64_t i = 0; i < num; i++) {
        for (int64_t v = 0; v < vectors; v++) sums[i][v] = (VECTOR){0};
        /* Fetch what the sums will change while they are computed. */
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
            NAME(apply_sgd)(s->coefficients + column + v * LANES, e->num_columns,
                       k + i < e->num_features ? penalties : NO_PENALTY, sums[i][v],
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

/* Compute a slice's gradient of a strip's rows `first` to `end` and apply it while in registers. */
INLINE void NAME(update_weights)(const NAME(Epoch) * e, const NAME(Scratch) * s, NAME(Strip) strip,
                          Penalties penalties, int64_t first, int64_t end,
                          const int64_t width) {
    const int64_t N = e->num_columns, K = e->num_features + 1, z_stride = NAME(z_stride)(N);
    const int64_t length = strip.length;
    const REAL *residuals = s->z + strip.column, *pixel_values = s->pixel_values;
    const REAL *coefficients = s->coefficients + strip.column;
    OPAQUE_ADDRESS(residuals);
    for (int64_t k = first; k < end; k++) {
        const uint8_t *bytes = s->bytes + k / WORD * (MAX_ROWS * WORD) + k % WORD;
        const int64_t at = strip.column * K + k * length;
        VECTOR sums[MAX_WIDTH];
        for (int64_t v = 0; v < width; v++) {
            sums[v] = (VECTOR){0};
            OPAQUE(sums[v]);
        }
        ADD_NONZERO(sums, s->masks[k], bytes, WORD, residuals, z_stride, width)
        UNROLL for (int64_t v = 0; v < width; v++)
            NAME(apply_sgd)(coefficients + v * LANES, N, penalties, sums[v],
                       e->weights + at + v * LANES, e->velocity + at + v * LANES);
    }
}

/* Update all rows of a strip; each kind of penalty is compiled separately, without branches inside. */
INLINE void NAME(backward_strip)(const NAME(Epoch) * e, const NAME(Scratch) * s, NAME(Strip) strip,
                                const int64_t width) {
    const int64_t D = e->num_features;
    if (e->has_l1) NAME(update_weights)(e, s, strip, DECAY_AND_L1, 0, D, width);
    else NAME(update_weights)(e, s, strip, DECAY, 0, D, width);
    NAME(update_weights)(e, s, strip, NO_PENALTY, D, D + 1, width);
}

/* Compile both for every width that a strip can have, so that sums stay in registers. */
#define WIDTHS                                                                                \
    WIDTH(1) WIDTH(2) WIDTH(3) WIDTH(4) WIDTH(5) WIDTH(6) WIDTH(7)                            \
    WIDTH(8) WIDTH(9) WIDTH(10) WIDTH(11) WIDTH(12) WIDTH(13) WIDTH(14)
#define CAPPED(num) ((num) <= MAX_WIDTH ? (num) : MAX_WIDTH)
#define WIDTH(num)                                                                            \
    static void NAME(forward_##num)(const NAME(Epoch) * e, const NAME(Scratch) * s,           \
                                    int64_t rows, NAME(Strip) strip) {                        \
        NAME(forward_strip)(e, s, rows, strip, CAPPED(num));                                  \
    }                                                                                         \
    static void NAME(backward_##num)(const NAME(Epoch) * e, const NAME(Scratch) * s,          \
                                     NAME(Strip) strip) {                                     \
        NAME(backward_strip)(e, s, strip, CAPPED(num));                                       \
    }
WIDTHS
#undef WIDTH
#define WIDTH(num) {NAME(forward_##num), NAME(backward_##num)},
static const struct {
    void (*forward)(const NAME(Epoch) *, const NAME(Scratch) *, int64_t, NAME(Strip));
    void (*backward)(const NAME(Epoch) *, const NAME(Scratch) *, NAME(Strip));
} NAME(of_width)[] = {{NULL, NULL}, WIDTHS};
#undef WIDTH

static void NAME(forward)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t rows) {
    FOR_STRIPS_OF(strip, e) {
        if (e->skips_zeros) NAME(of_width)[strip.width].forward(e, s, rows, strip);
        else if (strip.width == NUM_VECTORS)
            NAME(forward_panel)(e, s->x, rows, strip.column, s->z, NUM_VECTORS);
        else NAME(forward_panel)(e, s->x, rows, strip.column, s->z, HALF);
    }
}

static void NAME(backward)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t rows) {
    const Penalties penalties = e->has_l1 ? DECAY_AND_L1 : DECAY;
    if (e->skips_zeros) NAME(transpose_masks)(e->num_features, rows, s);
    FOR_STRIPS_OF(strip, e) {
        if (e->skips_zeros) NAME(of_width)[strip.width].backward(e, s, strip);
        else if (strip.width == NUM_VECTORS)
            NAME(backward_panel)(e, s, rows, strip.column, penalties, NUM_VECTORS);
        else NAME(backward_panel)(e, s, rows, strip.column, penalties, HALF);
    }
}

typedef __typeof__((VECTOR){0} < (VECTOR){0}) NAME(mask);

INLINE VECTOR NAME(select)(NAME(mask) where, VECTOR yes, VECTOR no) {
    return (VECTOR)((where & (NAME(mask))yes) | (~where & (NAME(mask))no));
}

/* Return exp(x) for x <= 0; NaN stays NaN. */
INLINE VECTOR EXP(VECTOR x) {
#ifdef IS_DOUBLE
    for (int64_t l = 0; l < LANES; l++) x[l] = exp(x[l]);
    return x;
#else
    /* As Cephes' expf: 2^n times a polynomial in the remainder, within 2 units in the last place. */
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

/* Copy P reals in whole vectors; what is written past the end, the next copy in order overwrites. */
INLINE void NAME(copy_lanes)(const REAL *from, int64_t P, REAL *to) {
    for (int64_t p = 0; p < P; p += LANES) NAME(store)(to + p, NAME(load)(from + p));
}

/* Copy a slice's logits from z, (rows, C, P), to (C, rows, P). */
static void NAME(to_class_major)(const REAL *z, int64_t z_stride, int64_t rows, int64_t C, int64_t P,
                           REAL *out) {
    for (int64_t c = 0; c < C; c++)
        for (int64_t b = 0; b < rows; b++, out += P)
            NAME(copy_lanes)(z + b * z_stride + c * P, P, out);
}

/* Copy a slice's residuals back. */
static void NAME(to_row_major)(const REAL *from, int64_t z_stride, int64_t rows, int64_t C, int64_t P,
                         REAL *z) {
    for (int64_t c = 0; c < C; c++)
        for (int64_t b = 0; b < rows; b++, from += P)
            NAME(copy_lanes)(from, P, z + b * z_stride + c * P);
}

/* Compute for a vector of lanes, whose classes are `stride` apart: the largest logit, the first class
 * that has it, and the sum of exp(logit - largest). If weights are given, replace logits by
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
    /* Lanes past the last belong to the next class and must not change. */
    NAME(mask) is_inside;
    for (int64_t l = 0; l < LANES; l++) is_inside[l] = l < num ? -1 : 0;
    for (int64_t c = 0; c < C; c++) {
        const VECTOR before = NAME(load)(z + c * stride), power = EXP(before - top);
        sum += power;
        NAME(store)(z + c * stride, NAME(select)(is_inside, power, before));
    }
    NAME(store)(total, sum);
    if (!weights) return;
    const VECTOR scale = NAME(load)(weights) / sum;
    for (int64_t c = 0; c < C; c++) {
        const VECTOR power = NAME(load)(z + c * stride);
        NAME(store)(z + c * stride, NAME(select)(is_inside, power * scale, power));
    }
}

/* Tally the cross-entropy and correct predictions of rows. If weights, one a lane, are given, replace
 * logits, (C, rows * P), by the loss's gradient, weight * (softmax - one-hot): Murphy 2022, eq. 10.60. */
static void NAME(softmax_rows)(const NAME(Epoch) * e, const NAME(Scratch) * s, REAL *z,
                               int64_t first, int64_t rows, const REAL *weights) {
    const int64_t C = e->num_classes, P = e->num_trials, L = rows * P;
    REAL *of_label = s->lane_values, *best = of_label + s->lanes, *total = best + s->lanes;
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

/* Do this for a slice: all rows at once if trials are few, otherwise row by row. */
static void NAME(softmax)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t first,
                          int64_t rows, const REAL *loss_weights) {
    const int64_t C = e->num_classes, P = e->num_trials, z_stride = NAME(z_stride)(e->num_columns);
    REAL *weights = loss_weights ? s->lane_values + 3 * s->lanes : NULL;
    if (weights) memcpy(weights, loss_weights, sizeof(REAL) * (size_t)P);
    for (int64_t b = 1; weights && P < FEW_TRIALS && b < rows; b++)
        NAME(copy_lanes)(weights, P, weights + b * P);
    double *product = s->tally, *sum = product + P, *right = sum + P; /* as in softmax_rows */
    for (int64_t p = 0; p < P; p++) product[p] = 1, sum[p] = right[p] = 0;
    if (P < FEW_TRIALS) {
        NAME(to_class_major)(s->z, z_stride, rows, C, P, s->class_major);
        NAME(softmax_rows)(e, s, s->class_major, first, rows, weights);
        NAME(to_row_major)(s->class_major, z_stride, rows, C, P, s->z);
    } else {
        for (int64_t b = 0; b < rows; b++)
            NAME(softmax_rows)(e, s, s->z + b * z_stride, first + b, 1, weights);
    }
    for (int64_t p = 0; p < P; p++) {
        /* One logarithm serves 64 rows. Their sums are from 1 to C and a double holds 2^1023, so C may be
         * up to 65,000. */
        e->loss[p] += log(product[p]) - sum[p];
        e->num_correct[p] += (int64_t)right[p];
    }
    for (int64_t b = 0; b < rows; b++) /* columns of no trial stay zero */
        memset(s->z + b * z_stride + C * P, 0, sizeof(REAL) * (size_t)(e->num_columns - C * P));
}

/* Repeat a row of P coefficients for every class; without a row, fill the columns with `otherwise`. */
INLINE void NAME(repeat_row)(const NAME(Epoch) * e, const REAL *row, REAL otherwise, REAL *columns) {
    const int64_t P = e->num_trials;
    for (int64_t j = 0; j < e->num_columns; j++) columns[j] = otherwise;
    if (row)
        for (int64_t c = 0; c < e->num_classes; c++)
            memcpy(columns + c * P, row, sizeof(REAL) * (size_t)P);
}

/* Write the coefficients of one slice, (NUM_COEFFICIENTS, N). Momentum and penalties apply with the first
 * slice of a micro-batch, the learning rate with the last; between them gradients add to the velocity. */
static void NAME(fill_coefficients)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t step,
                                    int is_first, int is_last) {
    const int64_t N = e->num_columns, P = e->num_trials;
    const REAL *rows = e->coefficients + step * NUM_COEFFICIENTS * P;
#define FILL(coefficient, applies, otherwise)                                                 \
    NAME(repeat_row)(e, (applies) ? rows + (coefficient) * P : NULL, otherwise,               \
                     s->coefficients + (coefficient) * N)
    FILL(RATE, is_last, 0);
    FILL(MOMENTUM, is_first, is_first ? 0 : 1);
    FILL(WEIGHT_DECAY, is_first, 0);
    FILL(L1, is_first, 0);
#undef FILL
}

/* Return the size of the scratch space in reals. */
int64_t NAME(scratch_size)(int64_t num_features, int64_t num_classes, int64_t num_trials,
                           int64_t num_columns) {
    NAME(Scratch) parts;
    return NAME(lay_out)(NULL, num_features, num_classes, num_trials, num_columns, &parts);
}

void NAME(train_epoch)(const NAME(Epoch) * e) {
    const int64_t P = e->num_trials;
    NAME(Scratch) s;
    NAME(lay_out)(e->scratch, e->num_features, e->num_classes, P, e->num_columns, &s);
    NAME(fill_pixel_values)(e, &s);
    const unsigned before = flush_denormals();
    for (int64_t first = 0, step = 0; first < e->num_images; first += e->num_rows, step++) {
        const int64_t end = first + e->num_rows < e->num_images ? first + e->num_rows
                                                                 : e->num_images;
        for (int64_t slice = first; slice < end; slice += MAX_ROWS) {
            const int64_t rows = end - slice < MAX_ROWS ? end - slice : MAX_ROWS;
            NAME(fill_coefficients)(e, &s, step, slice == first, slice + rows == end);
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
    NAME(lay_out)(e->scratch, e->num_features, e->num_classes, e->num_trials, e->num_columns, &s);
    NAME(fill_pixel_values)(e, &s);
    const unsigned before = flush_denormals();
    for (int64_t first = 0; first < e->num_images; first += MAX_ROWS) {
        const int64_t left = e->num_images - first, rows = left < MAX_ROWS ? left : MAX_ROWS;
        NAME(gather)(e, first, rows, &s);
        NAME(forward)(e, &s, rows);
        NAME(softmax)(e, &s, first, rows, NULL);
    }
    restore_denormals(before);
}

/* Do one row of `step`. */
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

/* End one step and begin the next for torch's layout of weights and velocity, (K, N) with the bias last:
 * move the weights, split them into one or two bfloat16 terms, and set the velocity to the next step's
 * without its gradient. `now` and `next` are the coefficients of the two steps, (NUM_COEFFICIENTS, N);
 * `second` may be NULL. */
void NAME(step)(REAL *weights, REAL *velocity, REAL *first, REAL *second, const REAL *now,
                const REAL *next, int64_t K, int64_t N) {
#define STEP_ROW(is_penalized, has_second)                                                    \
    NAME(step_row)(weights + k * N, velocity + k * N, first + k * N,                          \
                   (has_second) ? second + k * N : NULL, now + RATE * N, next + MOMENTUM * N, \
                   next + WEIGHT_DECAY * N, next + L1 * N, N, is_penalized, has_second)
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
#undef FOR_STRIPS
#undef FOR_STRIPS_OF
#undef ADD_NONZERO
#undef WIDTHS
#undef CAPPED
#undef VECTOR
#endif
