// What lies between the matrix products of a Mamba block: convolution and SiLU, and the selective scan with its gate.
//
//     v = x' or conv(x');  s = silu(v)
//     low, B, C = s x_proj;  d = softplus(low dt_proj + bias)
//     h_t = exp(d A) h_(t-1) + d s B;  y = (C h + D s) silu(z)
//
// The scan is that of scan.cpp, whose head has its adjoint, for short sequences from the zero state: the states of a few
// n are followed forth and back through all tokens before the next few are, so that what they need stays in the first
// level of cache. The small product with dt_proj is part of it, and so are the sums over channels that its gradient
// and those of B and C are. Sums over the batch are left to the caller, row by row, so that their order is fixed.
//
// Layouts: xz (b, l, 2e), of which x' is the first half and z the second; s, y (b, l, e); p = [low, B, C] (b, l, r + 2n);
// A (e, n), negative; dt (e, r); bias, D (e); conv (e, k) and its bias (e), null without a convolution.
// Gradients: dxz, dp like these; ds and that of y (l, e), of one row; dconv (b, k + 1, e); dscan (b, n + r + 2, e): of A, dt, bias and D.

#pragma once

#include "../scan/vector.h"

namespace {

#if defined(__AVX512F__)
constexpr int STATES = 4;  // followed at once, as registers allow
#else
constexpr int STATES = 2;
#endif

// 2^(x y), where that is no smaller than the least normal number. Steps are few and do not wait for one another, since so
// many powers are computed that what counts is how many of them are under way at once; scan.cpp's exp2 takes any number.
template <class T> struct Power {
    static constexpr int SHIFT = Traits<T>::mantissa - log2(TABLE<T>), LAST = degree<T>() == 4 ? 3 : degree<T>();
    Int<T> table;

    Power() {
        static constexpr Powers<T> powers;
        std::memcpy(&table, powers.of, sizeof table);
        for (int i = 1; i < TABLE<T>; ++i) table[i] -= uint64_t(i) << SHIFT;  // which the bits of k bring along
    }
    static constexpr double coefficient(int j) {  // of 2^r; r^4, where it would be the last, is nearly 2 (sqrt(2) - 1) R^2 r^2
        constexpr double R = 0.5 / TABLE<T>;
        return taylor(j) + (LAST < degree<T>() && j == 2 ? 0.8284271247461903 * R * R * taylor(4) : 0);
    }
    Vec<T> operator()(Vec<T> x, Vec<T> y) const {
        const Vec<T> shift = all<T>(1.5 * double(int64_t(1) << SHIFT));
        const Vec<T> k = x * y + shift, r = x * y - (k - shift);
        const Vec<T> t = (Vec<T>)((Int<T>)pick<T>((Vec<T>)table, (Int<T>)k) + ((Int<T>)k << SHIFT));
        Vec<T> p = all<T>(coefficient(LAST));
#pragma GCC unroll 16
        for (int j = LAST - 1; j > 0; --j) p = p * r + T(coefficient(j));
        return t + t * r * p;
    }
};
template <class T> inline Vec<T> lesser(Vec<T> x, Vec<T> y) { return x > y ? y : x; }  // x, if one is not a number
template <class T> constexpr T DEEPEST = T(Traits<T>::top - 2);  // powers of 2 below minus this are cut off there

// Convolution and SiLU, the channels of one register in one row.
template <class T> struct Branch {
    int64_t l, e, k;
    const T *xz, *conv, *bias;

    int64_t at(int64_t row, int64_t t, int64_t c) const { return (row * l + t) * e + c; }
    Vec<T> tap(int64_t j, int64_t c, int64_t lanes) const {
        Vec<T> v{};
        for (int64_t i = 0; i < lanes; ++i) v[i] = conv[(c + i) * k + j];
        return v;
    }
    // x (k - 1 + l), v (l); start (k - 1, e), the inputs before the first, which are zero if it is null
    void filter(int64_t row, int64_t c, int64_t lanes, Vec<T>* x, Vec<T>* v, const T* start = nullptr) const {
        for (int64_t t = 0; t < k - 1; ++t) x[t] = start ? load(start + t * e + c, lanes) : Vec<T>{};
        for (int64_t t = 0; t < l; ++t) {
            x[k - 1 + t] = load(xz + 2 * at(row, t, 0) + c, lanes);
            v[t] = conv ? load(bias + c, lanes) : x[t];
        }
        for (int64_t j = 0; conv && j < k; ++j) {
            const Vec<T> weight = tap(j, c, lanes);
            for (int64_t t = 0; t < l; ++t) v[t] += weight * x[t + j];
        }
    }
    void forward(int64_t row, int64_t c, Vec<T>* x, Vec<T>* v, T* s, const T* start = nullptr, T* last = nullptr) const {
        const int64_t lanes = std::min<int64_t>(W<T>, e - c);
        filter(row, c, lanes, x, v, start);
        for (int64_t t = 0; last && t < k - 1; ++t) store(last + t * e + c, x[l + t], lanes);
        for (int64_t t = 0; t < l; ++t) store(s + at(row, t, c), v[t] * sigmoid<T>(v[t]), lanes);
    }
    void backward(int64_t row, int64_t c, Vec<T>* x, Vec<T>* v, const T* ds, T* dxz, T* dconv) const {
        const int64_t lanes = std::min<int64_t>(W<T>, e - c);
        filter(row, c, lanes, x, v);
        Vec<T> total{};
        for (int64_t t = 0; t < l; ++t) {  // v becomes its gradient
            const Vec<T> open = sigmoid<T>(v[t]);
            v[t] = load(ds + t * e + c, lanes) * open * (T(1) + v[t] * (T(1) - open));
            total += v[t];
        }
        if (!conv) {
            for (int64_t t = 0; t < l; ++t) store(dxz + 2 * at(row, t, 0) + c, v[t], lanes);
            return;
        }
        store(dconv + (row * (k + 1) + k) * e + c, total, lanes);
        for (int64_t j = 0; j < k; ++j) {
            total = Vec<T>{};
            for (int64_t t = 0; t < l; ++t) total += v[t] * x[t + j];
            store(dconv + (row * (k + 1) + j) * e + c, total, lanes);
        }
        for (int64_t t = 0; t < l; ++t) {
            Vec<T> dx{};
            for (int64_t j = std::max<int64_t>(0, k - l + t); j < k; ++j) dx += tap(j, c, lanes) * v[t + k - 1 - j];
            store(dxz + 2 * at(row, t, 0) + c, dx, lanes);
        }
    }
};

template <class T> struct Selection {
    int64_t l, e, n, r;
    const T *xz, *s, *p;
    std::vector<Vec<T>> a, dt, bias, skip;  // the weights, for each register of channels: (n), (r), 1, 1
    std::vector<Vec<T>> steepest;  // the least of a
    const Power<T> power;

    Selection(int64_t l, int64_t e, int64_t n, int64_t r, const T* xz, const T* s, const T* p, const T* A, const T* dtw, const T* b, const T* D)
        : l(l), e(e), n(n), r(r), xz(xz), s(s), p(p) {
        for (int64_t c = 0; c < e; c += W<T>) {
            const int64_t lanes = std::min<int64_t>(W<T>, e - c);
            columns(A + c * n, lanes, n, T(1 / LN2), a);
            columns(dtw + c * r, lanes, r, T(1), dt);
            bias.push_back(load(b + c, lanes)), skip.push_back(load(D + c, lanes));
            steepest.push_back(Vec<T>{});
            for (int64_t j = 0; j < n; ++j) steepest.back() = lesser<T>(a[c / W<T> * n + j], steepest.back());
        }
    }
    static void columns(const T* from, int64_t lanes, int64_t count, T scale, std::vector<Vec<T>>& to) {
        for (int64_t j = 0; j < count; ++j) {
            Vec<T> v{};
            for (int64_t i = 0; i < lanes; ++i) v[i] = from[i * count + j] * scale;
            to.push_back(v);
        }
    }
    int64_t width() const { return r + 2 * n; }
    const T* low(int64_t row, int64_t t) const { return p + (row * l + t) * width(); }
};

// One register of channels in one row at a time; arrays over tokens.
template <class T> struct Tokens {
    const Selection<T>& own;
    std::vector<Vec<T>> x, d, drive, y, slope, dv, dy, open, ddrive, dlog, states, decays, sums;
    int64_t row = 0, block = 0, c = 0, lanes = 0;

    Tokens(const Selection<T>& own, bool back) : own(own), x(own.l), d(own.l), drive(own.l), y(own.l) {
        if (!back) return;
        for (auto* each : {&slope, &dv, &dy, &open, &ddrive, &dlog}) each->resize(own.l);
        states.resize((own.l + 1) * STATES), decays.resize(own.l * STATES), sums.resize(own.l * own.width());
    }
    int64_t at(int64_t t) const { return (row * own.l + t) * own.e + c; }
    const T* gate(int64_t t) const { return own.xz + 2 * (row * own.l + t) * own.e + own.e + c; }
    void place(int64_t row_, int64_t block_) {
        row = row_, block = block_, c = block * W<T>, lanes = std::min<int64_t>(W<T>, own.e - c);
    }

    // Step sizes and what they let in; BACK also wants the slope of softplus. In short loops, so that many tokens are under
    // way at once: log(1 + q) = 2 artanh(q / (2 + q)) with q = exp(-|x|), as in softplus of vector.h.
    template <bool BACK> void inputs() {
        const int64_t l = own.l, r = own.r, width = own.width();
        const Vec<T> *dt = own.dt.data() + block * r, start = own.bias[block], skip = own.skip[block];
        const Power<T> power = own.power;
        const T *low = own.low(row, 0), *from = own.s + at(0);
        Vec<T> *raw = drive.data(), *q = y.data();  // for the time being
        for (int64_t t = 0; t < l; ++t) {
            Vec<T> sum = start;
            for (int64_t i = 0; i < r; ++i) sum += dt[i] * low[t * width + i];
            raw[t] = sum;
        }
        for (int64_t t = 0; t < l; ++t) {
            const Vec<T> size = raw[t] > T(0) ? raw[t] : -raw[t];
            q[t] = power(lesser<T>(size, all<T>(DEEPEST<T> * LN2)), all<T>(-1 / LN2));
            if (BACK) slope[t] = raw[t] <= T(20) ? (raw[t] > T(0) ? all<T>(1) : q[t]) / (T(1) + q[t]) : all<T>(1);
            x[t] = q[t] / (T(2) + q[t]);
        }
        for (int64_t t = 0; t < l; ++t) {
            const Vec<T> ratio = x[t], square = ratio * ratio, fourth = square * square;
            Vec<T> even{}, odd{};
#pragma GCC unroll 20
            for (int j = Traits<T>::series - 1; j >= 0; --j) {
                Vec<T>& half = j % 2 ? odd : even;
                half = half * fourth + T(2.0 / (2 * j + 1));
            }
            const Vec<T> positive = raw[t] > T(0) ? raw[t] : all<T>(0);
            d[t] = raw[t] <= T(20) ? positive + ratio * (even + square * odd) : raw[t];
        }
        for (int64_t t = 0; t < l; ++t) {
            x[t] = load(from + t * own.e, lanes);
            drive[t] = d[t] * x[t];
            y[t] = skip * x[t];
        }
    }
    // J states through the tokens from `first` to before `end`, from the states at `start` (n, e) to those at `last`,
    // or from zero, or to be forgotten, where these are null
    template <int J, bool KEEP, bool CUT> void follow(int64_t j, int64_t first, int64_t end, const T* start, T* last) {
        const Vec<T>* a = own.a.data() + block * own.n + j;
        Vec<T> h[J] = {}, aj[J];
        for (int i = 0; i < J; ++i) aj[i] = a[i];
        for (int i = 0; start && i < J; ++i) h[i] = load(start + (j + i) * own.e + c, lanes);
        for (int i = 0; KEEP && i < J; ++i) states[i] = h[i];
        for (int64_t t = first; t < end; ++t) {
            const T *B = own.low(row, t) + own.r + j, *C = B + own.n;
            const Vec<T> dt = d[t], in = drive[t];
            Vec<T> out = y[t];
#pragma GCC unroll 8
            for (int i = 0; i < J; ++i) {
                const Vec<T> decay = CUT ? own.power(lesser<T>(-dt * aj[i], all<T>(DEEPEST<T>)), all<T>(-1)) : own.power(dt, aj[i]);
                h[i] = decay * h[i] + in * B[i];
                out += h[i] * C[i];
                if (KEEP) decays[t * J + i] = decay, states[(t + 1) * J + i] = h[i];
            }
            y[t] = out;
        }
        for (int i = 0; last && i < J; ++i) store(last + (j + i) * own.e + c, h[i], lanes);
    }
    bool is_deep() const {  // whether some state decays by more than a power can tell
        Vec<T> most{};
        for (int64_t t = 0; t < own.l; ++t) most = d[t] > most ? d[t] : most;
        most *= own.steepest[block];
        for (int i = 0; i < W<T>; ++i)
            if (most[i] < -DEEPEST<T>) return true;
        return false;
    }
    template <int J, bool CUT> void all_states(int64_t first, int64_t end, const T* start, T* last) {
        int64_t j = 0;
        for (; j + J <= own.n; j += J) follow<J, false, CUT>(j, first, end, start, last);
        for (; j < own.n; ++j) follow<1, false, CUT>(j, first, end, start, last);
    }
    void gated(int64_t t, T* out) const {
        const Vec<T> z = load(gate(t), lanes);
        store(out + at(t), y[t] * z * sigmoid<T>(z), lanes);
    }
    void forward(T* out) {
        inputs<false>();
        is_deep() ? all_states<2 * STATES, true>(0, own.l, nullptr, nullptr) : all_states<2 * STATES, false>(0, own.l, nullptr, nullptr);
        for (int64_t t = 0; t < own.l; ++t) gated(t, out);
    }
    // The tokens of several rows, `count` of each, from states (rows, n, e) to states; y is left for `gated`.
    void advance(int64_t count, const T* start, T* last) {
        inputs<false>();
        const bool deep = is_deep();
        for (int64_t t = 0; t < own.l; t += count) {
            deep ? all_states<STATES, true>(t, t + count, start, last) : all_states<STATES, false>(t, t + count, start, last);
            if (start) start += own.n * own.e;
            if (last) last += own.n * own.e;
        }
    }

    template <int J> void back(int64_t j, T* dA) {
        const Vec<T>* a = own.a.data() + block * own.n + j;
        Vec<T> g[J] = {}, total[J] = {}, h[J];
        for (int i = 0; i < J; ++i) h[i] = states[own.l * J + i];
        for (int64_t t = own.l - 1; t >= 0; --t) {
            const T *B = own.low(row, t) + own.r + j, *C = B + own.n;
            Vec<T>*dB = sums.data() + t * own.width() + own.r + j, *dC = dB + own.n;
            const Vec<T> dyt = dy[t], dt = d[t], in = drive[t];
            Vec<T> din = ddrive[t], dl = dlog[t];
#pragma GCC unroll 8
            for (int i = 0; i < J; ++i) {
                const Vec<T> gt = g[i] + dyt * C[i];
                dC[i] += dyt * h[i];
                dB[i] += gt * in;
                din += gt * B[i];
                g[i] = gt * decays[t * J + i];
                h[i] = states[t * J + i];
                const Vec<T> through = g[i] * h[i];  // dL/d(d A)
                total[i] += through * dt;
                dl += through * a[i];
            }
            ddrive[t] = din, dlog[t] = dl;
        }
        for (int i = 0; i < J; ++i) store(dA + (j + i) * own.e + c, total[i], lanes);
    }
    template <bool CUT> void all_back(T* dA) {
        int64_t j = 0;
        for (; j + STATES <= own.n; j += STATES) follow<STATES, true, CUT>(j, 0, own.l, nullptr, nullptr), back<STATES>(j, dA);
        for (; j < own.n; ++j) follow<1, true, CUT>(j, 0, own.l, nullptr, nullptr), back<1>(j, dA);
    }
    void backward(const T* dout, T* ds, T* dxz, T* dscan) {
        inputs<true>();
        for (int64_t t = 0; t < own.l; ++t) {
            const Vec<T> z = load(gate(t), lanes);
            open[t] = sigmoid<T>(z), dv[t] = load(dout + t * own.e + c, lanes), dy[t] = dv[t] * z * open[t];
            ddrive[t] = dlog[t] = Vec<T>{};
        }
        is_deep() ? all_back<true>(dscan) : all_back<false>(dscan);
        Vec<T> dbias{}, dskip{};
        for (int64_t t = 0; t < own.l; ++t) {
            const Vec<T> z = load(gate(t), lanes);
            store(dxz + 2 * (row * own.l + t) * own.e + own.e + c, dv[t] * y[t] * open[t] * (T(1) + z * (T(1) - open[t])), lanes);
            store(ds + t * own.e + c, ddrive[t] * d[t] + own.skip[block] * dy[t], lanes);
            slope[t] *= ddrive[t] * x[t] + dlog[t] * T(LN2);  // dL/d(low dt_proj + bias)
            dbias += slope[t], dskip += dy[t] * x[t];
        }
        steps(dscan + own.n * own.e);
        store(dscan + (own.n + own.r) * own.e + c, dbias, lanes);
        store(dscan + (own.n + own.r + 1) * own.e + c, dskip, lanes);
    }
    void steps(T* ddt) {  // the gradients of dt_proj and its input
        for (int64_t i = 0; i < own.r; ++i) {
            const Vec<T> weight = own.dt[block * own.r + i];
            Vec<T> total{};
            for (int64_t t = 0; t < own.l; ++t) {
                total += slope[t] * own.low(row, t)[i];
                sums[t * own.width() + i] += slope[t] * weight;
            }
            store(ddt + i * own.e + c, total, lanes);
        }
    }
    void backward_row(int64_t row_, const T* dout, T* ds, T* dxz, T* dp, T* dscan) {
        std::fill(sums.begin(), sums.end(), Vec<T>{});
        for (int64_t i = 0; i * W<T> < own.e; ++i) {
            place(row_, i);
            backward(dout, ds, dxz, dscan + row * (own.n + own.r + 2) * own.e);
        }
        T* to = dp + row * own.l * own.width();
        for (size_t k = 0; k < sums.size(); ++k) to[k] = sum<T>(sums[k]);
    }
};

}  // namespace
