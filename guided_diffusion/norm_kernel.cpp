// Group normalisation with a gain and an offset for each channel of each image, SiLU after it if
// wanted, and the way back, each in as few passes over memory as the statistics allow.
//
// Plain C interface, no headers of torch: built once for a processor (see native.py).
// x, y and their gradients are float32 or bfloat16 (y also where x is not), contiguous as
// [batch, channels, pixels] or, with channels_last, as [batch, pixels, channels]. Everything else is
// float32 and contiguous.
// Sums run over blocks of fixed size, so that results do not depend on the number of threads.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kBlock = 256;  // pixels that one partial sum is taken over
constexpr int64_t kTile = 32;    // channels taken together with channels_last; divides their number

struct bfloat16 {
    uint16_t bits;
};

inline float load(const float* p) { return *p; }

inline float load(const bfloat16* p) {
    uint32_t bits = uint32_t(p->bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// A run of values as float32: itself, or a copy. Loops that convert and compute at once are slower
// (compilers think in vectors of the narrow type), and those that sum stay scalar in some.
inline const float* widened(const float* p, int64_t, float*) { return p; }

inline const float* widened(const bfloat16* p, int64_t count, float* buffer) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) buffer[i] = load(p + i);
    return buffer;
}

inline void store(float* p, float value) { *p = value; }

inline void store(bfloat16* p, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    uint32_t quiet = (bits >> 16) | 0x40;
    p->bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

inline void narrow(float* p, const float* values) { std::memcpy(p, values, kTile * sizeof *p); }

inline void narrow(bfloat16* p, const float* values) {
#ifdef __AVX512BF16__
    static_assert(kTile == 32, "one vector");
    __m512 low = _mm512_loadu_ps(values), high = _mm512_loadu_ps(values + 16);
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high, low));
#else
#pragma omp simd
    for (int64_t i = 0; i < kTile; i++) store(p + i, values[i]);
#endif
}

// Coefficients of exp(r) for |r| <= ln(2) / 2, from the highest power down to 1: to a unit in the
// last place of float32, and to 3e-6, a thousandth of what bfloat16 tells apart.
template <typename T>
struct Exponential {
    static constexpr float kCoefficients[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                              4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f,
                                              1.0f,             1.0f};
};

template <>
struct Exponential<bfloat16> {
    static constexpr float kCoefficients[] = {4.15138478e-2f, 1.67874740e-1f, 5.00030137e-1f,
                                              9.99966836e-1f, 1.0f};
};

// 1 / (1 + exp(-u)) in operations that compilers vectorise.
template <typename T>
inline float sigmoid(float u) {
    float x = -u;
    x = x > 87.0f ? 87.0f : x;
    x = x < -87.0f ? -87.0f : x;
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded
    float shifted = x * 1.44269504f + kMagic;
    float n = shifted - kMagic;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
    float p = 0.0f;
    for (float c : Exponential<T>::kCoefficients) p = p * r + c;
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = int32_t(uint32_t(bits + 127) << 23);  // 2^n
    float power;
    std::memcpy(&power, &bits, 4);
    return 1.0f / (1.0f + p * power);
}

template <typename T, bool silu>
inline float activated(float u) {
    return silu ? u * sigmoid<T>(u) : u;
}

// Derivative of the activation at u, times dy.
template <typename T, bool silu>
inline float through(float u, float dy) {
    if (!silu) return dy;
    float s = sigmoid<T>(u);
    return dy * s * (1.0f + u * (1.0f - s));
}

struct Shape {
    int64_t batch, channels, pixels, groups;
    bool channels_last;
    int64_t blocks() const { return (pixels + kBlock - 1) / kBlock; }
    int64_t count(int64_t block) const {
        int64_t left = pixels - block * kBlock;
        return left < kBlock ? left : kBlock;
    }
};

