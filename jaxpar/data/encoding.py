"""The program of a process that encodes for jaxpar.tokens.encoders."""

import signal
import sys

from jaxpar.data.added_tokens import AddedTokens
from jaxpar.data.tokenizer import BPETokenizer, Tokenizer, load
from jaxpar.data.tokenizer_file import LoadedTokenizer
from jaxpar.tokens.encoders import serve


def program_for(tokenizer: Tokenizer) -> str | None:
    """The module to run, where another process can load the tokenizer, and should.

    That of bytes is as fast as a copy; one of a user's own is not known to `load`.
    """
    base = tokenizer.base if type(tokenizer) is AddedTokens else tokenizer
    return (
        "jaxpar.data.encoding"
        if type(base) in (BPETokenizer, LoadedTokenizer)
        else None
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # It goes to the whole group.
    serve(int(sys.argv[1]), load(sys.argv[2]))
