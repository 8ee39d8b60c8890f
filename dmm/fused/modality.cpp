// The branch of a convolution for each modality, forward and backward, for C: see modality.py for the formulas.
//
// One row of the batch after the other; sums over the batch are left to the caller, row by row (dnorm, dtaps), so that
// each has one order, whatever the number of threads.

#include "norm.h"

namespace {

struct Sizes {
    int64_t b, l, d, w, modalities, first, step;  // outputs are at tokens first, first + step, ...
    double eps;
};

template <class T>
void modality(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, const T* taps, const T* bias, T* n, T* y) {
    const int64_t l = z->l, d = z->d, w = z->w, outputs = (l - z->first + z->step - 1) / z->step;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t row = 0; row < z->b; ++row) {
        const T* in = x + row * l * d;
        T *normed = n + row * l * d, *out = y + row * outputs * d;
        Norm<T>{l, d, 0, T(z->eps), in, gain, shift}.forward(0, normed);
        for (int64_t t = z->first; t < l; t += z->step, out += d) {
            const T *own = taps + t % z->modalities * w * d, *constant = bias + t % z->modalities * d;
            for (int64_t c = 0; c < d; c += W<T>) {
                const int64_t lanes = std::min<int64_t>(W<T>, d - c);
                Vec<T> sum = load(constant + c, lanes);
                for (int64_t j = std::max<int64_t>(0, w - 1 - t); j < w; ++j) sum += load(own + j * d + c, lanes) * load(normed + (t - w + 1 + j) * d + c, lanes);
                store(out + c, load(in + t * d + c, lanes) + sum, lanes);
            }
        }
    }
}

// dtaps (b, modalities, w + 1, d): of the taps, then of the bias
template <class T>
void modality_backward(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* taps, const T* n, const T* dy, T* dx, T* dnorm, T* dtaps) {
    const int64_t l = z->l, d = z->d, w = z->w, outputs = (l - z->first + z->step - 1) / z->step;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<T> dn(l * d), past(l * d);
        std::vector<Vec<T>> spare(d / W<T> + 1);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < z->b; ++row) {
            const T *normed = n + row * l * d, *from = dy + row * outputs * d;
            T* sums = dtaps + row * z->modalities * (w + 1) * d;
            std::fill(dn.begin(), dn.end(), T(0)), std::fill(past.begin(), past.end(), T(0));
            std::fill(sums, sums + z->modalities * (w + 1) * d, T(0));
            for (int64_t t = z->first; t < l; t += z->step, from += d) {
                const T* own = taps + t % z->modalities * w * d;
                T* into = sums + t % z->modalities * (w + 1) * d;
                std::copy(from, from + d, past.begin() + t * d);
                for (int64_t c = 0; c < d; c += W<T>) {
                    const int64_t lanes = std::min<int64_t>(W<T>, d - c);
                    const Vec<T> g = load(from + c, lanes);
                    for (int64_t j = std::max<int64_t>(0, w - 1 - t); j < w; ++j) {
                        const int64_t at = (t - w + 1 + j) * d + c;
                        store(dn.data() + at, load(dn.data() + at, lanes) + g * load(own + j * d + c, lanes), lanes);
                        store(into + j * d + c, load(into + j * d + c, lanes) + g * load(normed + at, lanes), lanes);
                    }
                    store(into + w * d + c, load(into + w * d + c, lanes) + g, lanes);
                }
            }
            Norm<T>{l, d, 0, T(z->eps), x + row * l * d, gain, nullptr}.backward(0, dn.data(), past.data(), dx + row * l * d, dnorm + row * 2 * d, spare.data());
        }
    }
}

}  // namespace

#define EXPORT(T) \
    void dmm_modality_##T(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* shift, const T* taps, const T* bias, T* n, T* y) { \
        modality(z, threads, x, gain, shift, taps, bias, n, y); \
    } \
    void dmm_modality_backward_##T(const Sizes* z, int64_t threads, const T* x, const T* gain, const T* taps, const T* n, const T* dy, T* dx, T* dnorm, \
            T* dtaps) { \
        modality_backward(z, threads, x, gain, taps, n, dy, dx, dnorm, dtaps); \
    }

extern "C" {
EXPORT(float)
EXPORT(double)
}
