"""The vocabulary: every logical axis has one word and one letter."""

LETTERS = {
    "batch": "B",
    "seq": "T",
    "embed": "D",
    "heads": "N",
    "kv_heads": "K",
    "head_dim": "H",
    "mlp": "F",
    "vocab": "V",
    "layers": "L",
    "experts": "E",
    "capacity": "C",
    "rank": "R",
    "position": "P",
}
NAMES = tuple(LETTERS)
