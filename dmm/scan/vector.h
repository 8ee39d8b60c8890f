// Numbers in registers: vectors of neighbouring channels, and exp, sigmoid and softplus of them, in float and double.
//
// Included once by each kernel; compilers turn the vectors into whatever registers the processor has.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

namespace {

constexpr double LN2 = 0.693147180559945309417;

template <class T> struct Traits;
template <> struct Traits<float> {
    typedef float V __attribute__((vector_size(BYTES)));
    typedef uint32_t I __attribute__((vector_size(BYTES)));
    static constexpr int mantissa = 23, top = 127, series = 9;
    static constexpr double precision = 3e-8;
};
template <> struct Traits<double> {
    typedef double V __attribute__((vector_size(BYTES)));
    typedef uint64_t I __attribute__((vector_size(BYTES)));
    static constexpr int mantissa = 52, top = 1023, series = 18;
    static constexpr double precision = 1e-17;
};
template <class T> using Vec = typename Traits<T>::V;
template <class T> using Int = typename Traits<T>::I;
template <class T> constexpr int W = BYTES / sizeof(T);
template <class T> inline Vec<T> all(double value) { return Vec<T>{} + T(value); }

#if defined(__AVX2__) && !defined(__clang__)  // a table of powers in one register: clang has no shuffle by variables
template <class T> constexpr int TABLE = W<T>;
template <class T> inline Vec<T> pick(Vec<T> table, Int<T> at) { return __builtin_shuffle(table, at); }
#else
template <class T> constexpr int TABLE = 1;
template <class T> inline Vec<T> pick(Vec<T>, Int<T>) { return all<T>(1); }
#endif

constexpr int log2(int x) { return x == 1 ? 0 : 1 + log2(x / 2); }
constexpr double taylor(int j) { return j == 0 ? 1 : taylor(j - 1) * LN2 / j; }  // of 2^r: ln(2)^j / j!
constexpr double power(double r, int j = 0) { return j == 24 ? 0 : taylor(j) + r * power(r, j + 1); }
template <class T> constexpr int degree() {  // at which the rest of the series is below the precision
    double rest = 1;
    int j = 0;
    for (; rest > Traits<T>::precision; ++j) rest *= LN2 / (2 * TABLE<T>) / (j + 1);
    return j - 1;
}
template <class T> struct Powers {
    alignas(BYTES) T of[W<T>] = {};
    constexpr Powers() { for (int i = 0; i < W<T>; ++i) of[i] = T(power(double(i) / W<T>)); }
};

// 2^x for x = integer + i / TABLE + r: the integer goes into the exponent's bits, 2^(i / TABLE) comes from a table, 2^r
// from a polynomial. Below the smallest normal number it is 0, from 2^127 (2^1023) on infinite.
template <class T> inline Vec<T> exp2(Vec<T> x) {
    constexpr int m = Traits<T>::mantissa, top = Traits<T>::top, fraction = log2(TABLE<T>);
    static constexpr Powers<T> powers;
    Vec<T> table;
    std::memcpy(&table, powers.of, sizeof table);
    const Vec<T> shift = all<T>(1.5 * double(int64_t(1) << (m - fraction)));
    const Vec<T> k = x + shift, r = x - (k - shift);  // adding this number rounds to a multiple of 1 / TABLE
    Vec<T> p = all<T>(taylor(degree<T>()));
#pragma GCC unroll 16
    for (int j = degree<T>() - 1; j > 0; --j) p = p * r + T(taylor(j));
    const Vec<T> t = pick<T>(table, (Int<T>)k), near = t + t * (r * p);
    const Vec<T> y = (Vec<T>)((Int<T>)near + (((Int<T>)k >> fraction) << m));
    return x < T(1 - top) ? all<T>(0) : x > T(top) ? all<T>(std::numeric_limits<T>::infinity()) : y;
}

template <class T> inline Vec<T> sigmoid(Vec<T> x) { return T(1) / (T(1) + exp2<T>(x * T(-1 / LN2))); }

// log(1 + exp(x)), and x itself above 20 as in torch, or if it is not a number, whose bits exp2 would take apart;
// log(1 + q) = 2 artanh(q / (2 + q)) with q = exp(-|x|).
template <class T> inline Vec<T> softplus(Vec<T> x) {
    const Vec<T> q = exp2<T>((x > T(0) ? -x : x) * T(1 / LN2)), s = q / (T(2) + q), s2 = s * s;
    Vec<T> p{};
#pragma GCC unroll 20
    for (int j = Traits<T>::series - 1; j >= 0; --j) p = p * s2 + T(2.0 / (2 * j + 1));
    return x <= T(20) ? (x > T(0) ? x : all<T>(0)) + s * p : x;
}

template <class T> inline Vec<T> load(const T* from, int64_t lanes) {
    Vec<T> v{};
    if (lanes == W<T>) std::memcpy(&v, from, sizeof v);
    else std::memcpy(&v, from, lanes * sizeof(T));
    return v;
}
template <class T> inline void store(T* to, Vec<T> v, int64_t lanes) {
    if (lanes == W<T>) std::memcpy(to, &v, sizeof v);
    else std::memcpy(to, &v, lanes * sizeof(T));
}
template <class T> inline T sum(Vec<T> v) {
    T total = 0;
    for (int w = 0; w < W<T>; ++w) total += v[w];
    return total;
}

}  // namespace
