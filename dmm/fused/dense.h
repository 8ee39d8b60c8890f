// The Dense Sequence Mixer as what it is, a causal convolution of all channels: y_t = W [n_(t-w+1); ...; n_t].
//
// Windows overlap, so a matrix product of them needs each token w times in memory; here the windows of one row are read
// off its tokens, which lie one after the other behind w - 1 zeros, and stay in the first level of cache:
//
//     y_t  = sum_k n[t d + k] W^T[k],            k over w d numbers from the window's first token on
//     dn_t = sum_k dy[t d + k] V[k],             V: rows of W by the age at which they see a token; zeros behind dy
//     dW   = sum_t dy_t n[t d .. (t + w) d]^T,   over the tokens of a few rows at a time
//
// Each is a sum of outer products, of a few numbers with two registers, that stays in registers.
// Layouts: W (d, w d); n (b, w - 1 + l, d) and room for two registers behind; y, dy (b, l, d).

#include "../scan/vector.h"

namespace {

#if defined(__AVX512F__)
constexpr int64_t HEIGHT = 12;  // numbers at once, so that sums and factors fill the registers
#else
constexpr int64_t HEIGHT = 6;
#endif
template <class T> constexpr int64_t WIDTH = 2 * W<T>;  // numbers of a panel: two registers
constexpr int64_t GROUP = 8;                            // rows of the batch that dW is summed over at once

template <class T, int64_t R> struct Tile {
    Vec<T> sums[R][2];

    // sums[r] += sum_k a[r height + k step] b[k stride ..]
    void add(int64_t count, const T* a, int64_t height, int64_t step, const T* b, int64_t stride) {
        Vec<T> s[R][2];
        std::memcpy(s, sums, sizeof s);
        for (int64_t k = 0; k < count; ++k) {
            Vec<T> left, right;
            std::memcpy(&left, b + k * stride, sizeof left);
            std::memcpy(&right, b + k * stride + W<T>, sizeof right);
#pragma GCC unroll 16
            for (int64_t r = 0; r < R; ++r) {
                const T factor = a[r * height + k * step];
                s[r][0] += factor * left, s[r][1] += factor * right;
            }
        }
        std::memcpy(sums, s, sizeof s);
    }
};

// Calls each(first, Tile of so many) for all of 0 .. count.
template <class T, int64_t R = HEIGHT, class F> void tiles(int64_t first, int64_t count, const F& each) {
    for (; first + R <= count; first += R) each(first, Tile<T, R>{});
    if constexpr (R > 1) tiles<T, (R > 8 ? 8 : R > 4 ? 4 : R / 2)>(first, count, each);
}

template <class T> struct Dense {
    int64_t l, d, w;
    std::vector<T> panels;  // (ceil(d / WIDTH), w d, WIDTH)

    // weight(k, c): what input k of a window gives to channel c
    template <class F> Dense(int64_t l, int64_t d, int64_t w, const F& weight) : l(l), d(d), w(w) {
        panels.resize((d + WIDTH<T> - 1) / WIDTH<T> * w * d * WIDTH<T>);
        for (int64_t c = 0; c < d; ++c) {
            T* to = panels.data() + c / WIDTH<T> * w * d * WIDTH<T> + c % WIDTH<T>;
            for (int64_t k = 0; k < w * d; ++k) to[k * WIDTH<T>] = weight(k, c);
        }
    }
    // to[t] = from[t] + shift + the convolution of the tokens (w - 1 + l, d); without `from` the convolution alone
    void apply(const T* tokens, const T* from, const T* shift, T* to) const {
        for (int64_t c = 0; c < d; c += WIDTH<T>) {
            const T* panel = panels.data() + c * w * d;
            tiles<T>(0, l, [&](int64_t t, auto tile) {
                tile.add(w * d, tokens + t * d, d, 1, panel, WIDTH<T>);
                for (auto& sums : tile.sums) {
                    for (int half = 0; half < 2; ++half) {
                        const int64_t at = c + half * W<T>, lanes = std::min<int64_t>(W<T>, d - at);
                        if (lanes <= 0) break;
                        Vec<T> y = sums[half];
                        if (from) y += load(from + t * d + at, lanes);
                        if (shift) y += load(shift + at, lanes);
                        store(to + t * d + at, y, lanes);
                    }
                    ++t;
                }
            });
        }
    }
};

// The sum over rows `row .. row + rows` for one panel of dW, (d, WIDTH) at `sums`.
template <class T>
void add_to_panel(const Dense<T>& own, int64_t row, int64_t rows, int64_t panel, const T* tokens, const T* dy, T* sums) {
    const int64_t l = own.l, d = own.d, padded = own.w - 1 + l;
    tiles<T>(0, d, [&](int64_t c, auto tile) {
        T* to = sums + c * WIDTH<T>;
        std::memcpy(tile.sums, to, sizeof tile.sums);
        for (int64_t i = row; i < row + rows; ++i)
            tile.add(l, dy + i * l * d + c, 1, d, tokens + i * padded * d + panel * WIDTH<T>, d);
        std::memcpy(to, tile.sums, sizeof tile.sums);
    });
}

}  // namespace
