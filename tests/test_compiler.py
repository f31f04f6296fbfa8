import types

import jax
import jax.numpy as jnp
import pytest

from spt_jax import compiler


@pytest.fixture(autouse=True)
def _asked_anew():
    compiler._knows_eigen.cache_clear()
    yield
    compiler._knows_eigen.cache_clear()


def _program(options):
    x = jnp.ones((256, 256))
    return jax.jit(jnp.matmul, compiler_options=options).lower(x, x).compile().as_text()


def test_products_of_a_step_are_not_ynnpack_s_on_x86(monkeypatch):
    monkeypatch.setattr(compiler.machine, "machine", lambda: "x86_64")
    options = compiler.step_options(None)
    if "__ynn_fusion" not in _program({}):
        pytest.skip("this jaxlib, or this processor, multiplies without YNNPACK")
    assert "__ynn_fusion" not in _program(options)


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(compiler.machine, "machine", lambda: "x86_64")
    monkeypatch.setattr(compiler, "_EIGEN", {"xla_cpu_of_another_year": ""})
    assert compiler.step_options(None) == {}


@pytest.mark.parametrize(
    "platform, machine", [("tpu", "x86_64"), ("gpu", "x86_64"), ("cpu", "arm64")]
)
def test_other_devices_are_left_as_they_are(monkeypatch, platform, machine):
    monkeypatch.setattr(compiler.machine, "machine", lambda: machine)
    monkeypatch.setattr(compiler, "platform", lambda mesh: platform)
    assert compiler.step_options(types.SimpleNamespace()) == {}
