"""The words of a layout's text, such as fsdp=4,tensor=2, and what they may say."""

from jaxpar.errors import UserError

DATA_WORDS = ("data", "zero1", "fsdp")
CONTEXT_WORDS = ("context", "ring", "ulysses")
STAGE = "stage"
EXPERT = "expert"
BUILT = ("replica", STAGE, *DATA_WORDS, *CONTEXT_WORDS, EXPERT, "tensor")


def words_of(text: str) -> dict[str, str]:
    """The words of a layout's text, each with what follows its equals sign.

    Raises:
      UserError: a word is unknown, repeated or contradicts another.
    """
    words: dict[str, str] = {}
    for part in text.replace(" ", "").split(","):
        word, _, value = part.partition("=")
        if word not in BUILT:
            raise UserError(
                f"Layout {text!r}: unknown mesh axis {word!r}; there are "
                f"{', '.join(BUILT)}, as in fsdp=4,tensor=2."
            )
        if word in words:
            raise UserError(f"Layout {text!r} names {word!r} twice.")
        size = value.removesuffix("+sp") if word == "tensor" else value
        sizes = size.split("x") if word == STAGE else [size]
        if len(sizes) > 2 or not all(n.isdigit() and int(n) > 0 for n in sizes):
            raise UserError(f"Layout {text!r}: {word}={value!r} is no positive size.")
        if len(sizes) > 1 and int(sizes[0]) == 1:
            raise UserError(
                f"Layout {text!r}: rounds go round two stages or more; write "
                f"{STAGE}=2x{sizes[1]}, or leave {part} out."
            )
        words[word] = value
    for group in (DATA_WORDS, CONTEXT_WORDS):
        if sum(word in words for word in group) > 1:
            raise UserError(f"Layout {text!r}: at most one of {', '.join(group)}.")
    return words
