"""A qwen3moe-shaped decoder in plain torch; its state dict has the names and shapes of the GGUF's tensors."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.demo.fused import Mixture, Normalize, TokenLoss

# An expert's rows are filled up to a multiple of this: a matrix product of a new size is compiled anew on the CPU,
# which takes longer than the product.
ROW_MULTIPLE = 64


@dataclass(frozen=True)
class Shape:
    """The hyperparameters, named as in GGUF."""

    n_vocab: int = 8192
    n_ctx: int = 512
    n_embd: int = 256
    n_layer: int = 6
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    n_expert: int = 16
    n_expert_used: int = 2
    n_ff_exp: int = 256
    rope_freq_base: float = 10000.0
    rms_eps: float = 1e-6


def rope(shape: Shape, n_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of the NeoX rotation, each [n_tokens, head_dim / 2] float32."""
    half = torch.arange(0, shape.head_dim, 2, device=device, dtype=torch.float32)
    frequencies = shape.rope_freq_base ** (-half / shape.head_dim)
    angles = torch.outer(torch.arange(n_tokens, device=device, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [S, heads, T, head_dim] turned by its position."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class RMSNorm(nn.RMSNorm):
    """Computed in float32 whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return super().forward(x.float())
        assert self.eps is not None
        return Normalize.apply(x, self.weight, self.eps)


class Experts(nn.Module):
    """One matrix an expert: weight [E, out, in]."""

    def __init__(self, n_expert: int, n_in: int, n_out: int, zero: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_expert, n_out, n_in) * (0.0 if zero else n_in**-0.5))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x [N, in] sorted by expert, ends [E] int32 one past each expert's last row -> [N, out]."""
        return F.grouped_mm(x, self.weight.to(x.dtype).transpose(1, 2), offs=ends)


class Block(nn.Module):
    """Attention with per-head norms of q and k, then the mixture of experts."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, q_width, kv_width = shape.n_embd, shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
        self.attn_norm = RMSNorm(width, shape.rms_eps)
        self.attn_q = nn.Linear(width, q_width, bias=False)
        self.attn_k = nn.Linear(width, kv_width, bias=False)
        self.attn_v = nn.Linear(width, kv_width, bias=False)
        self.attn_q_norm = RMSNorm(shape.head_dim, shape.rms_eps)
        self.attn_k_norm = RMSNorm(shape.head_dim, shape.rms_eps)
        self.attn_output = nn.Linear(q_width, width, bias=False)
        self.ffn_norm = RMSNorm(width, shape.rms_eps)
        self.ffn_gate_inp = nn.Linear(width, shape.n_expert, bias=False)
        self.ffn_gate_exps = Experts(shape.n_expert, width, shape.n_ff_exp)
        self.ffn_up_exps = Experts(shape.n_expert, width, shape.n_ff_exp)
        self.ffn_down_exps = Experts(shape.n_expert, shape.n_ff_exp, width, zero=True)
        nn.init.zeros_(self.attn_output.weight)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [S, T, D] -> [S, T, D]."""
        shape = self.shape

        def heads(projected: Tensor, n_head: int) -> Tensor:
            return projected.unflatten(-1, (n_head, shape.head_dim)).transpose(1, 2)  # [S, heads, T, head_dim]

        q = rotate(self.attn_q_norm(heads(self.attn_q(x), shape.n_head)), cos, sin)
        k = rotate(self.attn_k_norm(heads(self.attn_k(x), shape.n_head_kv)), cos, sin)
        v = heads(self.attn_v(x), shape.n_head_kv)
        shared = shape.n_head // shape.n_head_kv
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        return self.attn_output(y.transpose(1, 2).flatten(2))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, D] -> chosen experts [T, k], their weights [T, k] f32, balance loss (1 when all are used alike)."""
        shape = self.shape
        with torch.autocast(x.device.type, enabled=False):
            probabilities = self.ffn_gate_inp(x.float()).softmax(-1)  # [T, E]
        weights, ids = probabilities.topk(shape.n_expert_used)
        share = torch.bincount(ids.flatten(), minlength=shape.n_expert) / ids.numel()
        balance = shape.n_expert * (share * probabilities.mean(0)).sum()
        return ids, weights / weights.sum(-1, keepdim=True), balance

    def experts(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """x [T, D] through the chosen experts -> [T, D] f32; the rows of one expert are multiplied together."""
        if x.is_cuda:
            return self.grouped_experts(x, ids, weights)
        matrices = (m.weight for m in (self.ffn_gate_exps, self.ffn_up_exps, self.ffn_down_exps))
        return Mixture.apply(x, ids, weights, *matrices)

    def grouped_experts(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The same by grouped matrix products, in autocast's type."""
        chosen, order = ids.flatten().sort(stable=True)  # [T k]
        token = order // self.shape.n_expert_used
        counts = torch.bincount(chosen, minlength=self.shape.n_expert)
        room = (counts + ROW_MULTIPLE - 1) // ROW_MULTIPLE * ROW_MULTIPLE
        ends = room.cumsum(0)
        shift = (ends - room) - (counts.cumsum(0) - counts)  # [E] zero rows before an expert's first
        place = torch.arange(len(order), device=x.device) + shift[chosen]
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        rows = x.new_zeros(int(ends[-1]), x.shape[1], dtype=dtype).index_copy(0, place, x.to(dtype)[token])
        ends = ends.int()
        hidden = F.silu(self.ffn_gate_exps(rows, ends)) * self.ffn_up_exps(rows, ends)
        out = self.ffn_down_exps(hidden, ends)[place] * weights.flatten()[order, None]
        return torch.zeros_like(x, dtype=torch.float32).index_add(0, token, out.float())

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """x [S, T, D] -> the same after this block, and the router's balance loss."""
        x = x + self.attention(self.attn_norm(x), cos, sin)
        flat = self.ffn_norm(x).flatten(0, 1)  # [S T, D]
        ids, weights, balance = self.route(flat)
        return x + self.experts(flat, ids, weights).view_as(x), balance


class Model(nn.Module):
    """Token ids [S, T] -> (logits [S, T, n_vocab], balance loss); the embedding is also the output matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.output_norm = RMSNorm(shape.n_embd, shape.rms_eps)
        nn.init.normal_(self.token_embd.weight, std=0.02)

    def hidden(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """[S, T] -> what the output matrix is applied to [S, T, D], and the balance loss."""
        x = self.token_embd(ids)
        cos, sin = rope(self.shape, ids.shape[1], ids.device)
        balance = x.new_zeros(())
        for block in self.blk:
            x, loss = block(x, cos, sin)
            balance = balance + loss / self.shape.n_layer
        return self.output_norm(x), balance

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The logits are float32, or what autocast makes of them."""
        x, balance = self.hidden(ids)
        return F.linear(x, self.token_embd.weight), balance

    def loss(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Nats a token, and the balance loss."""
        x, balance = self.hidden(ids)
        if x.is_cuda:
            logits = F.linear(x, self.token_embd.weight)
            return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()), balance
        return TokenLoss.apply(x.flatten(0, 1), self.token_embd.weight, targets.flatten()), balance
