// The selective scan on a CPU, forward and backward.
//
//     d = softplus(delta + bias);  h = exp(d A) h + d u B;  y = (C h + D u) silu(z)
//
// A register holds neighbouring channels, and four states of each are followed through a chunk of tokens before the next
// four are: they stay in registers, and what a chunk needs beside them in the first two levels of cache, so that nothing
// of size (b, l, e, n) is written. The forward pass keeps the states before every CHUNK-th token. The backward pass goes
// through the chunks from the last to the first, computes the states of a chunk again, and carries the adjoint
// g_t = dL/dh_t from token to token:
//
//     g = C dL/dy + exp(d A) g(next),   dL/dB = g d u,   dL/du = d (g B) + D dL/dy,
//     dL/dd = u (g B) + A exp(d A) g h(before)
//
// Layouts, all contiguous: u, delta, z, y (b, l, e); B, C (b, l, n); A (g, e, n); D, bias (g, e); start, last (b, e, n);
// starts (b, chunks, n, e). Row i of the batch belongs to system i / (b / g). Tensors that are not there are null.

#include "vector.h"

namespace {

constexpr int64_t CHUNK = 32;  // tokens from one kept state to the next
constexpr int64_t GROUP = 64;  // channels of one task; the caller adds up what the groups found for dB and dC
constexpr int TILE = 4;        // states that are followed at once

// (lanes, n) in memory: each state as a register over channels, and back.
template <class T> void gather(Vec<T>* to, const T* from, int64_t lanes, int64_t n, T scale = 1) {
    for (int64_t j = 0; j < n; ++j)
        for (int64_t w = 0; w < lanes; ++w) to[j][w] = from[w * n + j] * scale;
}
template <class T> void scatter(T* to, const Vec<T>* from, int64_t lanes, int64_t n) {
    for (int64_t j = 0; j < n; ++j)
        for (int64_t w = 0; w < lanes; ++w) to[w * n + j] = from[j][w];
}

template <class T> struct Scan {
    int64_t b, l, e, n, g, positive;  // positive: whether delta passes through softplus
    const T *u, *delta, *A, *B, *C, *D, *z, *bias, *start;

    int64_t chunks() const { return (l + CHUNK - 1) / CHUNK; }
    int64_t system(int64_t row) const { return row / (b / g); }
};
template <class T> struct Gradients {  // dB and dC for each group of channels, dA, dD and dbias for each row
    const T *starts, *dy, *dlast;
    T *du, *ddelta, *dA, *dB, *dC, *dD, *dz, *dbias, *dstart;
};

// The channels of one register, in one row of the batch, with one chunk of tokens at a time.
template <class T> struct Channels {
    const Scan<T>& s;
    const int64_t row, c, lanes;
    std::vector<Vec<T>> a, h;  // A in units of ln 2, and the state: (n)
    Vec<T> bias{}, skip{}, x[CHUNK], d[CHUNK], drive[CHUNK], y[CHUNK];

    Channels(const Scan<T>& s, int64_t row, int64_t c) : s(s), row(row), c(c), lanes(std::min<int64_t>(W<T>, s.e - c)), a(s.n), h(s.n) {
        const int64_t own = s.system(row) * s.e + c;
        gather<T>(a.data(), s.A + own * s.n, lanes, s.n, T(1 / LN2));
        if (s.bias) bias = load(s.bias + own, lanes);
        if (s.D) skip = load(s.D + own, lanes);
    }
    int64_t at(int64_t t) const { return (row * s.l + t) * s.e + c; }

    // The tokens t0 .. t0 + tokens, before the gate; with KEEP every state (tokens + 1, n) and decay (tokens, n) is kept.
    template <bool KEEP> void advance(int64_t t0, int64_t tokens, Vec<T>* states, Vec<T>* decays) {
        for (int64_t t = 0; t < tokens; ++t) {
            const Vec<T> raw = load(s.delta + at(t0 + t), lanes) + bias;
            x[t] = load(s.u + at(t0 + t), lanes);
            d[t] = s.positive ? softplus<T>(raw) : raw;
            drive[t] = d[t] * x[t];
            y[t] = skip * x[t];
        }
        int64_t j = 0;
        for (; j + TILE <= s.n; j += TILE) follow<TILE, KEEP>(j, t0, tokens, states, decays);
        for (; j < s.n; ++j) follow<1, KEEP>(j, t0, tokens, states, decays);
    }
    template <int J, bool KEEP> void follow(int64_t j, int64_t t0, int64_t tokens, Vec<T>* states, Vec<T>* decays) {
        Vec<T> hj[J], aj[J];
        for (int i = 0; i < J; ++i) hj[i] = h[j + i], aj[i] = a[j + i];
        if (KEEP) std::copy(hj, hj + J, states + j);
        for (int64_t t = 0; t < tokens; ++t) {
            const T *B = s.B + (row * s.l + t0 + t) * s.n + j, *C = s.C + (row * s.l + t0 + t) * s.n + j;
            const Vec<T> dt = d[t], in = drive[t];
            Vec<T> out = y[t];
#pragma GCC unroll 8
            for (int i = 0; i < J; ++i) {
                const Vec<T> decay = exp2<T>(dt * aj[i]);
                hj[i] = decay * hj[i] + in * B[i];
                out += hj[i] * C[i];
                if (KEEP) decays[t * s.n + j + i] = decay, states[(t + 1) * s.n + j + i] = hj[i];
            }
            y[t] = out;
        }
        for (int i = 0; i < J; ++i) h[j + i] = hj[i];
    }
};

template <class T> void forward_task(const Scan<T>& s, int64_t row, int64_t c, T* y, T* last, T* starts) {
    Channels<T> own(s, row, c);
    gather<T>(own.h.data(), s.start + (row * s.e + c) * s.n, own.lanes, s.n);
    for (int64_t t0 = 0; t0 < s.l; t0 += CHUNK) {
        const int64_t tokens = std::min(CHUNK, s.l - t0);
        T* kept = starts + (row * s.chunks() + t0 / CHUNK) * s.n * s.e + c;
        for (int64_t j = 0; j < s.n; ++j) store(kept + j * s.e, own.h[j], own.lanes);
        own.template advance<false>(t0, tokens, nullptr, nullptr);
        for (int64_t t = 0; t < tokens; ++t) {
            Vec<T> open = all<T>(1);
            if (s.z) {
                const Vec<T> z = load(s.z + own.at(t0 + t), own.lanes);
                open = z * sigmoid<T>(z);
            }
            store(y + own.at(t0 + t), own.y[t] * open, own.lanes);
        }
    }
    scatter<T>(last + (row * s.e + c) * s.n, own.h.data(), own.lanes, s.n);
}

// The gradients of one register's channels, chunk by chunk from the last to the first.
template <class T> struct Adjoint {
    Channels<T> own;
    const Gradients<T>& out;
    std::vector<Vec<T>> g, dA;  // (n)
    Vec<T> dD{}, dbias{}, dy[CHUNK], ddrive[CHUNK], dlog[CHUNK];

    Adjoint(const Scan<T>& s, const Gradients<T>& out, int64_t row, int64_t c) : own(s, row, c), out(out), g(s.n), dA(s.n) {
        gather<T>(g.data(), out.dlast + (row * s.e + c) * s.n, own.lanes, s.n);
    }

    void chunk(int64_t t0, int64_t tokens, Vec<T>* states, Vec<T>* decays, Vec<T>* dB, Vec<T>* dC) {
        const Scan<T>& s = own.s;
        const T* kept = out.starts + (own.row * s.chunks() + t0 / CHUNK) * s.n * s.e + own.c;
        for (int64_t j = 0; j < s.n; ++j) own.h[j] = load(kept + j * s.e, own.lanes);
        own.template advance<true>(t0, tokens, states, decays);
        for (int64_t t = 0; t < tokens; ++t) {
            dy[t] = load(out.dy + own.at(t0 + t), own.lanes);
            ddrive[t] = dlog[t] = Vec<T>{};
            if (s.z) gate(t, own.at(t0 + t));
        }
        int64_t j = 0;
        for (; j + TILE <= s.n; j += TILE) follow<TILE>(j, t0, tokens, states, decays, dB, dC);
        for (; j < s.n; ++j) follow<1>(j, t0, tokens, states, decays, dB, dC);
        for (int64_t t = 0; t < tokens; ++t) inputs(t, own.at(t0 + t));
    }
    void gate(int64_t t, int64_t at) {
        const Vec<T> z = load(own.s.z + at, own.lanes), open = sigmoid<T>(z);
        store(out.dz + at, dy[t] * own.y[t] * open * (T(1) + z * (T(1) - open)), own.lanes);
        dy[t] *= z * open;
    }
    template <int J> void follow(int64_t j, int64_t t0, int64_t tokens, const Vec<T>* states, const Vec<T>* decays, Vec<T>* dB, Vec<T>* dC) {
        const int64_t n = own.s.n;
        Vec<T> gj[J], aj[J], dAj[J], h[J];
        for (int i = 0; i < J; ++i) gj[i] = g[j + i], aj[i] = own.a[j + i], dAj[i] = dA[j + i], h[i] = states[tokens * n + j + i];
        for (int64_t t = tokens - 1; t >= 0; --t) {
            const T *B = own.s.B + (own.row * own.s.l + t0 + t) * n + j, *C = own.s.C + (own.row * own.s.l + t0 + t) * n + j;
            const Vec<T> dyt = dy[t], dt = own.d[t], in = own.drive[t];
            Vec<T> din = ddrive[t], dl = dlog[t];
#pragma GCC unroll 8
            for (int i = 0; i < J; ++i) {
                const int64_t k = t * n + j + i;
                const Vec<T> gt = gj[i] + dyt * C[i];
                dC[k] += dyt * h[i];
                dB[k] += gt * in;
                din += gt * B[i];
                gj[i] = gt * decays[k];
                h[i] = states[k];
                const Vec<T> through = gj[i] * h[i];  // dL/d(d A)
                dAj[i] += through * dt;
                dl += through * aj[i];
            }
            ddrive[t] = din, dlog[t] = dl;
        }
        for (int i = 0; i < J; ++i) g[j + i] = gj[i], dA[j + i] = dAj[i];
    }
    void inputs(int64_t t, int64_t at) {
        Vec<T> dd = ddrive[t] * own.x[t] + dlog[t] * T(LN2);
        if (own.s.positive) {
            const Vec<T> raw = load(own.s.delta + at, own.lanes) + own.bias;
            dd = raw > T(20) ? dd : dd * sigmoid<T>(raw);
        }
        dD += dy[t] * own.x[t];
        dbias += dd;
        store(out.ddelta + at, dd, own.lanes);
        store(out.du + at, ddrive[t] * own.d[t] + own.skip * dy[t], own.lanes);
    }
    void finish() {
        const int64_t at = own.row * own.s.e + own.c;
        scatter<T>(out.dstart + at * own.s.n, g.data(), own.lanes, own.s.n);
        scatter<T>(out.dA + at * own.s.n, dA.data(), own.lanes, own.s.n);
        if (own.s.D) store(out.dD + at, dD, own.lanes);
        if (own.s.bias) store(out.dbias + at, dbias, own.lanes);
    }
};

template <class T> void backward_task(const Scan<T>& s, const Gradients<T>& out, int64_t row, int64_t group) {
    std::vector<Adjoint<T>> blocks;
    for (int64_t c = group * GROUP; c < std::min(s.e, (group + 1) * GROUP); c += W<T>) blocks.emplace_back(s, out, row, c);
    std::vector<Vec<T>> states((CHUNK + 1) * s.n), decays(CHUNK * s.n), dB(CHUNK * s.n), dC(CHUNK * s.n);
    for (int64_t t0 = (s.chunks() - 1) * CHUNK; t0 >= 0; t0 -= CHUNK) {
        const int64_t tokens = std::min(CHUNK, s.l - t0), at = ((group * s.b + row) * s.l + t0) * s.n;
        std::fill(dB.begin(), dB.end(), Vec<T>{});
        std::fill(dC.begin(), dC.end(), Vec<T>{});
        for (auto& block : blocks) block.chunk(t0, tokens, states.data(), decays.data(), dB.data(), dC.data());
        for (int64_t k = 0; k < tokens * s.n; ++k) out.dB[at + k] = sum<T>(dB[k]), out.dC[at + k] = sum<T>(dC[k]);
    }
    for (auto& block : blocks) block.finish();
}

template <class T> void forward(const Scan<T>& s, int64_t threads, T* y, T* last, T* starts) {
    const int64_t blocks = (s.e + W<T> - 1) / W<T>;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t task = 0; task < s.b * blocks; ++task) forward_task(s, task / blocks, task % blocks * W<T>, y, last, starts);
}

template <class T> void backward(const Scan<T>& s, int64_t threads, const Gradients<T>& out) {
    const int64_t groups = (s.e + GROUP - 1) / GROUP;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t task = 0; task < s.b * groups; ++task) backward_task(s, out, task / groups, task % groups);
}

}  // namespace

extern "C" {
int64_t dmm_chunk() { return CHUNK; }
int64_t dmm_group() { return GROUP; }
void dmm_forward_float(const Scan<float>* s, int64_t threads, float* y, float* last, float* starts) { forward(*s, threads, y, last, starts); }
void dmm_forward_double(const Scan<double>* s, int64_t threads, double* y, double* last, double* starts) { forward(*s, threads, y, last, starts); }
void dmm_backward_float(const Scan<float>* s, int64_t threads, const Gradients<float>* out) { backward(*s, threads, *out); }
void dmm_backward_double(const Scan<double>* s, int64_t threads, const Gradients<double>* out) { backward(*s, threads, *out); }
}
