"""What a fine-tune takes over from its source: parameters, vocabulary, tokenizer."""

from typing import Any

from jaxpar.checkpoint.transfer import Transfer, Vocabulary, account
from jaxpar.checkpoint.upcycling import of_mixtures_alone, upcycled
from jaxpar.data.added_tokens import AddedTokens
from jaxpar.data.tokenizer import Tokenizer
from jaxpar.errors import UserError
from jaxpar.experiment import Experiment, Finetune
from jaxpar.models.describe import fields_of
from jaxpar.partition import cluster
from jaxpar.run.directory import RunDir
from jaxpar.tree import flatten


def transfer_of(experiment: Finetune, base: Experiment) -> Transfer:
    """What becomes of each parameter, from the shapes of both models alone.

    experiment: with its model, which may be the source's. base: the source's.

    Raises:
      UserError: the source's parameters do not account for this model's.
    """
    ours = experiment.recipe().anatomy.shapes
    theirs = base.recipe().anatomy.shapes
    theirs, keep_fresh = source_params(experiment, base, theirs, ours)
    return account(
        ours, theirs, keep_fresh=keep_fresh, vocabulary=vocabulary_of(experiment, base)
    )


def source_params(
    experiment: Finetune, base: Experiment, theirs: Any, ours: Any
) -> tuple[Any, tuple[str, ...]]:
    """The source's parameters as this model takes them, and globs of what stays fresh.

    theirs, ours: trees of arrays, or of their shapes.

    Raises:
      UserError: they are to be upcycled, and cannot be.
    """
    keep_fresh = experiment.keep_fresh
    if experiment.upcycle:
        names = flatten(experiment.recipe().anatomy.names)
        _require_same_activation(experiment, base)
        theirs = upcycled(theirs, ours, names)
        keep_fresh += of_mixtures_alone(names)
    return theirs, keep_fresh


def _require_same_activation(experiment: Finetune, base: Experiment) -> None:
    """Refuses experts that would do something else with the source's weights."""
    ours = fields_of(experiment.model).get("expert")
    theirs = fields_of(base.model).get("mlp")
    here, there = (getattr(mlp, "activation", None) for mlp in (ours, theirs))
    if here != there:
        raise UserError(
            f"upcycle=True: the source's MLP has activation={there!r}, the experts "
            f"{here!r}; write experts.expert.activation={there!r}."
        )


def vocabulary_of(experiment: Finetune, base: Experiment) -> Vocabulary:
    """The vocabularies of both models, and whether the source's grows.

    Raises:
      UserError: grow_vocab is not the model's vocab_size, or the source's is as large.
    """
    asked, ours = experiment.grow_vocab, experiment.model.vocab_size
    theirs = base.model.vocab_size
    if asked and asked != ours:
        raise UserError(
            f"grow_vocab={asked}, but model.vocab_size={ours}; make them equal, or "
            "leave the model out, to take the source's."
        )
    if asked and asked <= theirs:
        does = "would shrink" if asked < theirs else "would not grow"
        raise UserError(
            f"grow_vocab={asked}: the source's vocabulary has {theirs} ids and {does}; "
            "give more, or leave grow_vocab out."
        )
    names = flatten(experiment.recipe().anatomy.names)
    return Vocabulary(names, ours, theirs, may_grow=bool(asked))


def with_added_tokens(experiment: Finetune, tokenizer: Tokenizer) -> Tokenizer:
    """The source's tokenizer, with the tokens that the fine-tune adds.

    Raises:
      UserError: one of them cannot be added, or the model has too few ids.
    """
    if not experiment.add_tokens:
        return tokenizer
    added = AddedTokens(tokenizer, experiment.add_tokens)
    have = experiment.model.vocab_size
    if added.vocab_size > have:
        raise UserError(
            f"With add_tokens the tokenizer has {added.vocab_size} ids, the model "
            f"{have}; write grow_vocab={added.vocab_size} or more."
        )
    return added


def record(run: RunDir, transfer: Transfer) -> None:
    """Adds what was not simply taken from the source to this session's receipt."""
    if not str(transfer):
        return
    with cluster.synchronized():
        if cluster.is_first():
            facts = {"parameters": transfer.facts}
            run.receipt.update_newest(lambda newest: {**newest, **facts})
