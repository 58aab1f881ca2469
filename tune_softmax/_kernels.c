/* One epoch of softmax regression for P trials at once, on one CPU core.
 *
 * native.py calls this. The trials' weights stand in panels of PANEL columns, (N / PANEL, K, PANEL),
 * K = D + 1 with the bias last; column c * P + p is class c of trial p, and columns past C * P are
 * zero and stay so. A micro-batch of rows is scaled once into a buffer that stays in the second-level
 * cache. The forward product reads each panel once. The gradient's product keeps its sums in
 * registers, so that momentum, penalties and the step are applied there: weights and velocity are
 * read and written once a micro-batch, and no pass over them is left.
 *
 * A product need not add what a pixel of zero is multiplied by. Where many are zero, words of 64 bits
 * say which of 64 pixels an image lights, or which of 64 images light a pixel, and products run over
 * their ones. Sums keep their order, so the bits of the result are the same.
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

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define NUM_SUMS 24 /* vectors of running sums that fit into the registers */
#define MAX_WIDTH 8 /* vectors of which 64 rows stay in the first-level cache */
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define NUM_SUMS 12
#define MAX_WIDTH 14
#else
#define VECTOR_BYTES 16
#define NUM_SUMS 12
#define MAX_WIDTH 14
#endif

#define INLINE static inline __attribute__((always_inline))

/* Keep from the compiler where a vector comes from. */
#ifdef __SSE__
#define OPAQUE(vector) __asm__("" : "+x"(vector))
#else
#define OPAQUE(vector) __asm__("" : "+m"(vector))
#endif

/* What an epoch of one group needs; native.py holds the same structure. */
#define EPOCH_FIELDS(real)                                                                    \
    const uint8_t *pixels; /* (num_images, D); NULL where there are inputs */                 \
    const real *inputs;    /* (num_images, K) with the ones, in place of pixels */            \
    real pixel_max;        /* the pixel that becomes 1 */                                     \
    const int64_t *labels; /* (num_images,) */                                                \
    const int64_t *order;  /* (num_images,), which image comes when; NULL as they lie */      \
    int64_t num_images, num_features, num_classes, num_trials, num_columns;                   \
    real *weights, *velocity; /* (N / PANEL, K, PANEL) */                                     \
    int64_t num_rows;         /* of a micro-batch */                                          \
    int64_t skips_zeros;      /* whether products leave zeros out */                          \
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

/* Return the words that an image's pixels and the one behind them take. */
INLINE int64_t num_words(int64_t num_features) { return (num_features + 1 + WORD - 1) / WORD; }

/* Round to the nearest that bfloat16 holds, ties to even. */
INLINE float round_to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
    float rounded;
    memcpy(&rounded, &bits, sizeof rounded);
    return x == x ? rounded : x;
}

#define REAL float
#define NAME(name) name##_float32
#define EXP vector_exp_float32
#define FMA __builtin_fmaf
#include "_kernels.c"
#undef REAL
#undef NAME
#undef EXP
#undef FMA

#define REAL double
#define NAME(name) name##_float64
#define EXP vector_exp_float64
#define FMA __builtin_fma
#include "_kernels.c"
#undef REAL
#undef NAME
#undef EXP
#undef FMA

#else /* the body */

#define LANES ((int64_t)(VECTOR_BYTES / sizeof(REAL)))
#define NUM_VECTORS ((int64_t)(PANEL / LANES))              /* of a panel's row */
#define HALF (NUM_VECTORS > 1 ? NUM_VECTORS / 2 : 1)
#define BLOCK(vectors) (NUM_SUMS > (vectors) ? NUM_SUMS / (vectors) : 1) /* rows of sums */
#define MAX_SUMS (NUM_SUMS > NUM_VECTORS ? NUM_SUMS : NUM_VECTORS)
#define PANELS (MAX_WIDTH > NUM_VECTORS ? MAX_WIDTH / NUM_VECTORS : 1) /* side by side */

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

