// The library in C++: for each module of rtl/ a process of the same name and parameters, for one inference a call.
//
// P is a struct of the parameters; P::N is the number of beats that the process writes. With TAPEOUT_AP_TYPES integers
// have the widths that they are proven to need (the vendor's ap_int.h), else those of the machine.
#pragma once
#include <cstdint>
#include <type_traits>
#if defined(__VITIS_HLS__) || defined(__SYNTHESIS__)
#define TAPEOUT_AP_TYPES
#include <hls_stream.h>
#else
#include "stream.h"
#endif
#ifdef TAPEOUT_AP_TYPES
#include <ap_int.h>
#endif

namespace tapeout {

#ifdef TAPEOUT_AP_TYPES
template <int BITS>
using Integer = ap_int<BITS>;
#else
template <int BITS>
using Integer = typename std::conditional<
    BITS <= 32, int32_t, typename std::conditional<BITS <= 64, int64_t, __int128>::type>::type;
#endif

typedef int8_t Code;

template <class T, int LANES>
struct Beat {
    T e[LANES];
};
template <int LANES>
using Codes = hls::stream<Beat<Code, LANES>>;
template <int BITS, int LANES>
using Sums = hls::stream<Beat<Integer<BITS>, LANES>>;

struct Scale {
    int64_t bias, multiplier, offset;  // the multiplier of a power of two is its exponent
    int32_t table;                     // one more than the number of the channel's table, or 0
};

template <class P, class T>
T clipped(T value) {
    return value < P::LOW ? T(P::LOW) : value > P::HIGH ? T(P::HIGH) : value;
}

template <class P>
void window(Codes<P::LANES>& in, Codes<P::LANES>& out) {
    static Beat<Code, P::LANES> ring[P::ROWS][P::WIDTH * P::GROUPS];
    Beat<Code, P::LANES> fill;
    for (int l = 0; l < P::LANES; l++) fill.e[l] = P::FILL;
    int loaded = 0;
    for (int oy = 0; oy < P::OUT_H; oy++) {
        const int top = oy * P::STRIDE_H - P::TOP;
        const int bottom = top + (P::KERNEL_H - 1) * P::DILATION_H;
        while (loaded < P::HEIGHT && loaded <= bottom) {
            for (int i = 0; i < P::WIDTH * P::GROUPS; i++) {
#pragma HLS PIPELINE II = 1
                ring[loaded % P::ROWS][i] = in.read();
            }
            loaded++;
        }
        for (int ox = 0; ox < P::OUT_W; ox++)
            for (int outer = 0; outer < (P::GROUPWISE ? P::GROUPS : P::REPEAT); outer++)
                for (int ky = 0; ky < P::KERNEL_H; ky++)
                    for (int kx = 0; kx < P::KERNEL_W; kx++)
                        for (int inner = 0; inner < (P::GROUPWISE ? 1 : P::GROUPS); inner++) {
#pragma HLS PIPELINE II = 1
                            const int y = top + ky * P::DILATION_H;
                            const int x = ox * P::STRIDE_W - P::LEFT + kx * P::DILATION_W;
                            const int group = P::GROUPWISE ? outer : inner;
                            const bool inside = y >= 0 && y < P::HEIGHT && x >= 0 && x < P::WIDTH;
                            out.write(inside ? ring[y % P::ROWS][x * P::GROUPS + group] : fill);
                        }
    }
    for (; loaded < P::HEIGHT; loaded++)  // rows that no window reaches
        for (int i = 0; i < P::WIDTH * P::GROUPS; i++) in.read();
}

template <class P>
void mac(Codes<P::LANEWISE ? P::PE : P::SIMD>& in, Sums<P::SUM_BITS, P::PE>& out,
         const Code (&weights)[P::FOLDS * P::BEATS][P::PE * P::SIMD]) {
#pragma HLS ARRAY_PARTITION variable = weights complete dim = 2
    Beat<Integer<P::SUM_BITS>, P::PE> sums;
    for (int n = 0, place = 0; n < P::N; n++) {
        for (int beat = 0; beat < P::BEATS; beat++) {
#pragma HLS PIPELINE II = 1
            const auto x = in.read();
            for (int p = 0; p < P::PE; p++) {
                Integer<P::SUM_BITS> sum = beat ? sums.e[p] : Integer<P::SUM_BITS>(0);
                for (int s = 0; s < P::SIMD; s++)
                    sum += x.e[P::LANEWISE ? p : s] * weights[place][p * P::SIMD + s];
                sums.e[p] = sum;
            }
            place = place == P::FOLDS * P::BEATS - 1 ? 0 : place + 1;
        }
        out.write(sums);
    }
}

template <class P>
void mac(Codes<P::PE>& in, Sums<P::SUM_BITS, P::PE>& out) {
    Beat<Integer<P::SUM_BITS>, P::PE> sums;
    for (int n = 0; n < P::N; n++) {
        for (int beat = 0; beat < P::BEATS; beat++) {
#pragma HLS PIPELINE II = 1
            const auto x = in.read();
            for (int p = 0; p < P::PE; p++)
                sums.e[p] = (beat ? sums.e[p] : Integer<P::SUM_BITS>(0)) + x.e[p];
        }
        out.write(sums);
    }
}

template <class P>
void requantize(Sums<P::SUM_BITS, P::LANES>& in, Codes<P::LANES>& out,
                const Scale (&scales)[P::GROUPS * P::LANES], const int64_t* tables = nullptr) {
    for (int n = 0, group = 0; n < P::N; n++) {
#pragma HLS PIPELINE II = 1
        const auto sums = in.read();
        Beat<Code, P::LANES> codes;
        for (int l = 0; l < P::LANES; l++) {
            const Scale scale = scales[group * P::LANES + l];
            const Integer<P::SUM_BITS> sum = sums.e[l] + Integer<P::SUM_BITS>(scale.bias);
            const Integer<P::TOTAL_BITS> wide = sum;
            const Integer<P::TOTAL_BITS> scaled =
                P::POWERS ? Integer<P::TOTAL_BITS>(wide << int(scale.multiplier))
                          : Integer<P::TOTAL_BITS>(wide * scale.multiplier);
            const int tie = P::EVEN ? int(scaled >> P::SHIFT) & 1 : 0;
            const Integer<P::TOTAL_BITS> total = scaled + scale.offset + tie;
            int code = int(clipped<P>(Integer<P::TOTAL_BITS>(total >> P::SHIFT)));
            if (P::TABLES && scale.table && code < P::HIGH)
                code += sum >= tables[(scale.table - 1) * 256 + code - P::LOW];
            codes.e[l] = Code(code);
        }
        out.write(codes);
        group = group == P::GROUPS - 1 ? 0 : group + 1;
    }
}

template <class P>
void add(Codes<P::LANES>& a, Codes<P::LANES>& b, Codes<P::LANES>& out) {
    for (int n = 0; n < P::N; n++) {
#pragma HLS PIPELINE II = 1
        const auto x = a.read(), y = b.read();
        Beat<Code, P::LANES> codes;
        for (int l = 0; l < P::LANES; l++) {
            const Integer<P::SUM_BITS> sum = Integer<P::SUM_BITS>(x.e[l]) * P::FACTOR_A +
                                             Integer<P::SUM_BITS>(y.e[l]) * P::FACTOR_B;
            const int tie = P::EVEN ? int((sum + P::START) >> P::SHIFT) & 1 : 0;
            const Integer<P::SUM_BITS> total = sum + P::OFFSET + tie;
            codes.e[l] = Code(clipped<P>(Integer<P::SUM_BITS>(total >> P::SHIFT)));
        }
        out.write(codes);
    }
}

template <class P>
void max(Codes<P::LANES>& in, Codes<P::LANES>& out) {
    Beat<Code, P::LANES> largest;
    for (int n = 0; n < P::N; n++) {
        for (int beat = 0; beat < P::BEATS; beat++) {
#pragma HLS PIPELINE II = 1
            const auto x = in.read();
            for (int l = 0; l < P::LANES; l++)
                if (!beat || x.e[l] > largest.e[l]) largest.e[l] = x.e[l];
        }
        out.write(largest);
    }
}

template <class P>
void channel_sum(Codes<P::LANES>& in, Sums<P::SUM_BITS, P::LANES>& out) {
    Beat<Integer<P::SUM_BITS>, P::LANES> sums[P::GROUPS];
    for (int pixel = 0; pixel < P::PIXELS; pixel++)
        for (int group = 0; group < P::GROUPS; group++) {
#pragma HLS PIPELINE II = 1
            const auto x = in.read();
            for (int l = 0; l < P::LANES; l++)
                sums[group].e[l] = (pixel ? sums[group].e[l] : Integer<P::SUM_BITS>(0)) + x.e[l];
            if (pixel == P::PIXELS - 1) out.write(sums[group]);
        }
}

template <class P>
void lookup(Codes<P::LANES>& in, Codes<P::LANES>& out, const Code (&table)[256][1]) {
    for (int n = 0; n < P::N; n++) {
#pragma HLS PIPELINE II = 1
        auto x = in.read();
        for (int l = 0; l < P::LANES; l++) x.e[l] = table[x.e[l] + 128][0];
        out.write(x);
    }
}

template <class P, class T>
void resize(hls::stream<Beat<T, P::IN>>& in, hls::stream<Beat<T, P::OUT>>& out) {
    Beat<T, P::IN> x;
    Beat<T, P::OUT> y;
    constexpr int TOTAL = P::N * P::OUT, STEP = P::IN < P::OUT ? P::IN : P::OUT;
    for (int i = 0; i < TOTAL; i += STEP) {
#pragma HLS PIPELINE II = 1
        if (i % P::IN == 0) x = in.read();
        for (int l = 0; l < STEP; l++) y.e[(i + l) % P::OUT] = x.e[(i + l) % P::IN];
        if ((i + STEP) % P::OUT == 0) out.write(y);
    }
}

template <class P, class T, class... Readers>
void fork(hls::stream<T>& in, Readers&... readers) {
    for (int n = 0; n < P::N; n++) {
#pragma HLS PIPELINE II = 1
        const T x = in.read();
        const int written[] = {(readers.write(x), 0)...};
        (void)written;
    }
}

template <class P, class T>
void copy(hls::stream<T>& in, hls::stream<T>& out) {
    for (int n = 0; n < P::N; n++) {
#pragma HLS PIPELINE II = 1
        out.write(in.read());
    }
}

}  // namespace tapeout
