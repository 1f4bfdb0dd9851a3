"""An event of one's own: stops once the training loss has fallen far enough."""

from jaxpar import Stop


class StopBelow:
    """Looks at the losses every few steps, and asks the loop to stop below a limit."""

    def __init__(self, limit: float, *, every: int = 2):
        self.limit, self.every = limit, every

    def due(self, step, history):
        return step > 0 and step % self.every == 0

    def run(self, step, state, history):
        history.fetch()
        loss = history.rows[-1]["loss"]
        if loss < self.limit:
            return Stop(f"the loss is {loss:.3f}, below {self.limit}")
        return None