// Two sums for each channel of each image, f(value of x, channel, index) giving the two summands.
// out: [batch, channels, 2]
template <typename F>
void sums(const Shape& s, double* out, const F& f) {
    int64_t blocks = s.blocks(), channels = s.channels;
    std::vector<float> partial(s.batch * blocks * channels * 2);
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < s.batch; n++) {
        for (int64_t b = 0; b < blocks; b++) {
            float* first = &partial[(n * blocks + b) * channels * 2];
            float* second = first + channels;
            int64_t from = b * kBlock, count = s.count(b);
            if (s.channels_last) {
                for (int64_t c = 0; c < channels; c += kTile) {
                    int64_t at = (n * s.pixels + from) * channels + c;
                    f.tile(n * channels + c, at, count, first + c, second + c);
                }
            } else {
                for (int64_t c = 0; c < channels; c++) {
                    int64_t at = (n * channels + c) * s.pixels + from;
                    f.run(n * channels + c, at, count, first[c], second[c]);
                }
            }
        }
    }
    for (int64_t n = 0; n < s.batch; n++) {
        for (int64_t c = 0; c < channels; c++) {
            double one = 0, two = 0;
            for (int64_t b = 0; b < blocks; b++) {
                const float* first = &partial[(n * blocks + b) * channels * 2];
                one += first[c];
                two += first[channels + c];
            }
            out[(n * channels + c) * 2] = one;
            out[(n * channels + c) * 2 + 1] = two;
        }
    }
}

// Sums of x - k and (x - k)^2, k the first value of the channel: little is lost to a large mean.
template <typename T>
struct Moments {
    const T* x;
    const float* k;
    int64_t channels;

    void tile(int64_t c, int64_t at, int64_t count, float* first, float* second) const {
        float one[kTile] = {}, two[kTile] = {}, shift[kTile];
        std::memcpy(shift, k + c, sizeof shift);
        for (int64_t i = 0; i < count; i++) {
            const T* values = x + at + i * channels;
#pragma omp simd
            for (int64_t j = 0; j < kTile; j++) {
                float value = load(values + j) - shift[j];
                one[j] += value;
                two[j] += value * value;
            }
        }
        std::memcpy(first, one, sizeof one);
        std::memcpy(second, two, sizeof two);
    }
    void run(int64_t c, int64_t at, int64_t count, float& first, float& second) const {
        float shift = k[c], one = 0, two = 0, buffer[kBlock];
        const float* values = widened(x + at, count, buffer);
#pragma omp simd reduction(+ : one, two)
        for (int64_t i = 0; i < count; i++) {
            float value = values[i] - shift;
            one += value;
            two += value * value;
        }
        first = one;
        second = two;
    }
};

// Sums of du and du x, du the gradient before the activation.
template <typename X, typename Y, bool silu>
struct Pulled {
    const X* x;
    const Y* dy;
    const float *a, *b, *k;
    int64_t channels;

    void tile(int64_t c, int64_t at, int64_t count, float* first, float* second) const {
        float one[kTile] = {}, two[kTile] = {}, gain[kTile], offset[kTile], mean[kTile];
        float buffer[kTile], other[kTile];
        std::memcpy(gain, a + c, sizeof gain);
        std::memcpy(offset, b + c, sizeof offset);
        std::memcpy(mean, k + c, sizeof mean);
        for (int64_t i = 0; i < count; i++) {
            const float* values = widened(x + at + i * channels, kTile, buffer);
            const float* pulled = widened(dy + at + i * channels, kTile, other);
#pragma omp simd
            for (int64_t j = 0; j < kTile; j++) {
                float du = through<Y, silu>(values[j] * gain[j] + offset[j], pulled[j]);
                one[j] += du;
                two[j] += du * (values[j] - mean[j]);
            }
        }
        std::memcpy(first, one, sizeof one);
        std::memcpy(second, two, sizeof two);
    }
    void run(int64_t c, int64_t at, int64_t count, float& first, float& second) const {
        float gain = a[c], offset = b[c], mean = k[c];
        float one = 0, two = 0, buffer[kBlock], other[kBlock];
        const float* values = widened(x + at, count, buffer);
        const float* pulled = widened(dy + at, count, other);
#pragma omp simd reduction(+ : one, two)
        for (int64_t i = 0; i < count; i++) {
            float du = through<Y, silu>(values[i] * gain + offset, pulled[i]);
            one += du;
            two += du * (values[i] - mean);
        }
        first = one;
        second = two;
    }
};

// Calls f.tile for some channels of a block (channels last), or f.run for a channel of it.
template <typename F>
void everywhere(const Shape& s, const F& f) {
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < s.batch; n++) {
        for (int64_t b = 0; b < s.blocks(); b++) {
            int64_t from = b * kBlock, count = s.count(b);
            if (s.channels_last) {
                for (int64_t c = 0; c < s.channels; c += kTile) {
                    f.tile(n * s.channels + c, (n * s.pixels + from) * s.channels + c, count);
                }
            } else {
                for (int64_t c = 0; c < s.channels; c++) {
                    f.run(n * s.channels + c, (n * s.channels + c) * s.pixels + from, count);
                }
            }
        }
    }
}

