// The two branches of a DMM block, forward and backward, for C: see dense.py and mamba.py for the formulas. The same
// without gradients, from a state to a state, is in steps.h.
//
// Each goes through all its stages with one row of the batch before the next, so that what passes from stage to stage
// stays in cache; what the gradient needs is written down on the way. Gradients of weights, which are sums over the batch,
// come last: for the products, where each thread has panels of its own, and for all else row by row (dnorm, dconv, dscan),
// for the caller to add up. So every sum has one order, whatever the number of threads.

#include "norm.h"
#include "product.h"
#include "selection.h"
#include "steps.h"

namespace {

template <class T>
void dense(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, const T* weight, const T* bias, T* tokens, T* y) {
    const int64_t l = z->l, d = z->d, w = z->w, before = (w - 1) * d;
    const Norm<T> norm = norm_of(z, x, gain, shift);
    const Matrix<T> mix(w * d, d, weight, false);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t row = 0; row < z->b; ++row) {
        T* to = tokens + row * (before + l * d);  // behind w - 1 zeros, so that each window is w d numbers in a row
        std::fill(to, to + before, T(0));
        norm.forward(row, to + before);
        mix.multiply(l, to, d, z->normalized ? to + before : x + row * l * d, bias, y + row * l * d);
    }
}

template <class T>
void dense_backward(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* weight, const T* tokens, const T* dy, T* dx, T* dnorm, T* dW) {
    const int64_t l = z->l, d = z->d, w = z->w, padded = (w - 1 + l) * d;
    const Norm<T> norm = norm_of<T>(z, x, gain, nullptr);
    const Matrix<T> back(w * d, d, [&](int64_t k, int64_t c) { return weight[(k % d * w + w - 1 - k / d) * d + c]; });
    Outer<T> sums(d, w * d, dW);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<T> later(padded), dn(l * d);  // later: dy, and zeros behind it
        std::vector<Vec<T>> g(d / W<T> + 1);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < z->b; ++row) {
            std::copy(dy + row * l * d, dy + (row + 1) * l * d, later.begin());
            back.multiply(l, later.data(), d, nullptr, nullptr, dn.data());
            norm.backward(row, dn.data(), dy, dx, dnorm + row * 2 * d, g.data());
        }
        for (int64_t row = 0; row < z->b; row += GROUP)
#pragma omp for schedule(static) nowait
            for (int64_t panel = 0; panel < sums.panels; ++panel)
                sums.add(panel, std::min(GROUP, z->b - row), l, dy + row * l * d, l * d, d, tokens + row * padded, padded, d);
    }
    sums.write(dW);
}

template <class T>
void mamba(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, const T* in, const T* conv, const T* conv_bias, const T* select,
           const T* dt, const T* bias, const T* A, const T* D, const T* out, T* n, T* xz, T* s, T* p, T* gated, T* y) {
    const int64_t l = z->l, d = z->d, e = z->e, q = z->r + 2 * z->n;
    const Norm<T> norm = norm_of(z, x, gain, shift);
    const Branch<T> branch{l, e, z->k, xz, conv, conv_bias};
    const Selection<T> own(l, e, z->n, z->r, xz, s, p, A, dt, bias, D);
    const Matrix<T> in_proj(d, 2 * e, in, false);
    const Matrix<T> x_proj(e, q, select, false);
    const Matrix<T> out_proj(e, d, out, false);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<Vec<T>> before(z->k - 1 + l), v(l);
        Tokens<T> tokens(own, false);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < z->b; ++row) {
            const int64_t at = row * l;
            norm.forward(row, n + at * d);
            in_proj.multiply(l, n + at * d, d, nullptr, nullptr, xz + at * 2 * e);
            for (int64_t c = 0; c < e; c += W<T>) branch.forward(row, c, before.data(), v.data(), s);
            x_proj.multiply(l, s + at * e, e, nullptr, nullptr, p + at * q);
            for (int64_t i = 0; i * W<T> < e; ++i) tokens.place(row, i), tokens.forward(gated);
            out_proj.multiply(l, gated + at * e, e, (z->normalized ? n : x) + at * d, nullptr, y + at * d);
        }
    }
}

