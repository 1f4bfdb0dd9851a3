"""The command line: `jaxpar VERB experiments/x.py --field.path value`."""

from jaxpar.cli.main import main

__all__ = ["main"]