template <typename X, typename Y, bool silu>
struct Apply {
    const X* x;
    Y* y;
    const float *a, *b;
    int64_t channels;

    void tile(int64_t c, int64_t at, int64_t count) const {
        float gain[kTile], offset[kTile], buffer[kTile], result[kTile];
        std::memcpy(gain, a + c, sizeof gain);
        std::memcpy(offset, b + c, sizeof offset);
        for (int64_t i = 0; i < count; i++) {
            const float* values = widened(x + at + i * channels, kTile, buffer);
            Y* out = y + at + i * channels;
#pragma omp simd
            for (int64_t j = 0; j < kTile; j++)
                result[j] = activated<Y, silu>(values[j] * gain[j] + offset[j]);
            narrow(out, result);
        }
    }
    void run(int64_t c, int64_t at, int64_t count) const {
        float gain = a[c], offset = b[c];
#pragma omp simd
        for (int64_t i = 0; i < count; i++)
            store(y + at + i, activated<Y, silu>(load(x + at + i) * gain + offset));
    }
};

// dx = a du + p x + q
template <typename X, typename Y, bool silu>
struct ApplyBackward {
    const X* x;
    const Y* dy;
    X* dx;
    const float *a, *b, *p, *q;
    int64_t channels;

    void tile(int64_t c, int64_t at, int64_t count) const {
        float gain[kTile], offset[kTile], slope[kTile], constant[kTile];
        float buffer[kTile], other[kTile], result[kTile];
        std::memcpy(gain, a + c, sizeof gain);
        std::memcpy(offset, b + c, sizeof offset);
        std::memcpy(slope, p + c, sizeof slope);
        std::memcpy(constant, q + c, sizeof constant);
        for (int64_t i = 0; i < count; i++) {
            const float* values = widened(x + at + i * channels, kTile, buffer);
            const float* pulled = widened(dy + at + i * channels, kTile, other);
            X* out = dx + at + i * channels;
#pragma omp simd
            for (int64_t j = 0; j < kTile; j++) {
                float du = through<Y, silu>(values[j] * gain[j] + offset[j], pulled[j]);
                result[j] = gain[j] * du + (slope[j] * values[j] + constant[j]);
            }
            narrow(out, result);
        }
    }
    void run(int64_t c, int64_t at, int64_t count) const {
        float gain = a[c], offset = b[c], slope = p[c], constant = q[c];
#pragma omp simd
        for (int64_t i = 0; i < count; i++) {
            float value = load(x + at + i);
            float du = through<Y, silu>(value * gain + offset, load(dy + at + i));
            store(dx + at + i, gain * du + (slope * value + constant));
        }
    }
};

// a and b of u = a x + b for each channel of each image, [batch, channels].
void affine(const Shape& s, const float* mean, const float* rstd, const float* gain,
            const float* offset, float* a, float* b) {
    int64_t width = s.channels / s.groups;
    for (int64_t i = 0; i < s.batch * s.channels; i++) {
        int64_t g = i / s.channels * s.groups + i % s.channels / width;
        a[i] = gain[i] * rstd[g];
        b[i] = offset[i] - mean[g] * a[i];
    }
}

template <typename X, typename Y, bool silu>
void forward(const Shape& s, const X* x, const float* gain, const float* offset, float eps, Y* y,
             float* mean, float* rstd) {
    int64_t width = s.channels / s.groups, total = s.batch * s.channels;
    std::vector<float> k(total), a(total), b(total);
    for (int64_t i = 0; i < total; i++) {
        int64_t n = i / s.channels, c = i % s.channels;
        k[i] = load(x + (s.channels_last ? n * s.pixels * s.channels + c : i * s.pixels));
    }
    std::vector<double> moments(total * 2);
    sums(s, moments.data(), Moments<X>{x, k.data(), s.channels});
    for (int64_t g = 0; g < s.batch * s.groups; g++) {
        double size = double(width * s.pixels), middle = 0, spread = 0;
        for (int64_t i = g * width; i < (g + 1) * width; i++)
            middle += k[i] * double(s.pixels) + moments[2 * i];
        middle /= size;
        for (int64_t i = g * width; i < (g + 1) * width; i++) {
            double gap = k[i] - middle;
            spread += moments[2 * i + 1] + 2 * gap * moments[2 * i] + s.pixels * gap * gap;
        }
        spread = spread > 0 ? spread / size : spread * 0;  // what is no number stays none
        mean[g] = float(middle);
        rstd[g] = float(1 / std::sqrt(spread + eps));
    }
    affine(s, mean, rstd, gain, offset, a.data(), b.data());
    everywhere(s, Apply<X, Y, silu>{x, y, a.data(), b.data(), s.channels});
}

