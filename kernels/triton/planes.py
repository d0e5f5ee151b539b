"""Products with rows whose codes lie in planes, read as they are stored: a byte's elements one after the other.

So loads are wide, and what a thread has unpacked meets its elements of x without a word to the other threads. Bits
become numbers beside a large exponent, since a card ands and adds faster than it converts.
"""

import triton
import triton.language as tl
from gmoe.kernels.triton.unpack import low_of, plane, scale_of

BESIDE = tl.constexpr(0x4B000000)  # float32 8388608: the last bits of its mantissa count whole numbers
BESIDE_VALUE = tl.constexpr(8388608.0)


@triton.jit
def begins(byte, COUNT: tl.constexpr, RUN: tl.constexpr, ROW: tl.constexpr):
    """The elements [COUNT] that stand in the low bits of every RUN-th byte of the low planes, from one on."""
    at = byte + tl.arange(0, COUNT) * RUN
    return at // ROW.low_run * (ROW.low_run * (8 // ROW.low_bits)) + at % ROW.low_run


@triton.jit
def stored(rows, element, inside, MASKED: tl.constexpr, ROW: tl.constexpr):
    """The runs of bytes whose low bits hold `element` [G] and what follows, of N rows.

    -> pointers to their blocks [N, G, 1], the elements counted there [1, G, 1], and the bytes [N, G, run] of the low
    plane and of the high one, int32. Of elements that are not `inside` the row's first block is read: it is there.
    """
    RUN: tl.constexpr = ROW.run
    number = element // ROW.block
    if MASKED:
        number = tl.where(inside, number, 0)
    block = rows[:, None, None] + (number * ROW.bytes)[None, :, None]
    e = element % ROW.block
    r = tl.arange(0, RUN)[None, None, :]
    at = e // (ROW.low_run * (8 // ROW.low_bits)) * ROW.low_run + e % ROW.low_run
    low = tl.load(block + (ROW.low_at + tl.multiple_of(at, RUN))[None, :, None] + r)
    high = low
    if ROW.high_bits != 0 and ROW.high_run >= ROW.run:
        at = e // (ROW.high_run * (8 // ROW.high_bits)) * ROW.high_run + e % ROW.high_run
        high = tl.load(block + (ROW.high_at + tl.multiple_of(at, RUN))[None, :, None] + r)
    return block, e[None, :, None], low.to(tl.int32), high.to(tl.int32)


@triton.jit
def _number(bits):
    return (bits | BESIDE).to(tl.float32, bitcast=True)


@triton.jit
def _codes(block, e, low, high, table, LANE: tl.constexpr, ROW: tl.constexpr):
    """The codes in a lane of `stored` bytes, less the bias, float32 [N, G, run]; in planes of fewer than 8 bits times
    two to the bits below the lane, which `_scale` divides by."""
    SHIFT: tl.constexpr = LANE * ROW.low_bits
    MASK: tl.constexpr = (1 << ROW.low_bits) - 1
    if ROW.scheme == "e8m0" or ROW.scheme == "ue4m3":  # E2M1 doubled: as bits of a float32, times 2 ** 127
        sign, rest = low << (28 - SHIFT), low << (22 - SHIFT)
        bits = (sign & -0x80000000) | (rest & 0x01C00000)
        return bits.to(tl.float32, bitcast=True) * 1.7014118346046923e38
    elif ROW.codebook:
        return tl.load(table + ((low >> SHIFT) & MASK))
    elif ROW.low_bits == 8:
        return low.to(tl.int8).to(tl.float32)
    else:
        value = _number(low & (MASK << SHIFT)) - (BESIDE_VALUE + ROW.bias * (1 << SHIFT))
        if ROW.high_bits != 0:
            ABOVE: tl.constexpr = SHIFT + ROW.low_bits
            at = e + LANE * ROW.low_run
            if ROW.high_run >= ROW.run:
                place = at // ROW.high_run % (8 // ROW.high_bits) * ROW.high_bits  # of its bits in the byte
                more = _number(high & (((1 << ROW.high_bits) - 1) << place)) - BESIDE_VALUE
                value += more * ((127 + ABOVE - place) << 23).to(tl.float32, bitcast=True)
            else:
                r = tl.arange(0, ROW.run)[None, None, :]
                more = plane(block, at + r, ROW.high_at, ROW.high_bits, ROW.high_run)
                value += more.to(tl.float32) * (1 << ABOVE)
        return value


