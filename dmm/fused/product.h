// Matrix products of a row of tokens, which fits into the first levels of cache.
//
//     to_t += sum_k a_t[k] M[k]            Matrix: M in panels of two registers, packed once for all rows
//     M = sum_t a_t b_t^T                  Outer: over the tokens of some rows at a time
//
// Both are sums of outer products, of a few numbers with two registers, that stay in registers. Rows of `a` and `b` lie
// `stride` numbers apart, fewer than they are long where windows overlap, or wherever a list says.

#pragma once

#include "../scan/vector.h"

namespace {

#if defined(__AVX512F__)
constexpr int64_t HEIGHT = 12;  // numbers at once, so that sums and factors fill the registers
#else
constexpr int64_t HEIGHT = 6;
#endif
template <class T> constexpr int64_t WIDTH = 2 * W<T>;  // of a panel: two registers
constexpr int64_t GROUP = 8;                            // rows of the batch that an Outer takes at once

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
    // sums[r] += sum_k a[r][k] b[k WIDTH ..]
    void add(int64_t count, const T* const* a, const T* b) {
        Vec<T> s[R][2];
        const T* from[R];
        std::memcpy(s, sums, sizeof s), std::memcpy(from, a, sizeof from);
        for (int64_t k = 0; k < count; ++k) {
            Vec<T> left, right;
            std::memcpy(&left, b + k * WIDTH<T>, sizeof left);
            std::memcpy(&right, b + k * WIDTH<T> + W<T>, sizeof right);
#pragma GCC unroll 16
            for (int64_t r = 0; r < R; ++r) {
                const T factor = from[r][k];
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

template <class T> struct Matrix {
    int64_t inner, outer;
    std::vector<T> own;
    const T* panels;  // (ceil(outer / WIDTH), inner, WIDTH)

    static int64_t size(int64_t inner, int64_t outer) { return (outer + WIDTH<T> - 1) / WIDTH<T> * inner * WIDTH<T>; }
    template <class F> static void pack(int64_t inner, int64_t outer, const F& entry, T* panels) {
        for (int64_t c = 0; c < outer; ++c) {
            T* to = panels + c / WIDTH<T> * inner * WIDTH<T> + c % WIDTH<T>;
            for (int64_t k = 0; k < inner; ++k) to[k * WIDTH<T>] = entry(k, c);
        }
    }
    template <class F> Matrix(int64_t inner, int64_t outer, const F& entry) : inner(inner), outer(outer), own(size(inner, outer)), panels(own.data()) {
        pack(inner, outer, entry, own.data());
    }
    // The transpose of a weight (outer, inner), or that in panels already.
    Matrix(int64_t inner, int64_t outer, const T* weight, bool packed) : inner(inner), outer(outer), panels(weight) {
        if (packed) return;
        own.resize(size(inner, outer)), panels = own.data();
        pack(inner, outer, [&](int64_t k, int64_t c) { return weight[c * inner + k]; }, own.data());
    }
    Matrix(const Matrix&) = delete;  // panels may lie in own
    // to (count, outer) = from + shift + a M, without those that are null; rows of `to` and `from` are `jump` apart
    void multiply(int64_t count, const T* a, int64_t stride, const T* from, const T* shift, T* to, int64_t jump = 0) const {
        if (!jump) jump = outer;
        for (int64_t c = 0; c < outer; c += WIDTH<T>)
            tiles<T>(0, count, [&](int64_t t, auto tile) {
                tile.add(inner, a + t * stride, stride, 1, panels + c * inner, WIDTH<T>);
                for (auto& sums : tile.sums) {
                    const int64_t at = t++ * jump;
                    write(c, sums, from ? from + at : nullptr, shift, to + at);
                }
            });
    }
    // to[t] (outer) = from[t] + shift + a[t] M, each where the list says; no shift if it is null
    void multiply(int64_t count, const T* const* a, const T* const* from, const T* shift, T* const* to) const {
        for (int64_t c = 0; c < outer; c += WIDTH<T>)
            tiles<T>(0, count, [&](int64_t t, auto tile) {
                tile.add(inner, a + t, panels + c * inner);
                for (auto& sums : tile.sums) write(c, sums, from ? from[t] : nullptr, shift, to[t]), ++t;
            });
    }
    void write(int64_t c, const Vec<T>* sums, const T* from, const T* shift, T* to) const {
        for (int i = 0; i < 2 && c < outer; ++i, c += W<T>) finish(sums[i], from ? from + c : nullptr, shift ? shift + c : nullptr, to + c, outer - c);
    }
    static void finish(Vec<T> y, const T* from, const T* shift, T* to, int64_t left) {
        const int64_t lanes = std::min<int64_t>(W<T>, left);
        if (from) y += load(from, lanes);
        if (shift) y += load(shift, lanes);
        store(to, y, lanes);
    }
};

// (rows, columns); behind the last b there must be room for a panel.
template <class T> struct Outer {
    int64_t rows, columns, panels;
    std::vector<T> sums;  // (panels, rows, WIDTH)

    Outer(int64_t rows, int64_t columns, bool wanted) : rows(rows), columns(columns), panels(0) {
        if (wanted) panels = (columns + WIDTH<T> - 1) / WIDTH<T>;
        sums.resize(panels * rows * WIDTH<T>);
    }
    // `parts` times `count` tokens, the parts `jump_a` and `jump_b` apart
    void add(int64_t panel, int64_t parts, int64_t count, const T* a, int64_t jump_a, int64_t stride_a, const T* b, int64_t jump_b, int64_t stride_b) {
        tiles<T>(0, rows, [&](int64_t r, auto tile) {
            T* to = sums.data() + (panel * rows + r) * WIDTH<T>;
            std::memcpy(tile.sums, to, sizeof tile.sums);
            for (int64_t i = 0; i < parts; ++i)
                tile.add(count, a + i * jump_a + r, 1, stride_a, b + i * jump_b + panel * WIDTH<T>, stride_b);
            std::memcpy(to, tile.sums, sizeof tile.sums);
        });
    }
    void write(T* to) const {
        for (int64_t r = 0; panels && r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c) to[r * columns + c] = sums[(c / WIDTH<T> * rows + r) * WIDTH<T> + c % WIDTH<T>];
    }
};

}  // namespace
