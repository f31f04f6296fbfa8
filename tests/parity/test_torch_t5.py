"""Our T5 gives the logits and gradients of transformers' torch T5 with the same parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install -e '.[parity]' brings torch")

import torch
from parity.cases import (
    CASES,
    LIMITS,
    VERSIONS,
    our_logits_and_grad,
    our_params,
    quick_jit,
    random_case,
    relative_difference,
    relative_norm,
)
from parity.torch_t5 import NAMES, torch_grads, torch_logits, torch_loss, torch_model
from transformers.models.t5.modeling_t5 import T5Attention

from spt_jax.config.train import LossConfig
from spt_jax.forward import forward
from spt_jax.pytree import label_params, named_leaves, split
from spt_jax.step import loss_and_grads
from spt_jax.t5 import T5
from spt_jax.t5.attention import relative_position_bucket


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("version, shape", CASES)
def test_logits_and_prompt_gradient(version, shape, dtype):
    config, t5, prompt, batch = random_case(version, shape)
    logits, grad = our_logits_and_grad(version, shape, dtype)
    oracle = torch_model(config, t5, getattr(torch, dtype))
    theirs = torch.tensor(prompt, dtype=getattr(torch, dtype), requires_grad=True)
    their_logits = torch_logits(oracle, batch, theirs)
    torch_loss(their_logits, batch).backward()

    of_logits, of_gradient = LIMITS[dtype]
    assert relative_difference(logits, their_logits.detach().numpy()) <= of_logits
    assert relative_norm(grad, theirs.grad.numpy()) <= of_gradient


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("version, shape", CASES)
def test_logits_without_a_prompt(version, shape, dtype):
    config, t5, _, batch = random_case(version, shape)
    with jax.enable_x64(dtype == "float64"):
        run = quick_jit(functools.partial(forward, T5(config, dtype=jnp.dtype(dtype))))
        params = {"t5": our_params(t5, dtype)}
        logits = np.asarray(run(params, batch["inputs"], batch["targets"]))
    oracle = torch_model(config, t5, getattr(torch, dtype))
    with torch.no_grad():
        theirs = torch_logits(oracle, batch, None).numpy()
    assert relative_difference(logits, theirs) <= LIMITS[dtype][0]


@pytest.mark.parametrize("version, shape", [("v1_0", "1+3"), ("v1_1", "3+1")])
def test_gradient_of_every_weight(version, shape):
    config, t5, _, batch = random_case(version, shape)
    with jax.enable_x64(True):
        params = {"t5": our_params(t5, "float64")}
        trained, frozen = split(params, label_params(params, "model"))
        loss, model = LossConfig(z_loss=0.0), T5(config, dtype=jnp.float64)
        run = quick_jit(functools.partial(loss_and_grads, model=model, loss=loss))
        _, grads = run(trained, frozen, batch, jax.random.key(0))
    oracle = torch_model(config, t5, torch.float64)
    torch_loss(torch_logits(oracle, batch, None), batch).backward()
    theirs = torch_grads(oracle, t5)
    ours = {name: np.asarray(leaf) for name, leaf in named_leaves(grads["t5"])}
    assert ours.keys() == theirs.keys()
    errors = {name: relative_norm(ours[name], theirs[name]) for name in ours}
    assert all(error <= 1e-9 for error in errors.values()), errors


def test_the_table_names_every_leaf_and_no_other():
    trees = [random_case(version, "3+1")[1] for version in VERSIONS]
    assert {name for tree in trees for name, _ in named_leaves(tree)} == NAMES.keys()


def into_and_out_of_the_head(oracle, batch):
    """The decoder's output, what the head reads, and the logits."""
    seen = {}
    oracle.decoder.final_layer_norm.register_forward_hook(
        lambda module, args, output: seen.update(decoded=output)
    )
    oracle.lm_head.register_forward_pre_hook(lambda module, args: seen.update(read=args[0]))
    with torch.no_grad():
        logits = torch_logits(oracle, batch, None)
    return seen["decoded"], seen["read"], logits


def test_the_oracle_of_1_1_has_a_head_of_its_own_and_unscaled_logits():
    config, t5, _, batch = random_case("v1_1", "3+1")
    oracle = torch_model(config, t5, torch.float32)
    head, shared = oracle.lm_head.weight, oracle.shared.weight
    assert head.data_ptr() != shared.data_ptr()
    kernel = t5["decoder"]["logits_dense"]["kernel"]
    np.testing.assert_array_equal(head.detach().numpy(), kernel.T)
    decoded, read, logits = into_and_out_of_the_head(oracle, batch)
    assert torch.equal(read, decoded)
    np.testing.assert_allclose(logits, decoded.numpy() @ kernel, atol=1e-5)
    with torch.no_grad():
        before = head.clone()
        shared += 1
        assert torch.equal(head, before)
        before = shared.clone()
        head += 1
        assert torch.equal(shared, before)


def test_the_oracle_of_1_0_has_a_tied_head_and_scaled_logits():
    config, t5, _, batch = random_case("v1_0", "3+1")
    oracle = torch_model(config, t5, torch.float32)
    assert oracle.lm_head.weight.data_ptr() == oracle.shared.weight.data_ptr()
    decoded, read, logits = into_and_out_of_the_head(oracle, batch)
    scaled = decoded.numpy() * config.d_model**-0.5
    np.testing.assert_allclose(read, scaled, rtol=1e-6)
    embedding = t5["token_embedder"]["embedding"]
    np.testing.assert_allclose(logits, scaled @ embedding.T, atol=1e-5)
    with torch.no_grad():
        oracle.shared.weight += 1
    np.testing.assert_array_equal(oracle.lm_head.weight.detach().numpy(), embedding + 1)


@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (8, 16), (16, 50)])
@pytest.mark.parametrize("bidirectional", [True, False], ids=["encoder", "decoder"])
def test_buckets_of_every_distance(bidirectional, buckets, max_distance):
    distance = np.arange(-600, 601)
    ours = relative_position_bucket(
        distance, bidirectional=bidirectional, buckets=buckets, max_distance=max_distance
    )
    theirs = T5Attention._relative_position_bucket(
        torch.tensor(distance), bidirectional, buckets, max_distance
    )
    np.testing.assert_array_equal(ours, theirs.numpy())
    assert set(ours.tolist()) == set(range(buckets)) - ({buckets // 2} if bidirectional else set())
