// One level's table; the level states its name and `here` before this file.
#include "lanes.h"
#include "rows.h"
#include "attention.h"
#include "recurrent.h"

const Step step = {
    level_name,     here,           norm_row,    centre_row,  residual_row,        rotate_token,
    gate_row,       choose_experts, store_token, attend_chunk, merge_partials,     finish_partial,
    convolve_band,  delta_ready,    delta_token, learn_tokens<Delta>, delta_gate,  space_ready,
    learn_token<Space>, learn_tokens<Space>, space_gate};
