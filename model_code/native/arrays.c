/* Reads nested JSON arrays of numbers into float32, and looks whether float32 are finite.
 *
 * It reads what a body that is as it should be holds, and may refuse whatever it likes: the general reader, json_document.py,
 * takes what is refused here and finds the words for what is wrong with it. What is accepted has to be right: the grammar of
 * RFC 8259, the shape, and of each number the float32 next to the float64 next to its text, which is what the general reader
 * makes of it, bit for bit.
 *
 * Four things make it fast. The numbers need no second pass, because the shape is checked on the way. Eight digits are read
 * at once. How exact a result is, or how many digits the last group has, does not decide where the code goes on: a processor
 * that guesses wrong loses more time than half a number takes. And a number with the text of the one before it has its value:
 * most of an image is background.
 *
 * No function of a C library is called, so that one file runs beside every one of them.
 */

#include <stdint.h>

#define REFUSED (-1)
#define MOST_RANK 8

/* Of each number's whole and fractional part no more digits are looked at, and of its exponent no more than these. */
#define MOST_DIGITS 32
#define MOST_EXPONENT_DIGITS 4
/* Farther than this behind its first byte nothing is read of a number: -, 32 digits, ., 32 digits, e-, 4 digits, and up to eight
 * bytes more in each run of digits. The end of the text is read in a copy with as many zeros behind it. */
#define REACH 128

/* Ten to the power of its index; up to 22 exactly. */
static const double POWERS[] = {
    1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19,
    1e20, 1e21, 1e22, 1e23, 1e24, 1e25, 1e26, 1e27, 1e28, 1e29, 1e30, 1e31, 1e32, 1e33, 1e34, 1e35, 1e36, 1e37, 1e38, 1e39,
    1e40, 1e41, 1e42, 1e43, 1e44, 1e45, 1e46, 1e47, 1e48, 1e49, 1e50, 1e51, 1e52, 1e53, 1e54, 1e55, 1e56, 1e57, 1e58, 1e59,
};
#define MOST_EXPONENT 59
#define MOST_EXACT_EXPONENT 22
#define MOST_EXACT_MANTISSA ((uint64_t)1 << 53)

static const double LEAST_NORMAL_FLOAT32 = 0x1p-126;

/* Up to `surely` a magnitude is below `largest` whatever its roundings have done. */
typedef struct {
    double largest;
    double surely;
    int negative;
} Limits;

/* Where a run of digits ends, and what they are. */
typedef struct {
    const char *end;
    uint64_t value;
} Digits;

/* Where an exponent ends, or 0, and what it is. */
typedef struct {
    const char *end;
    int64_t value;
} Exponent;

static inline uint64_t load(const char *at) {
    uint64_t bytes;
    __builtin_memcpy(&bytes, at, sizeof bytes);
    return bytes;
}

static inline int is_digit(char byte) { return (unsigned char)(byte - '0') <= 9; }