/* Where the parts of the scratch space are. */
typedef struct {
    uint64_t *lit;      /* (MAX_ROWS, words), which pixels a slice's images light */
    uint64_t *lit_by;   /* (words, WORD), which of the slice's images light a pixel */
    REAL *side;         /* (WORD, PANELS * PANEL), weights or gradients of a word of pixels */
    REAL *x;            /* (MAX_ROWS, row_stride), a slice's images */
    REAL *z;            /* (MAX_ROWS, N + PANEL), their logits, then their residuals */
    REAL *coefficients; /* (4, N) */
    REAL *of_lane;      /* (4, lanes); a lane of the softmax is a trial, or one with a row */
    REAL *by_class;     /* (C, lanes), where lanes are not as they lie in z */
} NAME(Scratch);

/* Return the reals of a scratch space, and say where its parts are. */
INLINE int64_t NAME(divide)(REAL *from, int64_t D, int64_t C, int64_t P, int64_t N,
                            NAME(Scratch) * parts) {
    const int64_t lanes = P < NARROW ? MAX_ROWS * P : P;
    parts->lit = (uint64_t *)from; /* first, where memory is aligned for it */
    parts->lit_by = parts->lit + MAX_ROWS * num_words(D);
    parts->side = (REAL *)(parts->lit_by + num_words(D) * WORD);
    parts->x = parts->side + WORD * PANELS * PANEL;
    parts->z = parts->x + MAX_ROWS * NAME(row_stride)(D);
    parts->coefficients = parts->z + MAX_ROWS * (N + PANEL);
    parts->of_lane = parts->coefficients + 4 * N;
    parts->by_class = parts->of_lane + 4 * lanes;
    return parts->by_class + (P < NARROW ? C * lanes : 0) - from;
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

/* Say which pixels an image lights, the one behind them among them: of its bytes, or NULL and inputs. */
static void NAME(note_lit)(const uint8_t *pixels, const REAL *inputs, int64_t D, uint64_t *lit) {
    for (int64_t d = 0; d <= D; d += WORD, lit++) {
        const int64_t num = D - d < WORD ? D - d : WORD;
        *lit = pixels ? lit_bytes(pixels + d, num) : 0;
        for (int64_t i = 0; !pixels && i < num; i++) *lit |= (uint64_t)(inputs[d + i] != 0) << i;
    }
    lit[-1] |= UINT64_C(1) << D % WORD;
}

/* Scale a micro-batch's images and put a one behind each. Images come in a random order, which no
 * processor foresees: the one that comes AHEAD images later is fetched now. */
static void NAME(gather)(const NAME(Epoch) * e, int64_t first, int64_t rows,
                         const NAME(Scratch) * s) {
    const int64_t D = e->num_features, stride = NAME(row_stride)(D);
    const REAL inverse = 1 / e->pixel_max;
    for (int64_t b = 0; b < rows; b++) {
        REAL *x = s->x + b * stride;
        uint64_t *lit = s->lit + b * num_words(D);
        const int64_t i = e->order ? e->order[first + b] : first + b;
        if (e->inputs) {
            memcpy(x, e->inputs + i * (D + 1), sizeof(REAL) * (size_t)(D + 1));
            if (e->skips_zeros) NAME(note_lit)(NULL, x, D, lit);
            continue;
        }
        if (e->order && first + b + AHEAD < e->num_images) {
            const uint8_t *later = e->pixels + e->order[first + b + AHEAD] * D;
            for (int64_t d = 0; d < D; d += LINE_BYTES) __builtin_prefetch(later + d);
        }
        const uint8_t *image = e->pixels + i * D;
        for (int64_t d = 0; d < D; d++) x[d] = NAME(quotient)(image[d], e->pixel_max, inverse);
        x[D] = 1;
        if (e->skips_zeros) NAME(note_lit)(image, NULL, D, lit);
    }
}

/* Say which of a slice's images light each pixel. */
static void NAME(turn_lit)(int64_t D, int64_t rows, const NAME(Scratch) * s) {
    const int64_t words = num_words(D);
    for (int64_t word = 0; word < words; word++) {
        uint64_t *lit_by = s->lit_by + word * WORD;
        for (int64_t b = 0; b < WORD; b++) lit_by[b] = b < rows ? s->lit[b * words + word] : 0;
        turn(lit_by);
    }
}

/* Whether trials fill no more than half of a panel, so that half of its vectors are left out. */
INLINE int NAME(is_half)(const NAME(Epoch) * e, int64_t column) {
    return NUM_VECTORS > 1 && column + PANEL / 2 >= e->num_classes * e->num_trials;
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
    const int64_t z_stride = e->num_columns + PANEL;
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

/* Sums of products over the ones of words: for each of `num` rows r, and each i that is a one of
 * lit[r], sums[r] += factors[r, i] * others[i]. Sums and others have so many vectors; steps are in
 * words or reals, from r to r or from i to i. */
typedef struct {
    int64_t num;
    const uint64_t *lit;
    int64_t lit_step;
    const REAL *factors;
    int64_t factors_row_step, factors_step;
    const REAL *others;
    int64_t others_step;
    REAL *sums;
    int64_t sums_step;
} NAME(Sums);

INLINE void NAME(add_lit)(const NAME(Sums) * of, const int64_t width) {
    const int64_t factors_step = of->factors_step, others_step = of->others_step;
    for (int64_t r = 0; r < of->num; r++) {
        const REAL *factors = of->factors + r * of->factors_row_step, *others = of->others;
        REAL *to = of->sums + r * of->sums_step;
        VECTOR sums[MAX_WIDTH];
        for (int64_t v = 0; v < width; v++) {
            sums[v] = NAME(load)(to + v * LANES);
            OPAQUE(sums[v]); /* or a call would copy them */
        }
        for (uint64_t lit = of->lit[r * of->lit_step]; lit; lit &= lit - 1) {
            const int64_t i = __builtin_ctzll(lit);
            for (int64_t v = 0; v < width; v++)
                sums[v] += factors[i * factors_step] *
                           NAME(load)(others + i * others_step + v * LANES);
        }
        for (int64_t v = 0; v < width; v++) NAME(store)(to + v * LANES, sums[v]);
    }
}

/* The same by a width that the compiler knows, so that sums stay in registers. */
#define WIDTHS                                                                                \
    WIDTH(1) WIDTH(2) WIDTH(3) WIDTH(4) WIDTH(5) WIDTH(6) WIDTH(7)                            \
    WIDTH(8) WIDTH(9) WIDTH(10) WIDTH(11) WIDTH(12) WIDTH(13) WIDTH(14)
#define WIDTH(num)                                                                            \
    static void NAME(add_##num)(const NAME(Sums) * of) {                                      \
        NAME(add_lit)(of, num <= MAX_WIDTH ? num : MAX_WIDTH);                                \
    }
WIDTHS
#undef WIDTH
#define WIDTH(num) NAME(add_##num),
static void (*const NAME(adds)[])(const NAME(Sums) *) = {NULL, WIDTHS};
#undef WIDTH

/* Panels that are taken side by side: none behind the last ones. */
typedef struct {
    int64_t column, panels, width; /* in vectors, without those that no trial fills */
} NAME(Side);

INLINE NAME(Side) NAME(side_from)(const NAME(Epoch) * e, int64_t column) {
    const int64_t left = (e->num_columns - column) / PANEL;
    const int64_t sides = (left + PANELS - 1) / PANELS; /* about as many panels in each */
    const int64_t panels = left ? left / sides : 0;
    const int is_half = NAME(is_half)(e, column + (panels - 1) * PANEL);
    return (NAME(Side)){column, panels, panels * NUM_VECTORS - (is_half ? NUM_VECTORS - HALF : 0)};
}

#define FOR_SIDES(side, e)                                                                    \
    for (NAME(Side) side = NAME(side_from)(e, 0); (side).panels;                              \
         side = NAME(side_from)(e, (side).column + (side).panels * PANEL))

/* Logits of panels side by side, a word of pixels at a time: their weights by 64 pixels stay in the
 * first-level cache for all images. */
static void NAME(forward_lit)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t rows,
                              NAME(Side) side) {
    const int64_t D = e->num_features, K = D + 1, length = side.panels * PANEL;
    const int64_t z_stride = e->num_columns + PANEL;
    REAL *z = s->z + side.column;
    for (int64_t b = 0; b < rows; b++) memset(z + b * z_stride, 0, sizeof(REAL) * (size_t)length);
    for (int64_t word = 0; word < num_words(D); word++) {
        const int64_t first = word * WORD, num = K - first < WORD ? K - first : WORD;
        for (int64_t panel = 0; panel < side.panels; panel++) {
            const REAL *weights = e->weights + (side.column + panel * PANEL) * K + first * PANEL;
            for (int64_t k = 0; k < num; k++) {
                memcpy(s->side + k * length + panel * PANEL, weights + k * PANEL,
                       sizeof(REAL) * PANEL);
                __builtin_prefetch(weights + (k + WORD) * PANEL, 0, 2); /* for the next word */
            }
        }
        const NAME(Sums) of = {.num = rows,
                               .lit = s->lit + word,
                               .lit_step = num_words(D),
                               .factors = s->x + first,
                               .factors_row_step = NAME(row_stride)(D),
                               .factors_step = 1,
                               .others = s->side,
                               .others_step = length,
                               .sums = z,
                               .sums_step = z_stride};
        NAME(adds)[side.width](&of);
    }
}

static void NAME(forward)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t rows) {
    if (e->skips_zeros) {
        FOR_SIDES(side, e) NAME(forward_lit)(e, s, rows, side);
        return;
    }
    for (int64_t column = 0; column < e->num_columns; column += PANEL) {
        if (NAME(is_half)(e, column)) NAME(forward_panel)(e, s->x, rows, column, s->z, HALF);
        else NAME(forward_panel)(e, s->x, rows, column, s->z, NUM_VECTORS);
    }
}

