// LayerNorm of tokens and the windows behind them: U_t = [n_(t-w+1); ...; n_t] with n = LN(x), zeros before the first.
//
// w = 1 is LayerNorm alone. Backward, from dU, the gradients that arrive at one token in the windows of the next w are
// summed, and with dn, xhat = (x - mean) / std and g = dn * weight
//
//     dx = (g - mean(g) - xhat mean(g xhat)) / std,   dweight = sum dn xhat,   dbias = sum dn
//
// where dx and, for a residual that adds to n instead of x, dn take the residual's own gradient along.
// Layouts: x, dx (b, l, d); U, dU (b, l, w, d); weight, bias (d); dnorm (b, 2, d): of weight and bias, for each row.

#include "../scan/vector.h"

namespace {

template <class T> struct Norm {
    int64_t l, d, w, normalized;
    T eps;
    const T *x, *weight, *bias;

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
    void forward(int64_t row, T* windows, T* tokens) const {  // tokens (w - 1 + l, d), of which the first w - 1 are 0
        T mean, scale;
        for (int64_t t = 0; t < l; ++t) {
            const T* token = x + (row * l + t) * d;
            T* out = tokens + (w - 1 + t) * d;
            moments(token, mean, scale);
            channels([&](int64_t c, int64_t lanes) {
                const Vec<T> xhat = (load(token + c, lanes) - mean) * scale;
                store(out + c, xhat * load(weight + c, lanes) + load(bias + c, lanes), lanes);
            });
            std::memcpy(windows + (row * l + t) * w * d, tokens + t * d, w * d * sizeof(T));
        }
    }
    void backward(int64_t row, const T* dwindows, const T* dy, T* dx, T* dnorm, Vec<T>* dn) const {  // dn (d / W + 1)
        std::fill(dnorm, dnorm + 2 * d, T(0));
        for (int64_t t = 0; t < l; ++t) {
            const int64_t at = row * l + t, ages = std::min(w, l - t);
            T mean, scale;
            moments(x + at * d, mean, scale);
            Vec<T> total{}, along{};
            channels([&](int64_t c, int64_t lanes) {
                Vec<T> g = normalized ? load(dy + at * d + c, lanes) : Vec<T>{};
                for (int64_t age = 0; age < ages; ++age)
                    g += load(dwindows + ((at + age) * w + w - 1 - age) * d + c, lanes);
                const Vec<T> xhat = (load(x + at * d + c, lanes) - mean) * scale;
                store(dnorm + c, load(dnorm + c, lanes) + g * xhat, lanes);
                store(dnorm + d + c, load(dnorm + d + c, lanes) + g, lanes);
                g *= load(weight + c, lanes);
                dn[c / W<T>] = g;
                total += g, along += g * xhat;
            });
            const T middle = sum<T>(total) / T(d), slope = sum<T>(along) / T(d);
            channels([&](int64_t c, int64_t lanes) {
                const Vec<T> xhat = (load(x + at * d + c, lanes) - mean) * scale;
                const Vec<T> past = normalized ? Vec<T>{} : load(dy + at * d + c, lanes);
                store(dx + at * d + c, past + (dn[c / W<T>] - middle - xhat * slope) * scale, lanes);
            });
        }
    }
};

}  // namespace
