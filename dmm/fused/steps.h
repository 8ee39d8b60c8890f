// The branches without gradients, from a state to a state: a few tokens of many rows, or many tokens of a few.
//
// Nothing is kept for a gradient, so that all that lies between input and output of some rows stays in cache, rows enough
// to fill the tiles of a product. Where only the last token of some rows is wanted, as in the last layer of a policy that
// acts, what no later token needs is left out for the others.
//
// Layouts: x (b, l, d); present (b, l), 0 for tokens that a row begins without, null for none; of the dense branch, start
// and last (b, w - 1, d); of the Mamba branch, conv_start and conv_last (b, k - 1, e), start and last (b, n, e). Starts
// that are null are zero, and what is null at the end is not wanted. y (b, l, d), or (rows, d) of the last token alone.
// Weights as in branches.cpp, of which in_proj comes in two halves; all that are factors, in panels if `packed`.

#pragma once

#include "norm.h"
#include "product.h"
#include "selection.h"

namespace {

struct Sizes {  // of either branch; what it has not is 0
    int64_t b, l, d, w, e, n, r, k, normalized, packed, newest, first, rows;  // newest: y is that of `rows` rows from `first` on
    double eps;
};

constexpr int64_t AT_ONCE = 48;  // tokens, at least those of one row

template <class T> Norm<T> norm_of(const Sizes* z, const T* x, const T* gain, const T* shift) {
    return {z->l, z->d, z->normalized, T(z->eps), x, gain, shift};
}

// Calls each(first row, rows) for groups of rows.
template <class F> void groups(const Sizes* z, const F& each) {
    const int64_t group = std::max<int64_t>(1, AT_ONCE / z->l);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < (z->b + group - 1) / group; ++i) each(i * group, std::min(group, z->b - i * group));
}
inline int64_t tokens_at_once(const Sizes* z) { return std::max<int64_t>(1, AT_ONCE / z->l) * z->l; }

template <class T> void keep(const T* present, int64_t token, T* values, int64_t count) {
    if (present && present[token] == T(0)) std::fill(values, values + count, T(0));
}

template <class T>
void dense_step(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, const T* weight, const T* bias, const T* start,
                const T* present, T* last, T* y) {
    const int64_t l = z->l, d = z->d, before = (z->w - 1) * d;
    const Norm<T> norm = norm_of(z, x, gain, shift);
    const Matrix<T> mix(z->w * d, d, weight, z->packed);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<T> tokens(tokens_at_once(z) / l * (before + l * d));  // behind those before, so that a window is w d numbers in a row
        std::vector<const T*> a(tokens_at_once(z)), from(a.size());
        std::vector<T*> to(a.size());
        groups(z, [&](int64_t first, int64_t rows) {
            for (int64_t i = 0; i < rows; ++i) {
                const int64_t row = first + i;
                T* own = tokens.data() + i * (before + l * d);
                if (start) std::copy(start + row * before, start + (row + 1) * before, own);
                else std::fill(own, own + before, T(0));
                norm.forward(row, own + before);
                for (int64_t t = 0; t < l; ++t) {
                    keep(present, row * l + t, own + before + t * d, d);
                    a[i * l + t] = own + t * d;
                    from[i * l + t] = z->normalized ? own + before + t * d : x + (row * l + t) * d;
                    to[i * l + t] = y + (row * l + t) * d;
                }
                if (last) std::copy(own + l * d, own + l * d + before, last + row * before);
            }
            mix.multiply(rows * l, a.data(), from.data(), bias, to.data());
        });
    }
}

template <class T>
void mamba_step(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, const T* in, const T* gate, const T* conv,
                const T* conv_bias, const T* select, const T* dt, const T* bias, const T* A, const T* D, const T* out, const T* conv_start,
                const T* start, const T* present, T* conv_last, T* last, T* y) {
    const int64_t l = z->l, d = z->d, e = z->e, k = z->k, q = z->r + 2 * z->n, most = tokens_at_once(z);
    const Norm<T> norm = norm_of(z, x, gain, shift);
    const Matrix<T> in_proj(d, e, in, z->packed), z_proj(d, e, gate, z->packed), x_proj(e, q, select, z->packed), out_proj(e, d, out, z->packed);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<T> n(most * d), xz(most * 2 * e), s(most * e), p(most * q), gated(most * e);
        std::vector<Vec<T>> before(k - 1 + most), v(most);
        std::vector<const T*> a(most), from(most);
        std::vector<T*> to(most);
        std::vector<int64_t> wanted(most);  // the tokens of which y is
        Branch<T> branch{l, e, k, xz.data(), conv, conv_bias};
        Selection<T> own(most, e, z->n, z->r, xz.data(), s.data(), p.data(), A, dt, bias, D);
        Tokens<T> tokens(own, false);
        groups(z, [&](int64_t first, int64_t rows) {
            const int64_t count = rows * l;
            int64_t outputs = 0;
            for (int64_t i = 0; i < rows; ++i) norm.forward(first + i, n.data() + i * l * d);
            for (int64_t t = 0; t < count; ++t) {
                const int64_t row = first + t / l;
                a[t] = n.data() + t * d, to[t] = xz.data() + t * 2 * e;
                if (!z->newest || (t % l == l - 1 && row >= z->first && row < z->first + z->rows)) wanted[outputs++] = t;
            }
            in_proj.multiply(count, a.data(), nullptr, nullptr, to.data());
            for (int64_t i = 0; i < outputs; ++i) a[i] = n.data() + wanted[i] * d, to[i] = xz.data() + wanted[i] * 2 * e + e;
            z_proj.multiply(outputs, a.data(), nullptr, nullptr, to.data());
            for (int64_t t = 0; t < count; ++t) keep(present, first * l + t, xz.data() + t * 2 * e, e);
            if (!conv) branch.l = count;  // rows do not matter then
            for (int64_t i = 0; i < count / branch.l; ++i) {
                const int64_t at = (first + i) * (k - 1) * e;
                for (int64_t c = 0; c < e; c += W<T>)
                    branch.forward(i, c, before.data(), v.data(), s.data(), conv_start ? conv_start + at : nullptr, conv_last ? conv_last + at : nullptr);
            }
            for (int64_t t = 0; t < count; ++t) {  // behind the convolution, whose bias lets absent tokens in again
                keep(present, first * l + t, s.data() + t * e, e);
                a[t] = s.data() + t * e, to[t] = p.data() + t * q;
            }
            x_proj.multiply(count, a.data(), nullptr, nullptr, to.data());
            own.l = count;
            const int64_t at = first * z->n * e;
            for (int64_t i = 0; i * W<T> < e; ++i) {
                tokens.place(0, i), tokens.advance(l, start ? start + at : nullptr, last ? last + at : nullptr);
                for (int64_t j = 0; j < outputs; ++j) tokens.gated(wanted[j], gated.data());
            }
            for (int64_t i = 0; i < outputs; ++i) {
                const int64_t t = wanted[i], token = first * l + t;
                a[i] = gated.data() + t * e;
                from[i] = z->normalized ? n.data() + t * d : x + token * d;
                to[i] = y + (z->newest ? token / l - z->first : token) * d;
            }
            out_proj.multiply(outputs, a.data(), from.data(), nullptr, to.data());
        });
    }
}

}  // namespace