/* What a step of SGD does to a vector of columns: a batch's first gradient finds the velocity as the
 * step before left it, and after its last one the weights move. Biases are not penalized. */
typedef struct {
    VECTOR momentum, weight_decay, l1, rate;
    int begins, decays, has_l1, ends;
} NAME(Step);

INLINE NAME(Step) NAME(step_of)(const NAME(Epoch) * e, const REAL *coefficients, int begins,
                                int ends) {
    const int64_t N = e->num_columns;
    return (NAME(Step)){NAME(load)(coefficients),         NAME(load)(coefficients + N),
                        NAME(load)(coefficients + 2 * N), NAME(load)(coefficients + 3 * N),
                        begins, e->weight_decay != NULL, e->l1 != NULL, ends};
}

INLINE void NAME(move)(const NAME(Step) * step, VECTOR gradient, int is_penalized, REAL *weights,
                       REAL *velocity) {
    VECTOR w = NAME(load)(weights), moved = NAME(load)(velocity);
    if (step->begins) {
        moved *= step->momentum;
        /* Rounded here: of `a * b + c * d` a compiler may fuse either product with the sum, here this
         * one and there the other, and a trial's bits would depend on where its column stands. */
        OPAQUE(moved);
        if (is_penalized && step->decays) moved += step->weight_decay * w;
        if (is_penalized && step->has_l1) /* comparisons give -1 where they hold */
            moved += step->l1 * __builtin_convertvector((w < 0) - (w > 0), VECTOR);
    }
    moved += gradient;
    NAME(store)(velocity, moved);
    if (step->ends) NAME(store)(weights, w - step->rate * moved);
}

