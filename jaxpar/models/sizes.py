"""Published model sizes, and functions for GPT-2's and Llama's form at any size."""

import dataclasses

from jaxpar.experts.block import MoEConfig
from jaxpar.experts.router import RouterConfig
from jaxpar.models.decoder import DecoderConfig
from jaxpar.nn.attention import AttentionConfig
from jaxpar.nn.mlp import MLPConfig
from jaxpar.nn.norm import LayerNorm, NoNorm, NormConfig, RMSNorm

NO_NORM = NoNorm()


def gpt(
    *, vocab_size: int, n_layers: int, d_embed: int, n_heads: int, max_positions: int
) -> DecoderConfig:
    """GPT-2's form: learned positions, LayerNorm, GELU, biases, tied embedding."""
    return DecoderConfig(
        vocab_size=vocab_size,
        n_layers=n_layers,
        d_embed=d_embed,
        attention=AttentionConfig(
            n_heads=n_heads,
            n_kv_heads=n_heads,
            head_dim=_head_dim(d_embed, n_heads),
            bias=True,
            rope_theta=0.0,
        ),
        mlp=MLPConfig(d_mlp=4 * d_embed, activation="gelu", gated=False, bias=True),
        norm=LayerNorm(),
        max_positions=max_positions,
        learned_positions=True,
        tied=True,
    )


def llama(
    *,
    vocab_size: int,
    n_layers: int,
    d_embed: int,
    n_heads: int,
    n_kv_heads: int,
    d_mlp: int,
    max_positions: int,
    qk_norm: NormConfig = NO_NORM,
    tied: bool = False,
    dropout: float = 0.0,
    remat: str = "none",
    rope_theta: float = 10_000.0,
) -> DecoderConfig:
    """Llama's form: rotary positions, RMSNorm, SwiGLU, grouped queries, no biases."""
    return DecoderConfig(
        vocab_size=vocab_size,
        n_layers=n_layers,
        d_embed=d_embed,
        attention=AttentionConfig(
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=_head_dim(d_embed, n_heads),
            qk_norm=qk_norm,
            rope_theta=rope_theta,
        ),
        mlp=MLPConfig(d_mlp=d_mlp),
        norm=RMSNorm(),
        max_positions=max_positions,
        tied=tied,
        dropout=dropout,
        remat=remat,
    )


def _head_dim(d_embed: int, n_heads: int) -> int:
    """Width of a head; the configuration refuses sizes below 1, with their names."""
    return d_embed // n_heads if n_heads > 0 else 1


# Radford et al., 2019 (the smallest model).
GPT_124M = gpt(
    vocab_size=50_257, n_layers=12, d_embed=768, n_heads=12, max_positions=1024
)
# Brown et al., 2020, table 2.1.
GPT_175B = gpt(
    vocab_size=50_257, n_layers=96, d_embed=12_288, n_heads=96, max_positions=2048
)
# Touvron et al., 2023, table 2.
LLAMA_7B = llama(
    vocab_size=32_000,
    n_layers=32,
    d_embed=4096,
    n_heads=32,
    n_kv_heads=32,
    d_mlp=11_008,
    max_positions=2048,
)
# Jiang et al., 2024, table 1.
MIXTRAL_8X7B = dataclasses.replace(
    llama(
        vocab_size=32_000,
        n_layers=32,
        d_embed=4096,
        n_heads=32,
        n_kv_heads=8,
        d_mlp=14_336,
        max_positions=32_768,
        rope_theta=1e6,
    ),
    experts=MoEConfig(
        n_experts=8,
        expert=MLPConfig(d_mlp=14_336),
        router=RouterConfig(top_k=2, balance_loss_coef=0.02, z_loss_coef=0.0),
    ),
)
# A form like DeepSeek's, which no paper has: the sizes of DeepSeekMoE 16B (Dai et al.,
# 2024, table 2), whose first layer is dense, with the router of DeepSeek-V3 (arXiv
# 2412.19437, section 2.1.2).
DEEPSEEK_16B = dataclasses.replace(
    llama(
        vocab_size=102_400,
        n_layers=28,
        d_embed=2048,
        n_heads=16,
        n_kv_heads=16,
        d_mlp=10_944,
        max_positions=4096,
    ),
    experts=MoEConfig(
        n_experts=64,
        expert=MLPConfig(d_mlp=1408),
        router=RouterConfig(
            top_k=6,
            score_function="sigmoid",
            scaling_factor=2.5,
            balance_loss_coef=0.0001,
            z_loss_coef=0.0,
            bias=True,
        ),
        n_shared_experts=2,
    ),
)
