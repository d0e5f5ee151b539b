"""Device functions: elements of some quantized rows -> their values, for every row of `formats.py`."""

import triton
import triton.language as tl


@triton.jit
def _u8(at):
    return tl.load(at).to(tl.int32)


@triton.jit
def _i8(at):
    value = tl.load(at).to(tl.int32)
    return value - ((value & 128) << 1)


@triton.jit
def _u16(at):
    """At an even byte: blocks that have such fields are of even length, and begin at an even byte."""
    return tl.load(at.to(tl.pointer_type(tl.int16), bitcast=True)).to(tl.int32) & 0xFFFF


@triton.jit
def _u32(at):
    return (_u16(at) | (_u16(at + 2) << 16)).to(tl.uint32, bitcast=True)


@triton.jit
def _f16(bits):
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _half(at):
    return _f16(_u16(at))


@triton.jit
def plane(block, element, AT: tl.constexpr, BITS: tl.constexpr, RUN: tl.constexpr):
    """The bits of an element: `formats.Plane`."""
    LANES: tl.constexpr = 8 // BITS
    byte = (element // (RUN * LANES)) * RUN + element % RUN
    shift = (element // RUN) % LANES * BITS
    return (_u8(block + AT + byte) >> shift) & ((1 << BITS) - 1)


@triton.jit
def _codes(block, element, table, ROW: tl.constexpr):
    """The values before scaling, float32."""
    code = plane(block, element, ROW.low_at, ROW.low_bits, ROW.low_run)
    if ROW.high_bits != 0:
        code = code | (plane(block, element, ROW.high_at, ROW.high_bits, ROW.high_run) << ROW.low_bits)
    if ROW.codebook:
        return tl.load(table + code)
    if ROW.low_bits == 8:
        code = code - ((code & 128) << 1)
    return (code - ROW.bias).to(tl.float32)


@triton.jit
def scale_of(block, group, ROW: tl.constexpr):
    """A group's scale; group numbers count within the block."""
    if ROW.scheme == "d" or ROW.scheme == "d_m" or ROW.scheme == "tq1_0":
        return _half(block + ROW.d_at)
    elif ROW.scheme == "k2":
        return _half(block + ROW.d_at) * (_u8(block + ROW.scales_at + group) & 15).to(tl.float32)
    elif ROW.scheme == "k3":
        low = (_u8(block + ROW.scales_at + group % 8) >> (group // 8 * 4)) & 15
        high = (_u8(block + ROW.scales_at + 8 + group % 4) >> (group // 4 * 2)) & 3
        return _half(block + ROW.d_at) * ((low | (high << 4)) - 32).to(tl.float32)
    elif ROW.scheme == "k4":
        return _half(block + ROW.d_at) * _six_bits(block + ROW.scales_at, group, 0).to(tl.float32)
    elif ROW.scheme == "i8":
        return _half(block + ROW.d_at) * _i8(block + ROW.scales_at + group).to(tl.float32)
    elif ROW.scheme == "iq4_xs":
        low = (_u8(block + ROW.scales_at + group // 2) >> (group % 2 * 4)) & 15
        high = (_u16(block + ROW.qh_at) >> (group * 2)) & 3
        return _half(block + ROW.d_at) * ((low | (high << 4)) - 32).to(tl.float32)
    elif ROW.scheme == "e8m0":
        e = _u8(block + ROW.d_at)
        bits = tl.where(e < 2, 0x00200000 << tl.minimum(e, 1), tl.maximum(e - 1, 0) << 23)
        return bits.to(tl.float32, bitcast=True)
    elif ROW.scheme == "ue4m3":
        byte = _u8(block + ROW.d_at + group)
        exponent = (byte >> 3) & 15
        mantissa = (byte & 7).to(tl.float32)
        normal = (1.0 + mantissa * 0.125) * ((exponent + 120) << 23).to(tl.float32, bitcast=True)
        value = tl.where(exponent == 0, mantissa * 0.001953125, normal)
        return tl.where((byte == 0) | (byte == 127), 0.0, value * 0.5)
    elif ROW.scheme == "iq2_xxs":
        word = _u32(block + ROW.qs_at + 8 * group + 4)
        return _half(block + ROW.d_at) * (0.5 + (word >> 28).to(tl.float32)) * 0.25
    elif ROW.scheme == "iq2_xs" or ROW.scheme == "iq2_s":
        nibble = (_u8(block + ROW.scales_at + group // 2) >> (group % 2 * 4)) & 15
        return _half(block + ROW.d_at) * (0.5 + nibble.to(tl.float32)) * 0.25
    elif ROW.scheme == "iq3_xxs":
        word = _u32(block + ROW.scales_at + 4 * group)
        return _half(block + ROW.d_at) * (0.5 + (word >> 28).to(tl.float32)) * 0.5
    elif ROW.scheme == "iq3_s":
        nibble = (_u8(block + ROW.scales_at + group // 2) >> (group % 2 * 4)) & 15
        return _half(block + ROW.d_at) * (1 + 2 * nibble).to(tl.float32)
    elif ROW.scheme == "iq1_s":
        return _half(block + ROW.d_at) * (2 * ((_u16(block + ROW.qh_at + 2 * group) >> 12) & 7) + 1).to(tl.float32)
    else:
        tl.static_assert(ROW.scheme == "iq1_m")
        at = block + ROW.scales_at
        bits = (_u16(at) >> 12) | ((_u16(at + 2) >> 12) << 4)
        bits = bits | ((_u16(at + 4) >> 12) << 8) | ((_u16(at + 6) >> 12) << 12)
        scale = (_u16(at + group // 4 * 2) >> (group % 4 * 3)) & 7
        return _f16(bits) * (2 * scale + 1).to(tl.float32)


@triton.jit
def _six_bits(at, group, MIN: tl.constexpr):
    """The k4 scheme's scale (MIN 0) or min (MIN 4) of a group."""
    first = _u8(at + group % 4 + MIN)
    late = _u8(at + group % 4 + 8)
    late = (late >> MIN) & 15
    return tl.where(group < 4, first & 63, late | ((first >> 6) << 4))


@triton.jit
def low_of(block, group, ROW: tl.constexpr):
    """What is added to a group's scaled codes."""
    if ROW.scheme == "d_m":
        return _half(block + ROW.m_at)
    elif ROW.scheme == "k2":
        return -_half(block + ROW.m_at) * (_u8(block + ROW.scales_at + group) >> 4).to(tl.float32)
    else:
        tl.static_assert(ROW.scheme == "k4")
        return -_half(block + ROW.m_at) * _six_bits(block + ROW.scales_at, group, 4).to(tl.float32)


@triton.jit
def _signed(points, byte, element):
    return tl.where((byte >> (element % 8)) & 1 != 0, -points, points)


@triton.jit
def _points(block, e, table, signs, ROW: tl.constexpr):
    """Grid types: the point of an element with its sign, and IQ1's with its eighth."""
    eight = e // 8
    if ROW.scheme == "iq2_xxs":
        word = _u32(block + ROW.qs_at + e // 32 * 8 + 4)
        sign = tl.load(signs + ((word >> (eight % 4 * 7).to(tl.uint32)) & 127).to(tl.int32))
        index = _u8(block + ROW.qs_at + e // 32 * 8 + eight % 4)
        return _signed(tl.load(table + index * 8 + e % 8), sign, e)
    elif ROW.scheme == "iq2_xs":
        word = _u16(block + ROW.qs_at + eight * 2)
        return _signed(tl.load(table + (word & 511) * 8 + e % 8), tl.load(signs + (word >> 9)), e)
    elif ROW.scheme == "iq2_s":
        high = (_u8(block + ROW.qh_at + eight // 4) >> (eight % 4 * 2)) & 3
        index = _u8(block + ROW.qs_at + eight) | (high << 8)
        return _signed(tl.load(table + index * 8 + e % 8), _u8(block + ROW.signs_at + eight), e)
    elif ROW.scheme == "iq3_xxs":
        word = _u32(block + ROW.scales_at + e // 32 * 4)
        sign = tl.load(signs + ((word >> (eight % 4 * 7).to(tl.uint32)) & 127).to(tl.int32))
        return _signed(tl.load(table + _u8(block + ROW.qs_at + e // 4) * 4 + e % 4), sign, e)
    elif ROW.scheme == "iq3_s":
        four = e // 4
        high = (_u8(block + ROW.qh_at + four // 8) >> (four % 8)) & 1
        index = _u8(block + ROW.qs_at + four) | (high << 8)
        return _signed(tl.load(table + index * 4 + e % 4), _u8(block + ROW.signs_at + eight), e)
    elif ROW.scheme == "iq1_s":
        high = _u16(block + ROW.qh_at + e // 32 * 2)
        index = _u8(block + ROW.qs_at + eight) | (((high >> (eight % 4 * 3)) & 7) << 8)
        return tl.load(table + index * 8 + e % 8) + tl.where((high & 0x8000) == 0, 0.125, -0.125)
    else:
        tl.static_assert(ROW.scheme == "iq1_m")
        high = (_u8(block + ROW.qh_at + eight // 2) >> (eight % 2 * 4)) & 15
        index = _u8(block + ROW.qs_at + eight) | ((high & 7) << 8)
        return tl.load(table + index * 8 + e % 8) + tl.where((high & 8) == 0, 0.125, -0.125)


@triton.jit
def _digits(block, e, ROW: tl.constexpr):
    """TQ1_0: base-3 digits, five of a byte and at the end four."""
    first = e < 160
    middle = e < 240
    run = tl.where(first, 32, tl.where(middle, 16, 4))
    begin = tl.where(first, 0, tl.where(middle, 160, 240))
    at = tl.where(first, ROW.qs_at, tl.where(middle, ROW.qs_at + 32, ROW.qh_at))
    digit = (e - begin) // run
    power = tl.where(digit == 0, 1, tl.where(digit == 1, 3, tl.where(digit == 2, 9, tl.where(digit == 3, 27, 81))))
    byte = (_u8(block + at + (e - begin) % run) * power) & 255
    return ((byte * 3 >> 8) - 1).to(tl.float32)


@triton.jit
def plain(rows, at, ROW: tl.constexpr):
    """Number `at` of what begins at the bytes `rows`, whose numbers are plain."""
    if ROW.scheme == "F32":
        return tl.load(rows.to(tl.pointer_type(tl.float32), bitcast=True) + at)
    elif ROW.scheme == "F16":
        return tl.load(rows.to(tl.pointer_type(tl.float16), bitcast=True) + at).to(tl.float32)
    else:
        tl.static_assert(ROW.scheme == "BF16")
        bits = tl.load(rows.to(tl.pointer_type(tl.int16), bitcast=True) + at).to(tl.int32)
        return (bits << 16).to(tl.float32, bitcast=True)


@triton.jit
def values(rows, k, table, signs, K: tl.constexpr, N: tl.constexpr, SPAN: tl.constexpr, ROW: tl.constexpr):
    """Elements k .. k + SPAN of N rows that begin at the bytes `rows` [N] -> float32 [N, SPAN]; zero from K on.

    k is a multiple of SPAN, that one of a group and, but for plain numbers, 256; and K, the length of a row, one of
    the format's block.
    """
    GROUP: tl.constexpr = SPAN if ROW.block == 1 else ROW.group
    GROUPS: tl.constexpr = SPAN // GROUP
    first = tl.arange(0, GROUPS)[None, :, None] * GROUP  # of each group, counted from k
    element = first + tl.arange(0, GROUP)[None, None, :]
    inside = k + element < K  # [1, G, group]
    # Past the end the row's first block is read: it is there, and what it says is dropped.
    number = tl.where(k + first < K, (k + first) // ROW.block, 0)
    block = rows[:, None, None] + number.to(tl.int64) * ROW.bytes
    e = element % ROW.block
    if ROW.block == 1:
        place = k + element
        if K % SPAN != 0:
            place = tl.where(inside, place, 0)
        value = plain(rows[:, None, None], place, ROW)
    else:
        group = first % ROW.block // GROUP
        scale = scale_of(block, group, ROW)  # [N, G, 1]
        if ROW.low_bits != 0:
            value = scale * _codes(block, e, table, ROW)
        elif ROW.scheme == "tq1_0":
            value = scale * _digits(block, e, ROW)
        else:
            value = scale * _points(block, e, table, signs, ROW)
        if ROW.scheme == "d_m" or ROW.scheme == "k2" or ROW.scheme == "k4":
            value = value + low_of(block, group, ROW)
    return tl.reshape(tl.where(inside, value, 0.0), (N, SPAN))