/* The gradient of `num` rows of one panel of weights, and what SGD does with it. */
INLINE void NAME(backward_block)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t rows,
                                 int64_t k, int64_t column, int begins, int ends,
                                 const int64_t num, const int64_t vectors) {
    const int64_t K = e->num_features + 1, z_stride = e->num_columns + PANEL;
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
    for (int64_t v = 0; v < vectors; v++) {
        const NAME(Step) step =
            NAME(step_of)(e, s->coefficients + column + v * LANES, begins, ends);
        for (int64_t i = 0; i < num; i++)
            NAME(move)(&step, sums[i][v], k + i < e->num_features,
                       e->weights + at + i * PANEL + v * LANES,
                       e->velocity + at + i * PANEL + v * LANES);
    }
}

INLINE void NAME(backward_panel)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t rows,
                                 int64_t column, int begins, int ends, const int64_t vectors) {
    const int64_t K = e->num_features + 1;
    int64_t k = 0;
#define WEIGHTS(num)                                                                          \
    for (; k + (num) <= K; k += (num))                                                        \
        NAME(backward_block)(e, s, rows, k, column, begins, ends, num, vectors);
    WEIGHTS(BLOCK(vectors))
    if (BLOCK(vectors) > 4) { WEIGHTS(4) }
    if (BLOCK(vectors) > 2) { WEIGHTS(2) }
    WEIGHTS(1)
#undef WEIGHTS
}