template <class T>
void mamba_backward(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* in, const T* conv, const T* conv_bias, const T* select,
                    const T* dt, const T* bias, const T* A, const T* D, const T* out, const T* n, const T* xz, const T* s, const T* p, const T* gated,
                    const T* dy, T* dxz, T* dp, T* dx, T* dnorm, T* din, T* dconv, T* dselect, T* dscan, T* dout) {
    const int64_t l = z->l, d = z->d, e = z->e, q = z->r + 2 * z->n;
    const Norm<T> norm = norm_of<T>(z, x, gain, nullptr);
    const Branch<T> branch{l, e, z->k, xz, conv, conv_bias};
    const Selection<T> own(l, e, z->n, z->r, xz, s, p, A, dt, bias, D);
    const Matrix<T> in_back(2 * e, d, [&](int64_t k, int64_t c) { return in[k * d + c]; });
    const Matrix<T> x_back(q, e, [&](int64_t k, int64_t c) { return select[k * e + c]; });
    const Matrix<T> out_back(d, e, [&](int64_t k, int64_t c) { return out[k * e + c]; });
    Outer<T> of_in(2 * e, d, din), of_x(q, e, dselect), of_out(d, e, dout);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<Vec<T>> before(z->k - 1 + l), v(l), g(d / W<T> + 1);
        std::vector<T> dgated(l * e), ds(l * e), dn(l * d);
        Tokens<T> tokens(own, true);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < z->b; ++row) {
            const int64_t at = row * l;
            out_back.multiply(l, dy + at * d, d, nullptr, nullptr, dgated.data());
            tokens.backward_row(row, dgated.data(), ds.data(), dxz, dp, dscan);
            x_back.multiply(l, dp + at * q, q, ds.data(), nullptr, ds.data());
            for (int64_t c = 0; c < e; c += W<T>) branch.backward(row, c, before.data(), v.data(), ds.data(), dxz, dconv);
            in_back.multiply(l, dxz + at * 2 * e, 2 * e, nullptr, nullptr, dn.data());
            norm.backward(row, dn.data(), dy, dx, dnorm + row * 2 * d, g.data());
        }
        for (int64_t row = 0; row < z->b; row += GROUP) {
            const int64_t at = row * l, count = std::min(GROUP, z->b - row) * l;
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < of_in.panels; ++i) of_in.add(i, 1, count, dxz + at * 2 * e, 0, 2 * e, n + at * d, 0, d);
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < of_x.panels; ++i) of_x.add(i, 1, count, dp + at * q, 0, q, s + at * e, 0, e);
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < of_out.panels; ++i) of_out.add(i, 1, count, dy + at * d, 0, d, gated + at * e, 0, e);
        }
    }
    of_in.write(din), of_x.write(dselect), of_out.write(dout);
}

}  // namespace

#define EXPORT(T) \
    void dmm_dense_##T(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, const T* weight, const T* bias, T* \
            tokens, T* y) { \
        dense(z, threads, x, gain, shift, weight, bias, tokens, y); \
    } \
    void dmm_dense_backward_##T(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* weight, const T* tokens, const T* dy, \
            T* dx, T* dnorm, T* dW) { \
        dense_backward(z, threads, x, gain, weight, tokens, dy, dx, dnorm, dW); \
    } \
    void dmm_mamba_##T(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, const T* in, const T* conv, const T* \
            conv_bias, const T* select, const T* dt, const T* bias, const T* A, const T* D, const T* out, T* n, T* xz, T* s, T* p, T* gated, \
            T* y) { \
        mamba(z, threads, x, gain, shift, in, conv, conv_bias, select, dt, bias, A, D, out, n, xz, s, p, gated, y); \
    } \
    void dmm_mamba_backward_##T(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* in, const T* conv, const T* conv_bias, \
            const T* select, const T* dt, const T* bias, const T* A, const T* D, const T* out, const T* n, const T* xz, const T* s, const T* \
            p, const T* gated, const T* dy, T* dxz, T* dp, T* dx, T* dnorm, T* din, T* dconv, T* dselect, T* dscan, T* dout) { \
        mamba_backward(z, threads, x, gain, in, conv, conv_bias, select, dt, bias, A, D, out, n, xz, s, p, gated, dy, dxz, dp, dx, dnorm, \
            din, dconv, dselect, dscan, dout); \
    } \
    int64_t dmm_panels_##T(int64_t inner, int64_t outer) { return Matrix<T>::size(inner, outer); } \
    void dmm_pack_##T(int64_t inner, int64_t outer, const T* weight, T* panels) { \
        Matrix<T>::pack(inner, outer, [&](int64_t k, int64_t c) { return weight[c * inner + k]; }, panels); \
    } \
    void dmm_dense_step_##T(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, const T* weight, const T* bias, \
            const T* start, const T* present, T* last, T* y) { \
        dense_step(z, threads, x, gain, shift, weight, bias, start, present, last, y); \
    } \
    void dmm_mamba_step_##T(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, const T* in, const T* gate, \
            const T* conv, const T* conv_bias, const T* select, const T* dt, const T* bias, const T* A, const T* D, const T* out, \
            const T* conv_start, const T* start, const T* present, T* conv_last, T* last, T* y) { \
        mamba_step(z, threads, x, gain, shift, in, gate, conv, conv_bias, select, dt, bias, A, D, out, conv_start, start, present, \
            conv_last, last, y); \
    }

extern "C" {
EXPORT(float)
EXPORT(double)
}
