// The branch of a GPT-2 MLP, forward and the data's part of backward, for C: see mlp.py for the formulas.
//
// Some tokens at a time go through all stages, so that the 4 d channels between are still in cache when they are used.
// Gradients of weights are matrix products over all tokens, which are the caller's.

#include "norm.h"
#include "product.h"

namespace {

struct Sizes {
    int64_t tokens, d, f, jump, group;  // rows of f channels are `jump` numbers apart; `group` tokens at a time
    double eps;
};

// gelu'(x) = P + x p, with the normal distribution P = gelu(x) / x and its density p: erf by 7.1.26 of Abramowitz and
// Stegun, within 1.5e-7, whose exponential is that of the density.
template <class T> inline Vec<T> distribution(Vec<T> x, Vec<T>& density) {
    const Vec<T> bell = exp2<T>(x * x * T(-0.5 / LN2)), size = x < T(0) ? -x : x;
    const Vec<T> t = T(1) / (T(1) + size * T(0.3275911 * 0.70710678118654752440));
    const Vec<T> series = t * (T(0.254829592) + t * (T(-0.284496736) + t * (T(1.421413741) + t * (T(-1.453152027) + t * T(1.061405429)))));
    const Vec<T> tail = T(0.5) * series * bell;
    density = bell * T(0.39894228040143267794);
    return x < T(0) ? tail : T(1) - tail;
}

template <class T, class F> void each(int64_t count, F f) {
    for (int64_t i = 0; i < count; i += W<T>) f(i, std::min<int64_t>(W<T>, count - i));
}

template <class T>
void mlp(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, const T* up, const T* up_bias, const T* down, const T* down_bias,
         const T* kept, T* n, T* h, T* y) {
    const int64_t d = z->d, f = z->f, jump = z->jump;
    const Matrix<T> first(d, f, [&](int64_t k, int64_t c) { return up[c * d + k]; });
    const Matrix<T> second(f, d, [&](int64_t k, int64_t c) { return down[c * f + k]; });
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<T> g(z->group * jump);
#pragma omp for schedule(static)
        for (int64_t at = 0; at < z->tokens; at += z->group) {
            const int64_t count = std::min(z->group, z->tokens - at);
            const T *in = x + at * d, *mask = kept ? kept + at * d : nullptr;
            T *middle = h + at * jump, *out = y + at * d;
            Norm<T>{count, d, 0, T(z->eps), in, gain, shift}.forward(0, n + at * d);
            first.multiply(count, n + at * d, d, nullptr, up_bias, middle, jump);
            each<T>(count * jump, [&](int64_t i, int64_t lanes) {
                Vec<T> density;
                const Vec<T> v = load(middle + i, lanes);
                store(g.data() + i, v * distribution<T>(v, density), lanes);
            });
            second.multiply(count, g.data(), jump, mask ? nullptr : in, down_bias, out);
            if (mask)
                each<T>(count * d, [&](int64_t i, int64_t lanes) {
                    store(out + i, load(in + i, lanes) + load(out + i, lanes) * load(mask + i, lanes), lanes);
                });
        }
    }
}

// dz: the gradient of what the MLP gives; g: its activations once more; dh: the gradient of what comes before them
template <class T>
void mlp_backward(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* up, const T* down, const T* kept, const T* h, const T* dy, T* dz,
                  T* g, T* dh, T* dx, T* dnorm) {
    const int64_t d = z->d, f = z->f, jump = z->jump;
    const Matrix<T> first(d, f, [&](int64_t k, int64_t c) { return down[k * f + c]; });
    const Matrix<T> second(f, d, [&](int64_t k, int64_t c) { return up[k * d + c]; });
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<T> dn(z->group * d);
        std::vector<Vec<T>> spare(d / W<T> + 1);
#pragma omp for schedule(static)
        for (int64_t at = 0; at < z->tokens; at += z->group) {
            const int64_t count = std::min(z->group, z->tokens - at);
            const T *from = dy + at * d, *middle = h + at * jump;
            T *into = dz + at * d, *active = g + at * jump, *slope = dh + at * jump;
            each<T>(count * d, [&](int64_t i, int64_t lanes) {
                const Vec<T> v = load(from + i, lanes);
                store(into + i, kept ? v * load(kept + at * d + i, lanes) : v, lanes);
            });
            first.multiply(count, into, d, nullptr, nullptr, slope, jump);
            each<T>(count * jump, [&](int64_t i, int64_t lanes) {
                Vec<T> density;
                const Vec<T> v = load(middle + i, lanes), below = distribution<T>(v, density);
                store(active + i, v * below, lanes);
                store(slope + i, load(slope + i, lanes) * (below + v * density), lanes);
            });
            second.multiply(count, slope, jump, nullptr, nullptr, dn.data());
            Norm<T>{count, d, 0, T(z->eps), x + at * d, gain, nullptr}.backward(0, dn.data(), from, dx + at * d, dnorm + at / z->group * 2 * d, spare.data());
        }
    }
}

}  // namespace

extern "C" {
void dmm_mlp_float(const Sizes* z, int64_t threads, const float* x, const float* gain, const float* shift, const float* up, const float* up_bias,
                   const float* down, const float* down_bias, const float* kept, float* n, float* h, float* y) {
    mlp(z, threads, x, gain, shift, up, up_bias, down, down_bias, kept, n, h, y);
}
void dmm_mlp_backward_float(const Sizes* z, int64_t threads, const float* x, const float* gain, const float* up, const float* down, const float* kept,
                            const float* h, const float* dy, float* dz, float* g, float* dh, float* dx, float* dnorm) {
    mlp_backward(z, threads, x, gain, up, down, kept, h, dy, dz, g, dh, dx, dnorm);
}
}