/* The gradients of panels side by side, a word of pixels at a time, and what SGD does with them. */
static void NAME(backward_lit)(const NAME(Epoch) * e, const NAME(Scratch) * s, int begins,
                               int ends, NAME(Side) side) {
    const int64_t D = e->num_features, K = D + 1, length = side.panels * PANEL;
    for (int64_t first = 0; first < K; first += WORD) {
        const int64_t num = K - first < WORD ? K - first : WORD;
        memset(s->side, 0, sizeof(REAL) * (size_t)(num * length));
        for (int64_t panel = 0; panel < side.panels; panel++) { /* what sums are for is fetched */
            const int64_t at = (side.column + panel * PANEL) * K + first * PANEL;
            for (int64_t k = 0; k < num; k++) {
                __builtin_prefetch(e->velocity + at + k * PANEL, 1, 2);
                __builtin_prefetch(e->weights + at + k * PANEL, 1, 2);
            }
        }
        const NAME(Sums) of = {.num = num,
                               .lit = s->lit_by + first,
                               .lit_step = 1,
                               .factors = s->x + first,
                               .factors_row_step = 1,
                               .factors_step = NAME(row_stride)(D),
                               .others = s->z + side.column,
                               .others_step = e->num_columns + PANEL,
                               .sums = s->side,
                               .sums_step = length};
        NAME(adds)[side.width](&of);
        for (int64_t v = 0; v < side.width; v++) {
            const int64_t column = side.column + v * LANES;
            const int64_t at = column / PANEL * PANEL * K + first * PANEL + column % PANEL;
            const NAME(Step) step = NAME(step_of)(e, s->coefficients + column, begins, ends);
            for (int64_t k = 0; k < num; k++)
                NAME(move)(&step, NAME(load)(s->side + k * length + v * LANES), first + k < D,
                           e->weights + at + k * PANEL, e->velocity + at + k * PANEL);
        }
    }
}

static void NAME(backward)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t rows,
                           int begins, int ends) {
    if (e->skips_zeros) {
        NAME(turn_lit)(e->num_features, rows, s);
        FOR_SIDES(side, e) NAME(backward_lit)(e, s, begins, ends, side);
        return;
    }
    for (int64_t column = 0; column < e->num_columns; column += PANEL) {
        if (NAME(is_half)(e, column)) NAME(backward_panel)(e, s, rows, column, begins, ends, HALF);
        else NAME(backward_panel)(e, s, rows, column, begins, ends, NUM_VECTORS);
    }
}

