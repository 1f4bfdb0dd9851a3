"""Names of logical axes: a word each for sharding, and a letter each for shapes.

Words say where an axis lives: `param(embed=D, mlp=F)`, `constrain(x, "batch", "seq",
"embed")`. Letters say shape: `dense("BTD,DF->BTF", x, w)`, `Float[Array, "B T D"]`,
`gate_BTF`. A name of one's own ends in an underscore: no layout splits such an axis.
`param(mlp=F, state_=16)` is a table of a state space model, `param(embed=D, embed_=D)`
a square matrix; in `dense`, a letter that is not below stands for such an axis.
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


def is_own(name: str) -> bool:
    """Whether a name is one of a model's own, which no layout splits.

    >>> is_own("state_"), is_own("embed"), is_own("_")
    (True, False, False)
    """
    return name.endswith("_") and name.strip("_").isidentifier()
