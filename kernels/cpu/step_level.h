// One level's table.
#include "lanes.h"
#include "rows.h"
#include "streams.h"
#include "attention.h"
#include "recurrent.h"

constexpr Step step_of(const char* name, bool (*here)()) {
  return {
    name,           here,           norm_row,    centre_row,  residual_row,        rotate_token,
    gate_row,       weave_streams,  blend_streams, choose_experts, store_token,    attend_chunk,
    merge_partials, finish_partial,
    convolve_band,  delta_ready,    token_of_delta<Delta>, learn_tokens<Delta>, gate_heads<Delta>,
    kimi_ready,     token_of_delta<Kimi>, learn_tokens<Kimi>, gate_heads<Kimi>, space_ready,
    learn_token<Space>, learn_tokens<Space>, space_gate,   learn_channels};
}