/* exp, for arguments that are not positive; NaN stays NaN. */
static void EXP(REAL *values, int64_t num) {
    if (sizeof(REAL) == sizeof(double)) {
        for (int64_t i = 0; i < num; i++) values[i] = (REAL)exp((double)values[i]);
        return;
    }
    /* Cephes' expf: 2^n times a polynomial in the rest, within 2 units in the last place. */
    float *x = (float *)values;
    for (int64_t i = 0; i < num; i++) {
        float value = x[i] < -87.0f ? -87.0f : x[i];
        float shifted = value * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: rounds to n */
        int32_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        float n = shifted - 12582912.0f;
        float rest = (value - n * 0.693359375f) + n * 2.12194440e-4f;
        float sum = 1.9875691500e-4f;
        sum = sum * rest + 1.3981999507e-3f;
        sum = sum * rest + 8.3334519073e-3f;
        sum = sum * rest + 4.1665795894e-2f;
        sum = sum * rest + 1.6666665459e-1f;
        sum = sum * rest + 5.0000001201e-1f;
        sum = sum * rest * rest + rest + 1.0f;
        int32_t scale = (bits + 127) << 23; /* the low bits of `shifted` hold n */
        float power;
        memcpy(&power, &scale, sizeof power);
        x[i] = sum * power;
    }
}

/* Copy a slice's logits from z, class by class within a row, to row by row within a class. */
static void NAME(by_class)(const REAL *z, int64_t z_stride, int64_t rows, int64_t C, int64_t P,
                           REAL *out) {
    for (int64_t c = 0; c < C; c++)
        for (int64_t b = 0; b < rows; b++)
            for (int64_t p = 0; p < P; p++) *out++ = z[b * z_stride + c * P + p];
}

static void NAME(by_row)(const REAL *from, int64_t z_stride, int64_t rows, int64_t C, int64_t P,
                         REAL *z) {
    for (int64_t c = 0; c < C; c++)
        for (int64_t b = 0; b < rows; b++)
            for (int64_t p = 0; p < P; p++) z[b * z_stride + c * P + p] = *from++;
}

/* Tally cross-entropy and right answers of rows; turn logits, (C, rows * P), into the loss's gradient
 * by them. */
static void NAME(softmax_rows)(const NAME(Epoch) * e, REAL *z, int64_t first, int64_t rows,
                               const REAL *loss_weights, REAL *of_lane) {
    const int64_t C = e->num_classes, P = e->num_trials, L = rows * P;
    REAL *largest = of_lane, *best = of_lane + L, *total = of_lane + 2 * L;
    REAL *of_label = of_lane + 3 * L;
#define LABEL(b) (e->labels[e->order ? e->order[first + (b)] : first + (b)])
    for (int64_t l = 0; l < L; l++) largest[l] = z[l], best[l] = 0;
    for (int64_t c = 1; c < C; c++) {
        const REAL *of_class = z + c * L;
        for (int64_t l = 0; l < L; l++) {
            best[l] = of_class[l] > largest[l] ? (REAL)c : best[l];
            largest[l] = of_class[l] > largest[l] ? of_class[l] : largest[l];
        }
    }
    for (int64_t c = 0; c < C; c++)
        for (int64_t l = 0; l < L; l++) z[c * L + l] -= largest[l];
    for (int64_t b = 0; b < rows; b++)
        memcpy(of_label + b * P, z + LABEL(b) * L + b * P, sizeof(REAL) * (size_t)P);
    EXP(z, C * L);
    for (int64_t l = 0; l < L; l++) total[l] = 0;
    for (int64_t c = 0; c < C; c++)
        for (int64_t l = 0; l < L; l++) total[l] += z[c * L + l];
    for (int64_t b = 0, l = 0; b < rows; b++)
        for (int64_t p = 0; p < P; p++, l++) {
            e->loss[p] += (sizeof(REAL) == 4 ? (double)logf((float)total[l]) : log(total[l])) -
                          (double)of_label[l];
            e->num_correct[p] += best[l] == (REAL)LABEL(b);
        }
    if (!loss_weights) return;
    /* The residual, weight * (softmax - one-hot): Murphy 2022, equation 10.60. */
    for (int64_t b = 0; b < rows; b++)
        for (int64_t p = 0; p < P; p++) total[b * P + p] = loss_weights[p] / total[b * P + p];
    for (int64_t c = 0; c < C; c++)
        for (int64_t l = 0; l < L; l++) z[c * L + l] *= total[l];
    for (int64_t b = 0; b < rows; b++)
        for (int64_t p = 0; p < P; p++) z[LABEL(b) * L + b * P + p] -= loss_weights[p];
#undef LABEL
}

