// LayerNorm of tokens, n = (x - mean) / std * gain + shift. Backward, with xhat = (x - mean) / std and g = dn * gain,
//
//     dx = (g - mean(g) - xhat mean(g xhat)) / std,   dgain = sum dn xhat,   dshift = sum dn
//
// where the gradient dy of a residual is taken along: dx by dx, if the residual adds to x, else by dn.
// Layouts: x, n, dn, dy, dx (b, l, d); gain, shift (d); dnorm (b, 2, d): of gain and shift, for each row.

#pragma once

#include "../scan/vector.h"

#include <cmath>

namespace {

template <class T> struct Norm {
    int64_t l, d, normalized;  // normalized: whether the residual adds to n
    T eps;
    const T *x, *gain, *shift;

    template <class F> void channels(F each) const {
        for (int64_t c = 0; c < d; c += W<T>) each(c, std::min<int64_t>(W<T>, d - c));
    }
    void moments(const T* token, T& mean, T& scale) const {
        Vec<T> total{};
        channels([&](int64_t c, int64_t lanes) { total += load(token + c, lanes); });
        mean = sum<T>(total) / T(d);
        total = Vec<T>{};
        channels([&](int64_t c, int64_t lanes) {
            Vec<T> off{};
            store((T*)&off, load(token + c, lanes) - mean, lanes);  // what lies beyond the last channel stays 0
            total += off * off;
        });
        scale = T(1) / std::sqrt(sum<T>(total) / T(d) + eps);
    }
    void forward(int64_t row, T* n) const {
        T mean, scale;
        for (int64_t t = 0; t < l; ++t, n += d) {
            const T* token = x + (row * l + t) * d;
            moments(token, mean, scale);
            channels([&](int64_t c, int64_t lanes) {
                const Vec<T> xhat = (load(token + c, lanes) - mean) * scale;
                store(n + c, xhat * load(gain + c, lanes) + load(shift + c, lanes), lanes);
            });
        }
    }
    void backward(int64_t row, const T* dn, const T* dy, T* dx, T* dnorm, Vec<T>* g) const {  // g (d / W + 1)
        std::fill(dnorm, dnorm + 2 * d, T(0));
        dy += row * l * d, dx += row * l * d;
        const T* token = x + row * l * d;
        for (int64_t t = 0; t < l; ++t, dn += d, dy += d, dx += d, token += d) {
            T mean, scale;
            moments(token, mean, scale);
            Vec<T> total{}, along{};
            channels([&](int64_t c, int64_t lanes) {
                const Vec<T> in = normalized ? load(dn + c, lanes) + load(dy + c, lanes) : load(dn + c, lanes);
                const Vec<T> xhat = (load(token + c, lanes) - mean) * scale;
                store(dnorm + c, load(dnorm + c, lanes) + in * xhat, lanes);
                store(dnorm + d + c, load(dnorm + d + c, lanes) + in, lanes);
                const Vec<T> each = g[c / W<T>] = in * load(gain + c, lanes);
                total += each, along += each * xhat;
            });
            const T middle = sum<T>(total) / T(d), slope = sum<T>(along) / T(d);
            channels([&](int64_t c, int64_t lanes) {
                const Vec<T> xhat = (load(token + c, lanes) - mean) * scale;
                const Vec<T> past = normalized ? Vec<T>{} : load(dy + c, lanes);
                store(dx + c, past + (g[c / W<T>] - middle - xhat * slope) * scale, lanes);
            });
        }
    }
};

}  // namespace
