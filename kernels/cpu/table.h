// The formats of a level: `quantized_rows<F>` and `plain_rows<F>` are what the level made of them.
#ifndef AVX512_LEVEL
template <class F>
constexpr bool by_winograd = false;
#endif

template <class F>
constexpr Format quantized(const char* name) {
  return {name, F::block, F::bytes, F::wide ? Rounding::wide : Rounding::narrow, quantized_rows<F>, by_winograd<F>};
}

constexpr Format formats[] = {
    {"F32", 1, 4, Rounding::none, plain_rows<F32>, false},
    {"F16", 1, 2, Rounding::f16, plain_rows<F16>, false},
    {"BF16", 1, 2, Rounding::bf16, plain_rows<BF16>, false},
    quantized<Q4_0>("Q4_0"),
    quantized<Q4_1>("Q4_1"),
    quantized<Q5_0>("Q5_0"),
    quantized<Q5_1>("Q5_1"),
    quantized<Q8_0>("Q8_0"),
    quantized<Q2_K>("Q2_K"),
    quantized<Q3_K>("Q3_K"),
    quantized<Q4_K>("Q4_K"),
    quantized<Q5_K>("Q5_K"),
    quantized<Q6_K>("Q6_K"),
    quantized<IQ4_NL>("IQ4_NL"),
    quantized<IQ4_XS>("IQ4_XS"),
    quantized<MXFP4>("MXFP4"),
    quantized<NVFP4>("NVFP4"),
    quantized<TQ1_0>("TQ1_0"),
    quantized<TQ2_0>("TQ2_0"),
    quantized<IQ1_S>("IQ1_S"),
    quantized<IQ1_M>("IQ1_M"),
    quantized<IQ2_XXS>("IQ2_XXS"),
    quantized<IQ2_XS>("IQ2_XS"),
    quantized<IQ2_S>("IQ2_S"),
    quantized<IQ3_XXS>("IQ3_XXS"),
    quantized<IQ3_S>("IQ3_S"),
};

[[maybe_unused]] uint64_t read_all(const uint8_t* p, size_t size) {
#if defined(AVX512_LEVEL) || defined(AVX256_LEVEL)
  if (asking() == Asking::lines) return read_words(p, size, size / 256 * 64, [](const uint8_t*) {});
  if (asking() == Asking::both)
    return read_words(p, size, 64, [](const uint8_t* at) { ask_ahead<Asking::both, 256>(at); });
#endif
  return read_words(p, size, 64, [](const uint8_t*) {});
}

constexpr Level level_of(const char* name, bool (*here)(), decltype(Level::side_by_side) side_by_side = nullptr) {
  return {name, here, formats, sizeof formats / sizeof *formats, round_row, gate_rows,
          add_row, read_all, side_by_side};
}