static inline const char *skip_space(const char *at) {
    if ((unsigned char)*at > ' ') return at;
    while (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t') at++;
    return at;
}

/* The number that eight decimal digits are: each a byte from 0 to 9, the first one lowest. */
static inline uint64_t join_digits(uint64_t bytes) {
    /* Neighbours join: eight digits, four numbers up to 99, two up to 9999, one. */
    bytes = (bytes * 10 + (bytes >> 8)) & 0x00FF00FF00FF00FF;
    bytes = (bytes * 100 + (bytes >> 16)) & 0x0000FFFF0000FFFF;
    return (bytes * 10000 + (bytes >> 32)) & 0x00000000FFFFFFFF;
}

/* The decimal digits that begin at `at`, behind those of `value`; modulo 2^64. */
static inline __attribute__((always_inline)) Digits read_digits(const char *at, uint64_t value) {
    static const uint64_t TENS[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000};
    const char *most = at + MOST_DIGITS;
    for (;;) {
        /* The first byte in memory is the lowest one (little-endian); what a carry spoils lies above the first that is no digit. */
        const uint64_t bytes = load(at) ^ 0x3030303030303030;
        const uint64_t others = ((bytes + 0x7676767676767676) | bytes) & 0x8080808080808080;
        if (others) {
            const int count = __builtin_ctzll(others) / 8;
            /* Zeros take the places before them; a shift by 64, for no digit, has no meaning in C. */
            const uint64_t digits = bytes << (56 - 8 * count) << 8;
            return (Digits){at + count, value * TENS[count] + join_digits(digits)};
        }
        value = value * 100000000 + join_digits(bytes);
        at += 8;
        if (at >= most) return (Digits){at, value};
    }
}

/* Most numbers have one digit before the point: what comes here is kept out of their way. */
static __attribute__((noinline)) Digits read_more_digits(const char *at, uint64_t value) { return read_digits(at, value); }

/* Whether a text with a point in it has 20 digits or more behind its leading zeros: too many for a mantissa of 64 bits. */
static __attribute__((noinline)) int is_long(const char *start, const char *end) {
    const char *first = start;
    while (*first == '0' || *first == '.') first++;
    return end - first - (first == start) > 19;
}

/* What an exponent is whose e stands at `at`. */
static __attribute__((noinline)) Exponent read_exponent(const char *at) {
    const int down = *++at == '-';
    at += down || *at == '+';
    const char *digits = at;
    int64_t written = 0;
    while (is_digit(*at) && at - digits < MOST_EXPONENT_DIGITS) written = written * 10 + (*at++ - '0');
    return (Exponent){at == digits ? 0 : at, down ? -written : written};
}

/* Whether a magnitude that is near something is still certain to be right: near zero, the largest, or a border (see below). */
static __attribute__((noinline)) int is_certain(double value, uint64_t mantissa, int64_t exponent, const Limits *limits) {
    if (mantissa == 0) return 1;
    if (value < LEAST_NORMAL_FLOAT32 || value > limits->largest) return 0;
    return mantissa <= MOST_EXACT_MANTISSA && -MOST_EXACT_EXPONENT <= exponent && exponent <= MOST_EXACT_EXPONENT;
}

/* One number; returns the byte behind it, or 0 for one that is refused. */
static inline __attribute__((always_inline)) const char *read_number(const char *at, const Limits *limits, float *number) {
    const int negative = *at == '-';
    at += negative;

    const char *start = at;
    if (!is_digit(*at)) return 0;
    Digits digits = {at + 1, (uint64_t)(*at - '0')};
    if (is_digit(*digits.end)) {
        if (digits.value == 0) return 0;
        digits = read_more_digits(digits.end, digits.value);
        /* Whole numbers have limits of their own in the general reader: those of 64 bits. */
        if (digits.end - start > 18) return 0;
    }

    int64_t exponent = 0;
    int whole = 1;
    if (*digits.end == '.') {
        whole = 0;
        const char *fraction = digits.end + 1;
        digits = read_digits(fraction, digits.value);
        if (digits.end == fraction) return 0;
        exponent = fraction - digits.end;
        if (digits.end - start > 20 && is_long(start, digits.end)) return 0;
    }
    at = digits.end;
    if ((*at | 0x20) == 'e') {
        whole = 0;
        const Exponent written = read_exponent(at);
        at = written.end;
        exponent += written.value;
        if (!at || exponent < -MOST_EXPONENT || exponent > MOST_EXPONENT) return 0;
    }

    /* One operation with two exact operands gives the float64 next to the number (Clinger, "How to read floating point numbers
     * accurately", 1990). Otherwise up to three roundings leave it a few units of the last place away: the same float32, unless
     * a border between two of them, in the middle of its last 29 bits, is about as near. */
    const uint64_t mantissa = digits.value;
    double value = (double)mantissa;
    if (exponent > 0)
        value *= POWERS[exponent];
    else
        value /= POWERS[-exponent];
    uint64_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    const int far = (bits & 0x1FFFFFFF) - (0x10000000 - 16) > 32;
    const int normal = value >= LEAST_NORMAL_FLOAT32 && value <= limits->surely;
    if (!(far && normal) && !is_certain(value, mantissa, exponent, limits)) return 0;
    if (negative && mantissa && !limits->negative) return 0;

    /* -0 is a whole number, which has no sign; -0.0 has one. */
    *number = (float)(negative && !(whole && mantissa == 0) ? -value : value);
    return at;
}

/* What is read, and the copy that its last bytes are read from. */
typedef struct {
    const char *end;
    const char *copy_from;
    char copy[2 * REACH];
} Text;

/* Goes on in the copy, with zeros behind the text; returns 0 where the text has ended. */
static __attribute__((noinline)) const char *enter_copy(Text *text, const char *at) {
    const int64_t rest = text->end - at;
    if (rest <= 0) return 0;
    for (int64_t index = 0; index < 2 * REACH; index++) text->copy[index] = index < rest ? at[index] : 0;
    text->end = text->copy + rest;
    text->copy_from = (const char *)UINTPTR_MAX;
    return text->copy;
}

/* Read from n bytes before its middle, three words of which the first n bytes are ones. */
static const uint64_t FILL[] = {UINT64_MAX, UINT64_MAX, UINT64_MAX, 0, 0, 0};

/* Whether eight bytes differ where the mask has ones. */
static inline int differ(const char *one, const char *other, const char *mask) {
    return ((load(one) ^ load(other)) & load(mask)) != 0;
}

/* `left` numbers with commas between them; returns the byte behind the last one, or 0 where one is refused. */
static __attribute__((noinline)) const char *read_row(Text *text, const char *at, int64_t left, const Limits *limits,
                                                      float *numbers) {
    at = skip_space(at);
    for (;;) {
        if (at >= text->copy_from && !(at = enter_copy(text, at))) return 0;
        const char *start = at;
        float number;
        at = read_number(at, limits, &number);
        if (!at) return 0;
        *numbers++ = number;
        if (--left == 0) return at;

        /* Where the next number has this text, and this byte behind it, it has this value. */
        const int64_t length = at - start;
        const char *mask = (const char *)(FILL + 3) - (length < 24 ? length + 1 : 0);
        const char *most = length < 24 ? text->copy_from : 0;
        for (;;) {
            at = skip_space(at);
            if (*at++ != ',') return 0;
            at = skip_space(at);
            if (at >= most) break;
            if (differ(at, start, mask)) break;
            if (length > 7 && (differ(at + 8, start + 8, mask + 8) || differ(at + 16, start + 16, mask + 16))) break;
            at += length;
            *numbers++ = number;
            if (--left == 0) return at;
        }
    }
}

/* Reads `length` bytes from `body` + `start`: one array of `rank` dimensions and nothing around it. `sizes` are those of the
 * dimensions; with `open` the first one may have less. No magnitude is above `largest`, and none below zero without `negative`.
 *
 * `body` ends with a zero byte; `numbers` has room for all that the sizes allow, or for a number in each two bytes.
 * Returns how many there are, or REFUSED; `numbers` may have been written to by then.
 */
int64_t read_arrays(const char *body, int64_t start, int64_t length, const int64_t *sizes, int32_t rank, int32_t open,
                    double largest, int32_t negative, float *numbers) {
    if (rank < 1 || rank > MOST_RANK || (open && rank < 2)) return REFUSED;
    const Limits limits = {largest, largest * (1 - 1e-14), negative};
    const int64_t row = sizes[rank - 1];
    const float *first = numbers;
    const char *at = body + start;
    Text text;
    text.end = at + length;
    text.copy_from = length > REACH ? text.end - REACH : at;

    int64_t seen[MOST_RANK];
    int depth = 0; /* How many arrays are open. */
    for (;;) {
        for (; depth < rank; depth++) {
            at = skip_space(at);
            if (*at++ != '[') return REFUSED;
            seen[depth] = 0;
        }
        at = read_row(&text, at, row, &limits, numbers);
        if (!at) return REFUSED;
        numbers += row;

        /* An array that is full ends, and so does the one around it if this was its last. */
        for (;;) {
            at = skip_space(at);
            if (*at++ != ']') return REFUSED;
            if (--depth == 0) return at == text.end ? numbers - first : REFUSED;
            const int full = ++seen[depth - 1] == sizes[depth - 1];
            at = skip_space(at);
            if (*at == ',') {
                if (full) return REFUSED;
                at++;
                break;
            }
            if (!full && !(open && depth == 1)) return REFUSED;
        }
    }
}

/* Whether `count` float32, from `start` bytes behind `body` on, are all finite: an exponent of ones is infinity or NaN. */
int32_t all_finite(const char *body, int64_t start, int64_t count) {
    const char *at = body + start;
    uint32_t carries = 0;
    for (int64_t index = 0; index < count; index++) {
        uint32_t bits;
        __builtin_memcpy(&bits, at + 4 * index, sizeof bits);
        carries |= (bits & 0x7FFFFFFF) + 0x00800000; /* It reaches the highest bit from an exponent of ones only. */
    }
    return !(carries >> 31);
}