/* The same of a whole slice: row by row where trials alone fill the loops, else all rows at once. */
static void NAME(softmax)(const NAME(Epoch) * e, const NAME(Scratch) * s, int64_t first,
                          int64_t rows, const REAL *loss_weights) {
    const int64_t C = e->num_classes, P = e->num_trials, z_stride = e->num_columns + PANEL;
    if (P < NARROW) {
        NAME(by_class)(s->z, z_stride, rows, C, P, s->by_class);
        NAME(softmax_rows)(e, s->by_class, first, rows, loss_weights, s->of_lane);
        NAME(by_row)(s->by_class, z_stride, rows, C, P, s->z);
    } else {
        for (int64_t b = 0; b < rows; b++)
            NAME(softmax_rows)(e, s->z + b * z_stride, first + b, 1, loss_weights, s->of_lane);
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

/* Reals of scratch space. */
int64_t NAME(scratch_size)(int64_t num_features, int64_t num_classes, int64_t num_trials,
                           int64_t num_columns) {
    NAME(Scratch) parts;
    return NAME(divide)(NULL, num_features, num_classes, num_trials, num_columns, &parts);
}

void NAME(train_epoch)(const NAME(Epoch) * e) {
    const int64_t P = e->num_trials, N = e->num_columns;
    NAME(Scratch) s;
    NAME(divide)(e->scratch, e->num_features, e->num_classes, P, N, &s);
    const unsigned before = flush_denormals();
    for (int64_t first = 0, step = 0; first < e->num_images; first += e->num_rows, step++) {
        const int64_t end = first + e->num_rows < e->num_images ? first + e->num_rows
                                                                 : e->num_images;
#define ROW(table, stride) ((table) ? (table) + step * (stride) : NULL)
        NAME(widen)(e, ROW(e->momentum, e->momentum_stride), 0, s.coefficients);
        NAME(widen)(e, ROW(e->weight_decay, e->weight_decay_stride), 0, s.coefficients + N);
        NAME(widen)(e, ROW(e->l1, e->l1_stride), 0, s.coefficients + 2 * N);
        NAME(widen)(e, ROW(e->rates, P), 0, s.coefficients + 3 * N);
#undef ROW
        for (int64_t slice = first; slice < end; slice += MAX_ROWS) {
            const int64_t rows = end - slice < MAX_ROWS ? end - slice : MAX_ROWS;
            NAME(gather)(e, slice, rows, &s);
            NAME(forward)(e, &s, rows);
            NAME(softmax)(e, &s, slice, rows, e->loss_weights + step * P);
            NAME(backward)(e, &s, rows, slice == first, slice + rows == end);
        }
    }
    restore_denormals(before);
}

void NAME(evaluate)(const NAME(Epoch) * e) {
    NAME(Scratch) s;
    NAME(divide)(e->scratch, e->num_features, e->num_classes, e->num_trials, e->num_columns, &s);
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
#undef WIDTHS
#undef FOR_SIDES
#undef VECTOR
#endif
