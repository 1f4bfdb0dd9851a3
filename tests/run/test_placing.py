"""Placing an experiment: an auto layout is resolved where the command begins."""

import dataclasses
import importlib
import os
import subprocess
import sys

import pytest

from jaxpar.errors import UserError
from jaxpar.evaluate import main as evaluate
from jaxpar.partition import devices
from jaxpar.partition.auto_layout import auto
from jaxpar.partition.layout import Layout
from jaxpar.pretrain import main as pretrain
from jaxpar.run.directory import RunDir
from jaxpar.run.placing import layout_for, place
from tests.outside.own_model import experiment as OWN

RUN = dataclasses.replace(OWN, layout=auto(cpu="data=4,tensor=2"), num_steps=2)


def test_simulated_devices_are_all_used():
    any_layout = dataclasses.replace(RUN, layout=auto())
    assert place(any_layout).layout.spelling == "data=8"
    assert layout_for(RUN).spelling == "data=4,tensor=2"


def test_auto_that_is_one_device_has_nothing_to_prove(monkeypatch):
    from jaxpar import verify

    monkeypatch.setattr("jaxpar.run.placing.simulated_devices", lambda: 0)
    with pytest.raises(UserError, match="name a --layout"):
        verify(dataclasses.replace(RUN, layout=auto()))


def test_the_run_keeps_the_request_and_its_receipt_the_layout(tmp_path, capfd):
    run = RunDir(tmp_path / "run")
    assert pretrain(RUN, run_dir=run.path) == 0
    assert run.open(*{type(RUN.model), type(RUN.objective)}).layout == RUN.layout
    assert run.receipt.sessions()[-1]["layout"] == "data=4,tensor=2"
    capfd.readouterr()
    longer = dataclasses.replace(RUN, num_steps=3, layout=Layout.parse("fsdp=8"))
    assert pretrain(longer, run_dir=run.path) == 0
    assert "Layout fsdp=8 from here on" in capfd.readouterr().out
    # It reads the receipt: no other layout of eight devices is announced or refused.
    back = dataclasses.replace(RUN, num_steps=3)
    assert pretrain(back, run_dir=run.path) == 0
    found = evaluate(run.path, classes=(type(RUN.model), type(RUN.objective)))
    assert found["step"] == 3


def test_a_gpu_that_jax_cannot_use_is_said_with_the_line_to_type(monkeypatch, capfd):
    exists = os.path.exists
    there = {"/dev/nvidiactl": True, "/dev/accel0": False, "/dev/vfio/0": False}
    monkeypatch.setattr(os.path, "exists", lambda path: there.get(path, exists(path)))
    monkeypatch.setattr(devices, "_platforms", lambda: "")
    devices.say_once.cache_clear()
    assert devices.without_accelerator()
    assert 'pip install -e ".[cuda12]"' in capfd.readouterr().err


@pytest.mark.parametrize("platform", ["cuda", "tpu", "bogus"])
def test_a_platform_that_is_not_there_is_said(platform):
    code = (
        "from jaxpar.partition.devices import visible_devices\n"
        "from jaxpar.errors import UserError\n"
        "try: visible_devices()\n"
        "except UserError as error: print(error)"
    )
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert f"JAX_PLATFORMS={platform}: JAX can use no such device" in found.stdout


def test_where_no_platform_is_named_none_is_blamed(monkeypatch):
    def devices_of_none():
        raise RuntimeError("no backend")

    monkeypatch.setattr(devices.jax, "devices", devices_of_none)
    monkeypatch.setattr(devices, "_platforms", lambda: "")
    with pytest.raises(UserError, match=r"^JAX finds no device .*no backend\)\. Set "):
        devices.visible_devices()


@dataclasses.dataclass(frozen=True)
class StandIn:
    """A GPU that is not there."""

    device_kind: str = "NVIDIA H100 80GB HBM3"
    process_index: int = 0

    def memory_stats(self):
        return {"bytes_limit": 60 << 30}


@pytest.mark.parametrize(
    ("name", "n_gpus", "chosen"),
    [
        ("quickstart", 1, "data=1"),
        ("quickstart", 4, "data=4"),
        ("quickstart", 8, "data=8"),
        ("llama_7b", 1, "data=1"),
        ("llama_7b", 4, "fsdp=4"),
        ("llama_7b", 8, "fsdp=8"),
    ],
)
def test_the_same_command_runs_on_the_gpus_there_are(
    name, n_gpus, chosen, monkeypatch, capfd
):
    monkeypatch.setattr("jaxpar.run.placing.without_accelerator", lambda: False)
    gpus = [StandIn()] * n_gpus
    monkeypatch.setattr("jaxpar.run.placing.visible_devices", lambda devices: gpus)
    experiment = importlib.import_module(f"experiments.{name}").experiment
    experiment = dataclasses.replace(experiment, layout=auto(cpu="data=4,tensor=2"))
    assert layout_for(experiment).spelling == chosen
    said = capfd.readouterr().err
    assert f"Layout {chosen}, chosen for {n_gpus} x NVIDIA H100" in said
    assert ("whole parameters and optimizer" in said) == ("fsdp" in chosen)


def test_a_batch_that_the_gpus_cannot_divide_is_refused_before_anything(monkeypatch):
    monkeypatch.setattr("jaxpar.run.placing.without_accelerator", lambda: False)
    gpus = [StandIn()] * 6
    monkeypatch.setattr("jaxpar.run.placing.visible_devices", lambda devices: gpus)
    with pytest.raises(UserError, match="nearest legal sizes are 6 and 9"):
        layout_for(dataclasses.replace(RUN, layout=auto()))


def test_an_experiment_whose_code_was_edited_is_said_to_go_on(tmp_path, capfd):
    run, file = tmp_path / "run", tmp_path / "e.py"
    file.write_text("a = 1\nb = 2\n")
    pretrain(RUN, run_dir=run, source_file=file)
    pretrain(RUN, run_dir=run, source_file=file)
    assert "has changed" not in capfd.readouterr().out
    file.write_text("a = 1\nb = 3\n")
    pretrain(RUN, run_dir=run, source_file=file)
    assert "e.py has changed since" in (said := capfd.readouterr().out)
    assert "another --run-dir" in said
