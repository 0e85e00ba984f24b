#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef TAPEOUT_TRACE
void tapeout_trace(const void *data, unsigned long bytes);
#else
#define tapeout_trace(data, bytes)
#endif
typedef struct { int32_t m; int s; } scale_t; /* a factor m / 2^s, 1 <= s <= 62 */
typedef struct { int32_t in, out, low, high; } range_t; /* zero points, and the limits of the result */
typedef struct { int n, h, w, c, oh, ow, oc, kh, kw, sh, sw, dh, dw, ph, pw, group; } window_t;
#define EACH_RESULT for (n = 0; n < k->n; n++) for (i = 0; i < k->oh; i++) for (j = 0; j < k->ow; j++) for (o = 0; o < k->oc; o++)
#define EACH_PLACE for (u = 0; u < k->kh; u++) for (v = 0; v < k->kw; v++)
static inline int8_t limited(int64_t v, range_t r)
{
    return (int8_t)(v < r.low ? r.low : v > r.high ? r.high : v);
}
/* The nearest integer to a / 2^s; >> of a negative number keeps its sign on every compiler for such cores. */
static inline int64_t shifted(int64_t a, int s)
{
    return (a + ((int64_t)1 << (s - 1))) >> s;
}
/* kernel conv: weights O,KH,KW,I/group; the sum stays within 32 bits by the row's bound on the weights */
static void conv(const int8_t *x, const int8_t *f, const int32_t *b, const scale_t *s, int8_t *y, const window_t *k, range_t r)
{
    const int ci = k->c / k->group, co = k->oc / k->group;
    int n, i, j, o, u, v, c;
    EACH_RESULT {
        int32_t sum = b[o];
        EACH_PLACE {
            const int row = i * k->sh - k->ph + u * k->dh, col = j * k->sw - k->pw + v * k->dw;
            const int8_t *p = x + ((n * k->h + row) * k->w + col) * k->c + o / co * ci;
            const int8_t *q = f + ((o * k->kh + u) * k->kw + v) * ci;
            if (row >= 0 && row < k->h && col >= 0 && col < k->w) for (c = 0; c < ci; c++) sum += (p[c] - r.in) * q[c];
        }
        *y++ = limited(r.out + shifted((int64_t)sum * s[o].m, s[o].s), r);
    }
}
/* kernel pool: kind 0, the mean of what lies inside; 1, of the whole window, padding counting as zeros; 2, the largest */
static void pool(const int8_t *x, int8_t *y, const window_t *k, scale_t s, int kind, range_t r)
{
    int n, i, j, o, u, v;
    EACH_RESULT {
        int64_t sum = 0, count = 0;
        int most = -128;
        EACH_PLACE {
            const int row = i * k->sh - k->ph + u * k->dh, col = j * k->sw - k->pw + v * k->dw;
            const int in = row >= 0 && row < k->h && col >= 0 && col < k->w;
            const int a = in ? x[((n * k->h + row) * k->w + col) * k->c + o] : r.in;
            sum += a - r.in, count += in || kind == 1;
            if (in && a > most) most = a;
        }
        *y++ = limited(kind == 2 ? most : r.out + shifted(2 * sum * s.m / (count ? count : 1), s.s + 1), r);
    }
}
/* kernel add: both factors over one power of two, so that the sum is rounded once; with 0 as one, a new scale */
static void add(const int8_t *a, const int8_t *b, int8_t *y, long count, int32_t ma, int32_t mb, int s, int32_t zb, range_t r)
{
    for (; count > 0; count--)
        *y++ = limited(r.out + shifted((int64_t)(*a++ - r.in) * ma + (int64_t)(*b++ - zb) * mb, s), r);
}
/* kernel softmax: along the last axis, in steps of 1/256 from -128 */
static void softmax(const int8_t *x, int8_t *y, long rows, int depth, float scale, range_t r)
{
    int i;
    for (; rows > 0; rows--, x += depth, y += depth) {
        float sum = 0, most = -128;
        for (i = 0; i < depth; i++) most = fmaxf(most, x[i]);
        for (i = 0; i < depth; i++) sum += expf((x[i] - most) * scale);
        for (i = 0; i < depth; i++) y[i] = limited(lrintf(expf((x[i] - most) * scale) / sum * 256) - 128, r);
    }
}
/* kernel transpose: d, the sizes of the result; t, what each of its axes strides over in x */
static void transpose(const int8_t *x, int8_t *y, const int *d, const int *t)
{
    int i, j, k, l;
    for (i = 0; i < d[0]; i++) for (j = 0; j < d[1]; j++) for (k = 0; k < d[2]; k++) for (l = 0; l < d[3]; l++)
        *y++ = x[i * t[0] + j * t[1] + k * t[2] + l * t[3]];
}
/* kernel quantize */
static void quantize(const float *x, int8_t *y, long count, float scale, range_t r)
{
    for (; count > 0; count--) *y++ = limited(r.out + (int64_t)rintf(fminf(fmaxf(*x++ / scale, -1e6f), 1e6f)), r);
}
/* kernel dequantize */
static void dequantize(const int8_t *x, float *y, long count, float scale, range_t r)
{
    for (; count > 0; count--) *y++ = (float)(*x++ - r.in) * scale;
}
