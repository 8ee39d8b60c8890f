// The two branches of a DMM block between their matrix products, for C: see dense.h, norm.h and selection.h.

#include "dense.h"
#include "norm.h"
#include "selection.h"

namespace {

struct Sizes {  // of either branch; what it has not is 0
    int64_t b, l, d, w, e, n, r, k, normalized;
    double eps;
};

template <class T> Norm<T> norm_of(const Sizes* z, const T* x, const T* gain, const T* shift) {
    return {z->l, z->d, z->normalized, T(z->eps), x, gain, shift};
}

template <class T>
void dense(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, const T* weight, const T* bias, T* tokens, T* y) {
    const int64_t l = z->l, d = z->d, w = z->w, before = (w - 1) * d;
    const Norm<T> norm = norm_of(z, x, gain, shift);
    const Dense<T> own(l, d, w, [&](int64_t k, int64_t c) { return weight[c * w * d + k]; });
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t row = 0; row < z->b; ++row) {
        T* to = tokens + row * (before + l * d);
        std::fill(to, to + before, T(0));
        norm.forward(row, to + before);
        own.apply(to, z->normalized ? to + before : x + row * l * d, bias, y + row * l * d);
    }
}

template <class T>
void dense_backward(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* weight, const T* tokens, const T* dy, T* dx, T* dnorm, T* dW) {
    const int64_t l = z->l, d = z->d, w = z->w, panels = (w * d + WIDTH<T> - 1) / WIDTH<T>;
    const Norm<T> norm = norm_of<T>(z, x, gain, nullptr);
    const Dense<T> own(l, d, w, [&](int64_t k, int64_t c) { return weight[(k % d * w + w - 1 - k / d) * d + c]; });
    std::vector<T> sums(dW ? panels * d * WIDTH<T> : 0);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<T> later((l + w - 1) * d), dn(l * d);
        std::vector<Vec<T>> g(d / W<T> + 1);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < z->b; ++row) {
            std::copy(dy + row * l * d, dy + (row + 1) * l * d, later.begin());
            own.apply(later.data(), nullptr, nullptr, dn.data());
            norm.backward(row, dn.data(), dy, dx, dnorm + row * 2 * d, g.data());
        }
        for (int64_t row = 0; dW && row < z->b; row += GROUP)
#pragma omp for schedule(static) nowait
            for (int64_t panel = 0; panel < panels; ++panel)
                add_to_panel(own, row, std::min(GROUP, z->b - row), panel, tokens, dy, sums.data() + panel * d * WIDTH<T>);
    }
    for (int64_t c = 0; dW && c < d; ++c)
        for (int64_t k = 0; k < w * d; ++k) dW[c * w * d + k] = sums[(k / WIDTH<T> * d + c) * WIDTH<T> + k % WIDTH<T>];
}

template <class T> void norm(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, T* n) {
    const Norm<T> own = norm_of(z, x, gain, shift);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t row = 0; row < z->b; ++row) own.forward(row, n + row * z->l * z->d);
}

template <class T>
void norm_backward(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* dn, const T* dy, T* dx, T* dnorm) {
    const Norm<T> own = norm_of<T>(z, x, gain, nullptr);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<Vec<T>> g(z->d / W<T> + 1);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < z->b; ++row)
            own.backward(row, dn + row * z->l * z->d, dy, dx, dnorm + row * 2 * z->d, g.data());
    }
}

template <class T> void branch(const Sizes* z, int64_t threads, const T* xz, const T* conv, const T* bias, T* s) {
    const Branch<T> own{z->l, z->e, z->k, xz, conv, bias};
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<Vec<T>> x(z->k - 1 + z->l), v(z->l);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < z->b; ++row)
            for (int64_t c = 0; c < z->e; c += W<T>) own.forward(row, c, x.data(), v.data(), s);
    }
}

template <class T>
void branch_backward(const Sizes* z, int64_t threads, const T* xz, const T* conv, const T* bias, const T* ds, T* dxz, T* dconv) {
    const Branch<T> own{z->l, z->e, z->k, xz, conv, bias};
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<Vec<T>> x(z->k - 1 + z->l), v(z->l);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < z->b; ++row)
            for (int64_t c = 0; c < z->e; c += W<T>) own.backward(row, c, x.data(), v.data(), ds, dxz, dconv);
    }
}

template <class T>
void scan(const Sizes* z, int64_t threads, const T* xz, const T* s, const T* p, const T* A, const T* dt, const T* bias, const T* D, T* y) {
    const Selection<T> own(z->l, z->e, z->n, z->r, xz, s, p, A, dt, bias, D);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Tokens<T> tokens(own, false);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < z->b; ++row)
            for (int64_t i = 0; i * W<T> < z->e; ++i) tokens.place(row, i), tokens.forward(y);
    }
}

template <class T>
void scan_backward(const Sizes* z, int64_t threads, const T* xz, const T* s, const T* p, const T* A, const T* dt, const T* bias, const T* D,
                   const T* dy, T* ds, T* dxz, T* dp, T* dscan) {
    const Selection<T> own(z->l, z->e, z->n, z->r, xz, s, p, A, dt, bias, D);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Tokens<T> tokens(own, true);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < z->b; ++row) tokens.backward_row(row, dy, ds, dxz, dp, dscan);
    }
}

}  // namespace

#define EXPORT(T) \
    void dmm_dense_##T(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, const T* weight, const T* bias, T* tokens, T* y) { \
        dense(z, threads, x, gain, shift, weight, bias, tokens, y); \
    } \
    void dmm_dense_backward_##T(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* weight, const T* tokens, const T* dy, T* dx, T* dnorm, T* dW) { \
        dense_backward(z, threads, x, gain, weight, tokens, dy, dx, dnorm, dW); \
    } \
    void dmm_norm_##T(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, T* n) { \
        norm(z, threads, x, gain, shift, n); \
    } \
    void dmm_norm_backward_##T(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* dn, const T* dy, T* dx, T* dnorm) { \
        norm_backward(z, threads, x, gain, dn, dy, dx, dnorm); \
    } \
    void dmm_branch_##T(const Sizes* z, int64_t threads, const T* xz, const T* conv, const T* bias, T* s) { \
        branch(z, threads, xz, conv, bias, s); \
    } \
    void dmm_branch_backward_##T(const Sizes* z, int64_t threads, const T* xz, const T* conv, const T* bias, const T* ds, T* dxz, T* dconv) { \
        branch_backward(z, threads, xz, conv, bias, ds, dxz, dconv); \
    } \
    void dmm_scan_##T(const Sizes* z, int64_t threads, const T* xz, const T* s, const T* p, const T* A, const T* dt, const T* bias, const T* D, T* y) { \
        scan(z, threads, xz, s, p, A, dt, bias, D, y); \
    } \
    void dmm_scan_backward_##T(const Sizes* z, int64_t threads, const T* xz, const T* s, const T* p, const T* A, const T* dt, const T* bias, const T* D, const T* dy, T* ds, T* dxz, T* dp, T* dscan) { \
        scan_backward(z, threads, xz, s, p, A, dt, bias, D, dy, ds, dxz, dp, dscan); \
    }

extern "C" {
EXPORT(float)
EXPORT(double)
}
