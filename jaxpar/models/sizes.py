"""Published model sizes, and functions for GPT-2's and Llama's form at any size."""

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
