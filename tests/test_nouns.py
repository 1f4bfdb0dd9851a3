"""`import jaxpar` gives the nouns, and costs nothing until one of them is used."""

import subprocess
import sys

import pytest

import jaxpar


@pytest.mark.parametrize("name", jaxpar.NOUNS)
def test_a_noun_is_what_its_module_defines(name):
    value = getattr(jaxpar, name)
    assert value.__name__ == name
    assert value.__module__ == jaxpar.NOUNS[name]
    assert name in dir(jaxpar)


def test_verify_is_called_like_a_function_whatever_was_imported_before():
    for before in ("", "from jaxpar.verify import prove"):
        code = f"{before}\nimport jaxpar\nfrom jaxpar import verify\n"
        code += "assert callable(verify) and verify is jaxpar.verify\n"
        code += "assert verify.assert_same is jaxpar.assert_same"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
    with pytest.raises(AttributeError):
        jaxpar.verify(None)


def test_importing_loads_no_jax_and_an_unknown_noun_is_an_error():
    code = "import sys, jaxpar; sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = jaxpar.nothing