template <typename X, typename Y, bool silu>
void backward(const Shape& s, const X* x, const Y* dy, const float* gain, const float* offset,
              const float* mean, const float* rstd, X* dx, float* dgain, float* doffset) {
    int64_t width = s.channels / s.groups, total = s.batch * s.channels;
    std::vector<float> a(total), b(total), middle(total), p(total), q(total);
    affine(s, mean, rstd, gain, offset, a.data(), b.data());
    for (int64_t i = 0; i < total; i++)
        middle[i] = mean[i / s.channels * s.groups + i % s.channels / width];
    std::vector<double> pulled(total * 2);
    sums(s, pulled.data(), Pulled<X, Y, silu>{x, dy, a.data(), b.data(), middle.data(), s.channels});
    for (int64_t g = 0; g < s.batch * s.groups; g++) {
        double size = double(width * s.pixels), one = 0, two = 0, r = rstd[g];
        for (int64_t i = g * width; i < (g + 1) * width; i++) {
            doffset[i] = float(pulled[2 * i]);
            dgain[i] = float(pulled[2 * i + 1] * r);
            one += gain[i] * pulled[2 * i];
            two += gain[i] * pulled[2 * i + 1] * r;
        }
        double slope = -r * r * two / size;
        for (int64_t i = g * width; i < (g + 1) * width; i++) {
            p[i] = float(slope);
            q[i] = float(-r * one / size - slope * mean[g]);
        }
    }
    everywhere(s, ApplyBackward<X, Y, silu>{x, dy, dx, a.data(), b.data(), p.data(), q.data(),
                                         s.channels});
}

}  // namespace

// Calls f(x type, y type, activation) with what the arguments of the functions below say.
template <typename F>
void dispatch(int x_bfloat16, int y_bfloat16, int silu, const F& f) {
    auto with_types = [&](auto x, auto y) {
        silu ? f(x, y, std::true_type()) : f(x, y, std::false_type());
    };
    if (x_bfloat16)
        with_types(bfloat16(), bfloat16());
    else if (y_bfloat16)
        with_types(float(), bfloat16());
    else
        with_types(float(), float());
}

extern "C" {

// x, dx: float32, or bfloat16 where y and dy are too.
void norm_forward(int64_t batch, int64_t channels, int64_t pixels, int64_t groups,
                  int channels_last, int x_bfloat16, int y_bfloat16, int silu, const void* x,
                  const float* gain, const float* offset, float eps, void* y, float* mean,
                  float* rstd) {
    Shape s{batch, channels, pixels, groups, channels_last != 0};
    dispatch(x_bfloat16, y_bfloat16, silu, [&](auto x_type, auto y_type, auto activated) {
        using X = decltype(x_type);
        using Y = decltype(y_type);
        forward<X, Y, decltype(activated)::value>(s, static_cast<const X*>(x), gain, offset, eps,
                                                  static_cast<Y*>(y), mean, rstd);
    });
}

void norm_backward(int64_t batch, int64_t channels, int64_t pixels, int64_t groups,
                   int channels_last, int x_bfloat16, int y_bfloat16, int silu, const void* x,
                   const void* dy, const float* gain, const float* offset, const float* mean,
                   const float* rstd, void* dx, float* dgain, float* doffset) {
    Shape s{batch, channels, pixels, groups, channels_last != 0};
    dispatch(x_bfloat16, y_bfloat16, silu, [&](auto x_type, auto y_type, auto activated) {
        using X = decltype(x_type);
        using Y = decltype(y_type);
        backward<X, Y, decltype(activated)::value>(
            s, static_cast<const X*>(x), static_cast<const Y*>(dy), gain, offset, mean, rstd,
            static_cast<X*>(dx), dgain, doffset);
    });
}
}
