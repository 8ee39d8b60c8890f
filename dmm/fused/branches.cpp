// The two branches of a DMM block between their matrix products, for C: see norm.h and selection.h.

#include <cmath>

#include "norm.h"
#include "selection.h"

namespace {

struct Sizes {  // of either branch; what it has not is 0
    int64_t b, l, d, w, e, n, r, k, normalized;
    double eps;
};

template <class T> void norm(const Sizes* z, int64_t threads, const T* x, const T* weight, const T* bias, T* windows) {
    const Norm<T> own{z->l, z->d, z->w, z->normalized, T(z->eps), x, weight, bias};
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<T> tokens((z->w - 1 + z->l) * z->d);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < z->b; ++row) own.forward(row, windows, tokens.data());
    }
}

template <class T>
void norm_backward(const Sizes* z, int64_t threads, const T* x, const T* weight, const T* dwindows, const T* dy, T* dx, T* dnorm) {
    const Norm<T> own{z->l, z->d, z->w, z->normalized, T(z->eps), x, weight, nullptr};
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<Vec<T>> dn(z->d / W<T> + 1);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < z->b; ++row) own.backward(row, dwindows, dy, dx, dnorm + row * 2 * z->d, dn.data());
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

#define EXPORT(T)                                                                                                                             \
    void dmm_norm_##T(const Sizes* z, int64_t threads, const T* x, const T* weight, const T* bias, T* windows) {                              \
        norm(z, threads, x, weight, bias, windows);                                                                                           \
    }                                                                                                                                         \
    void dmm_norm_backward_##T(const Sizes* z, int64_t threads, const T* x, const T* weight, const T* dwindows, const T* dy, T* dx, T* dnorm) { \
        norm_backward(z, threads, x, weight, dwindows, dy, dx, dnorm);                                                                        \
    }                                                                                                                                         \
    void dmm_branch_##T(const Sizes* z, int64_t threads, const T* xz, const T* conv, const T* bias, T* s) {                                   \
        branch(z, threads, xz, conv, bias, s);                                                                                                \
    }                                                                                                                                         \
    void dmm_branch_backward_##T(const Sizes* z, int64_t threads, const T* xz, const T* conv, const T* bias, const T* ds, T* dxz, T* dconv) { \
        branch_backward(z, threads, xz, conv, bias, ds, dxz, dconv);                                                                          \
    }                                                                                                                                         \
    void dmm_scan_##T(const Sizes* z, int64_t threads, const T* xz, const T* s, const T* p, const T* A, const T* dt, const T* bias, const T* D, T* y) { \
        scan(z, threads, xz, s, p, A, dt, bias, D, y);                                                                                        \
    }                                                                                                                                         \
    void dmm_scan_backward_##T(const Sizes* z, int64_t threads, const T* xz, const T* s, const T* p, const T* A, const T* dt, const T* bias,  \
                               const T* D, const T* dy, T* ds, T* dxz, T* dp, T* dscan) {                                                     \
        scan_backward(z, threads, xz, s, p, A, dt, bias, D, dy, ds, dxz, dp, dscan);                                                          \
    }

extern "C" {
EXPORT(float)
EXPORT(double)
}
