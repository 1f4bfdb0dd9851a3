"""What does a model write while it learns? A text is sampled every 50 steps.

    jaxpar pretrain experiments/own_event.py
    tensorboard --logdir runs        # the texts are under TEXT

The texts also appear on the terminal, and in metrics.jsonl as rows of split "sample".
"""

from jaxpar import AdamW, Bytes, Pretrain, Sampling, Text, UserError
from jaxpar.generate.sampling import Generator
from jaxpar.models import sizes
from jaxpar.partition import cluster


class Sample:
    """An event: continues a prompt with the model of this moment."""

    every, prompt = 50, "def "

    def __init__(self, running):
        if cluster.count() > 1:
            raise UserError("Sample generates in one process: leave it out of events.")
        self.running, self.generator = running, None

    def due(self, step, history):
        return step % self.every == 0

    def run(self, step, state, history):
        running, tokenizer = self.running, self.running.tokenizer
        if self.generator is None:  # It is compiled once.
            recipe, how = running.experiment.recipe(), Sampling(max_new_tokens=60)
            self.generator = Generator(recipe, running.placed, state.params, how=how)
        self.generator.params = state.params
        ids = [tokenizer.bos_id, *map(int, tokenizer.encode(self.prompt.encode()))]
        (new,) = self.generator([ids], stop_id=tokenizer.eos_id)
        running.write(step, "sample", text=self.prompt + tokenizer.decode(new))


events = [Sample]

experiment = Pretrain(
    model=sizes.llama(
        vocab_size=259, n_layers=2, d_embed=64, n_heads=4, n_kv_heads=4, d_mlp=192,
        max_positions=128,
    ),
    data=Text("stdlib", tokenizer=Bytes(), seq_len=128, batch_size=16),
    optim=AdamW(peak_lr=0.01, warmup_steps=20, decay_steps=380),
    num_steps=400,
    eval_every=200,
)  # fmt: skip
