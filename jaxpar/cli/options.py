"""What each verb takes, as the dataclasses that its flags are made from."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxpar.errors import UserError
from jaxpar.guard.stopping import GRACE_SECONDS

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Imports = Annotated[tuple[Path, ...], tyro.conf.arg(name="import")]
Prompts = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]
"""One tuple for each time that the flag is given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What every verb takes."""

    debug: Switch = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer(Options):
    """What every verb that reports takes."""

    json: Switch = False
    """Print exactly one JSON object."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Many(Options):
    """What says that this is one of many processes, where no environment does."""

    coordinator: str | None = None
    """HOST:PORT on which process 0 is found; or JAX_COORDINATOR_ADDRESS."""
    num_processes: int | None = None
    """How many processes run this command; or JAX_NUM_PROCESSES."""
    process_id: int | None = None
    """Which of them this is, from 0; or JAX_PROCESS_ID."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked(Options):
    """How the checkpoint that a verb reads is verified."""

    verify: Literal["full", "sizes", "none"] = "full"
    """What of a checkpoint is compared with its manifest: all, sizes, or nothing."""
    strict: Switch = False
    """Refuse a damaged or unverifiable checkpoint; do not go back to an older one."""

    def as_check(self) -> Any:
        """The same as a value of jaxpar.checkpoint.verified.Check."""
        from jaxpar.checkpoint.verified import Check

        return Check(self.verify, self.strict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Many, Checked):
    """What `pretrain` takes besides the experiment's own fields."""

    run_dir: Path | None = None
    """Directory of the run; runs/STEM-FINGERPRINT where none is given."""
    devices: int | None = None
    """CPU devices to simulate, over all processes together."""
    compile_cache: Switch = True
    """Compile again, and keep nothing of it for the next time."""
    grace: float = GRACE_SECONDS
    """Seconds after a signal in which the run may end its step and save."""
    watchdog: str = "auto"
    """Status 42 after no progress: auto, SECONDS of a step, off; auto,PHASE=SECONDS."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromRun(Checked):
    """What every verb that reads another run's checkpoint takes."""

    step: str | None = None
    """Checkpoint: N, best or newest; best where that run has a stopping rule."""
    imports: Imports = ()
    """Files that define the classes which that run's config.json names."""

    def chosen_step(self) -> int | str | None:
        """The step as a number, "best" or "newest"; None where none is chosen."""
        if self.step is None or self.step in ("best", "newest"):
            return self.step
        if not self.step.isdigit():
            raise UserError(f"--step {self.step}: it must be a number, best or newest.")
        return int(self.step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneRun(Train, FromRun):
    """What `finetune` takes besides the experiment's own fields."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look(Answer):
    """What every verb takes that looks at an experiment, besides its own fields."""

    imports: Imports = ()
    """Files that define the classes which a fine-tune's source run names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show(Look):
    """What `show` takes besides the experiment's own fields."""

    devices: int | None = None
    """CPU devices for which layout=auto is chosen."""
    plot: Path | None = None
    """Write the picture of what each device holds of each parameter to this PNG."""
    plot_layout: Path | None = None
    """Write the picture of who holds what, and sends what to whom, to this PNG."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify(Look):
    """What `verify` takes besides the experiment's own fields."""

    full: Switch = False
    """Compute at the experiment's own sizes, not at the smallest that divide."""
    precision: Switch = False
    """Compare in the experiment's own precision, not in float64."""
    devices: int | None = None
    """CPU devices to simulate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckRun(Answer, Checked):
    """What `check` takes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Open(Answer, FromRun):
    """What every verb that computes with a run takes."""

    layout: str | None = None
    """Layout to compute on, as in fsdp=4,tensor=2."""
    devices: int | None = None
    """CPU devices to simulate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Open, Many):
    """What `evaluate` takes."""

    source: Annotated[str | None, tyro.conf.arg(name="data.source")] = None
    """Score all of this source instead of the run's own held-out data."""
    text_field: Annotated[str, tyro.conf.arg(name="data.text-field")] = "text"
    """Field that holds the text of that source's records, if it has fields."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(Open):
    """What `generate` takes."""

    prompt: Prompts = ()
    """Text to continue; several, as in --prompt a b, are answered together."""
    token_ids: str | None = None
    """Tokens to continue, as in 1,2,3; needs no tokenizer."""
    max_new_tokens: int = 128
    """Tokens to add, at most."""
    temperature: float = 0.8
    """Divides the logits before a token is drawn; 0 takes the likeliest."""
    top_k: int = 0
    """Draw among this many likeliest tokens; 0 draws among all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have this probability."""
    seed: int = 0
    """Where the randomness of drawing starts."""

    def numbers(self) -> list[int] | None:
        """The given token ids as numbers; None where none are given."""
        if self.token_ids is None:
            return None
        try:
            return [int(word) for word in self.token_ids.split(",")]
        except ValueError:
            raise UserError(
                f"--token-ids {self.token_ids}: it must be numbers, as in 1,2,3."
            ) from None
