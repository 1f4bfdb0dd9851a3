"""A source of one's own: documents that count down, from no file at all."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from jaxpar import AdamW, Layout, Pretrain
from jaxpar.data.source import DocumentSource
from jaxpar.models import sizes
from jaxpar.sources.corpus import Corpus, Document, split_by_number


class Countdowns(Corpus):
    """n documents; which of them are held out, the hash of their number decides."""

    source = "countdowns"

    def __init__(self, n: int):
        self.texts = [" ".join(map(str, range(i, 0, -1))) for i in range(1, n + 1)]

    def documents(self) -> Mapping[str, Sequence[Document]]:
        numbered = enumerate(self.texts, 1)
        documents = [Document(f"from {i}", text.encode()) for i, text in numbered]
        return split_by_number(documents)

    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Counting(DocumentSource):
    """What an experiment says of it; its fields are flags."""

    n: int = 200
    """Documents, the longest of which counts down from n."""

    def corpus(self) -> Corpus:
        return Countdowns(self.n)


experiment = Pretrain(
    model=sizes.llama(
        vocab_size=259, n_layers=1, d_embed=16, n_heads=2, n_kv_heads=2, d_mlp=16,
        max_positions=32,
    ),
    data=Counting(seq_len=32, batch_size=8),
    optim=AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=3),
    layout=Layout.parse("data=8"),
    num_steps=3,
)  # fmt: skip