@triton.jit
def _scale(block, group, LANE: tl.constexpr, ROW: tl.constexpr):
    if LANE == 0 or ROW.low_bits == 8 or ROW.codebook:
        return scale_of(block, group, ROW)
    else:
        return scale_of(block, group, ROW) * (1.0 / (1 << (LANE * ROW.low_bits)))


@triton.jit
def _group(e, LANE: tl.constexpr, ROW: tl.constexpr):
    return (e + LANE * ROW.low_run) // ROW.group


@triton.jit
def add_product(a, w, total, PRECISION: tl.constexpr):
    """total + a @ w.T of a [M, K] and w [N, K] float32, which is rounded to what a is."""
    if a.dtype == tl.float32:
        return tl.dot(a, tl.trans(w), total, input_precision=PRECISION)
    else:
        return tl.dot(a, tl.trans(w.to(a.dtype)), total)


@triton.jit
def dots(
    x, rows, table, first, past,
    K: tl.constexpr, N: tl.constexpr, WHOLE: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """The row `x` [1, 1, 1] (a pointer) times N weight rows over the elements first .. past -> float32 [N].

    `first` is a multiple of 256; `WHOLE`: these are all K elements. Threads add up for themselves until the end.
    """
    LANES: tl.constexpr = 8 // ROW.low_bits
    RUN: tl.constexpr = ROW.run
    FOURS: tl.constexpr = RUN // 4
    GROUPS: tl.constexpr = 64 // N if N <= 64 else 1  # few enough scales that no thread waits for another's
    WIDE: tl.constexpr = GROUPS * RUN
    MASKED: tl.constexpr = not WHOLE or K % (WIDE * LANES) != 0
    LOW: tl.constexpr = ROW.scheme == "d_m" or ROW.scheme == "k2" or ROW.scheme == "k4"
    if LOW:
        total = tl.zeros((N, GROUPS, RUN), tl.float32)
    else:
        total = tl.zeros((N, GROUPS, FOURS), tl.float32)
    r = tl.arange(0, RUN)[None, None, :]
    for byte in tl.range(first // LANES, past // LANES, WIDE, loop_unroll_factor=2):
        element = begins(byte, GROUPS, RUN, ROW)
        block, e, low, high = stored(rows, element, element < past, MASKED, ROW)
        element = tl.multiple_of(element, RUN)[None, :, None]
        inside = element < past
        for lane in tl.static_range(LANES):
            code = _codes(block, e, low, high, table, lane, ROW)
            group = _group(e, lane, ROW)
            scale = _scale(block, group, lane, ROW)
            at = x + tl.broadcast_to(element + lane * ROW.low_run + r, (N, GROUPS, RUN))  # as wide as the bytes
            if MASKED:
                a = tl.load(at, mask=tl.broadcast_to(inside, (N, GROUPS, RUN)), other=0.0).to(tl.float32)
            else:
                a = tl.load(at).to(tl.float32)
            if LOW:
                total += (code * scale + low_of(block, group, ROW)) * a
            else:
                total += tl.sum(tl.reshape(code * a, (N, GROUPS, FOURS, 4)), 3) * scale
    return tl.sum(tl.sum(total, 2), 1)


@triton.jit
def tiles(
    x, rows, table, xs, inside, first, past,
    K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, ROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x's rows (those at the element offsets `xs` [M], where `inside`) times N weight rows -> float32 [M, N].

    Over the elements first .. past, 32 bytes of each row at a time; `first` is a multiple of 256.
    """
    LANES: tl.constexpr = 8 // ROW.low_bits
    RUN: tl.constexpr = ROW.run
    WIDE: tl.constexpr = 32  # of more a card would have room for fewer programs at a time
    total = tl.zeros((M, N), tl.float32)
    for byte in range(first // LANES, past // LANES, WIDE):
        element = begins(byte, WIDE // RUN, RUN, ROW)
        block, e, low, high = stored(rows, element, element < past, K % (WIDE * LANES) != 0, ROW)
        columns = tl.max_contiguous(tl.multiple_of(begins(byte, WIDE, 1, ROW), RUN), RUN)
        for lane in tl.static_range(LANES):
            group = _group(e, lane, ROW)
            value = _codes(block, e, low, high, table, lane, ROW) * _scale(block, group, lane, ROW)
            if ROW.scheme == "d_m" or ROW.scheme == "k2" or ROW.scheme == "k4":
                value += low_of(block, group, ROW)
            w = tl.reshape(value, (N, WIDE))
            at = columns + lane * ROW.low_run
            a = tl.load(x + xs[:, None] + at[None, :], mask=inside[:, None] & (at < past)[None, :], other=0.0)
            total = add_product(a, w, total, PRECISION)
    return total
