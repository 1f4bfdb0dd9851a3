"""Names of logical axes: a word each for sharding, and a letter each for shapes.

Words say where an axis lives: `param(embed=D, mlp=F)`, `constrain(x, "batch", "seq",
"embed")`. Letters say shape: `dense("BTD,DF->BTF", x, w)`, `Float[Array, "B T D"]`,
`gate_BTF`.
"""

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
NAME_OF = {letter: name for name, letter in LETTERS.items()}
