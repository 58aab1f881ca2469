/* One epoch of softmax regression for P trials at once, on one CPU core.
 *
 * native.py calls this. The trials' weights stand in panels of PANEL columns, (N / PANEL, K, PANEL),
 * K = D + 1 with the bias last; column c * P + p is class c of trial p, and columns past C * P are
 * zero and stay so. A micro-batch of rows is scaled once into a buffer that stays in the second-level
 * cache. The forward product reads each panel once. The gradient's product keeps its sums in
 * registers, so that momentum, penalties and the step are applied there: weights and velocity are
 * read and written once a micro-batch, and no pass over them is left.
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

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define NUM_SUMS 24 /* vectors of running sums that fit into the registers */
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define NUM_SUMS 12
#else
#define VECTOR_BYTES 16
#define NUM_SUMS 12
#endif

#define INLINE static inline __attribute__((always_inline))

/* Take a product as it is rounded: of `a * b + c * d` a compiler may fuse either product with the sum,
 * here this one and there the other, and a trial's bits would depend on where its column stands. */
#ifdef __SSE__
#define ROUNDED(vector) __asm__("" : "+x"(vector))
#else
#define ROUNDED(vector) __asm__("" : "+m"(vector))
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
    parts->x = from;
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

/* Scale a micro-batch's images and put a one behind each. Images come in a random order, which no
 * processor foresees: the one that comes AHEAD images later is fetched now. */
static void NAME(gather)(const NAME(Epoch) * e, int64_t first, int64_t rows, REAL *x) {
    const int64_t D = e->num_features, stride = NAME(row_stride)(D);
    const REAL inverse = 1 / e->pixel_max;
    for (int64_t b = 0; b < rows; b++, x += stride) {
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
        for (int64_t d = 0; d < D; d++) x[d] = NAME(quotient)(image[d], e->pixel_max, inverse);
        x[D] = 1;
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

static void NAME(forward)(const NAME(Epoch) * e, const REAL *x, int64_t rows, REAL *z) {
    for (int64_t column = 0; column < e->num_columns; column += PANEL) {
        if (NAME(is_half)(e, column)) NAME(forward_panel)(e, x, rows, column, z, HALF);
        else NAME(forward_panel)(e, x, rows, column, z, NUM_VECTORS);
    }
}

/* The gradient of `num` rows of one panel of weights, and what SGD does with it. */
INLINE void NAME(backward_block)(const NAME(Epoch) * e, const REAL *x, const REAL *residual,
                                 int64_t rows, int64_t k, int64_t column,
                                 const REAL *coefficients, int begins, int ends,
                                 const int64_t num, const int64_t vectors) {
    const int64_t K = e->num_features + 1, N = e->num_columns, z_stride = N + PANEL;
    const int64_t stride = NAME(row_stride)(e->num_features);
    VECTOR sums[MAX_SUMS][NUM_VECTORS];
    for (int64_t i = 0; i < num; i++) {
        for (int64_t v = 0; v < vectors; v++) sums[i][v] = (VECTOR){0};
        /* What the sums are for is fetched while they are computed. */
        __builtin_prefetch(e->velocity + column * K + (k + i) * PANEL, 1);
        __builtin_prefetch(e->weights + column * K + (k + i) * PANEL, 1);
    }
    for (int64_t b = 0; b < rows; b++) {
        VECTOR r[NUM_VECTORS];
        for (int64_t v = 0; v < vectors; v++)
            r[v] = NAME(load)(residual + b * z_stride + v * LANES);
        __builtin_prefetch(x + b * stride + k + PANEL); /* the next weights' pixels, row by row */
        for (int64_t i = 0; i < num; i++)
            for (int64_t v = 0; v < vectors; v++)
                sums[i][v] += x[b * stride + k + i] * r[v];
    }
    for (int64_t i = 0; i < num; i++) {
        const int penalized = k + i < e->num_features; /* biases are not */
        REAL *weights = e->weights + column * K + (k + i) * PANEL;
        REAL *velocity = e->velocity + column * K + (k + i) * PANEL;
        for (int64_t v = 0; v < vectors; v++) {
            const REAL *of_column = coefficients + column + v * LANES;
            VECTOR moved = NAME(load)(velocity + v * LANES);
            if (begins) {
                moved *= NAME(load)(of_column);
                ROUNDED(moved);
                if (penalized) {
                    const VECTOR w = NAME(load)(weights + v * LANES);
                    if (e->weight_decay) moved += NAME(load)(of_column + N) * w;
                    if (e->l1) /* comparisons give -1 where they hold */
                        moved += NAME(load)(of_column + 2 * N) *
                                 __builtin_convertvector((w < 0) - (w > 0), VECTOR);
                }
            }
            moved += sums[i][v];
            NAME(store)(velocity + v * LANES, moved);
            if (ends)
                NAME(store)(weights + v * LANES, NAME(load)(weights + v * LANES) -
                                                     NAME(load)(of_column + 3 * N) * moved);
        }
    }
}

INLINE void NAME(backward_panel)(const NAME(Epoch) * e, const REAL *x, const REAL *residual,
                                 int64_t rows, int64_t column, const REAL *coefficients,
                                 int begins, int ends, const int64_t vectors) {
    const int64_t K = e->num_features + 1;
    int64_t k = 0;
#define WEIGHTS(num)                                                                          \
    for (; k + (num) <= K; k += (num))                                                        \
        NAME(backward_block)(e, x, residual + column, rows, k, column, coefficients, begins,  \
                             ends, num, vectors);
    WEIGHTS(BLOCK(vectors))
    if (BLOCK(vectors) > 4) { WEIGHTS(4) }
    if (BLOCK(vectors) > 2) { WEIGHTS(2) }
    WEIGHTS(1)
#undef WEIGHTS
}

static void NAME(backward)(const NAME(Epoch) * e, const REAL *x, const REAL *residual,
                           int64_t rows, const REAL *coefficients, int begins, int ends) {
    for (int64_t column = 0; column < e->num_columns; column += PANEL) {
        if (NAME(is_half)(e, column))
            NAME(backward_panel)(e, x, residual, rows, column, coefficients, begins, ends, HALF);
        else
            NAME(backward_panel)(e, x, residual, rows, column, coefficients, begins, ends,
                                 NUM_VECTORS);
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
            NAME(gather)(e, slice, rows, s.x);
            NAME(forward)(e, s.x, rows, s.z);
            NAME(softmax)(e, &s, slice, rows, e->loss_weights + step * P);
            NAME(backward)(e, s.x, s.z, rows, s.coefficients, slice == first, slice + rows == end);
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
        NAME(gather)(e, first, rows, s.x);
        NAME(forward)(e, s.x, rows, s.z);
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
#undef BLOCK
#undef VECTOR
#endif
