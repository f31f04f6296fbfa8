"""A prompt means the same to PEFT as to us: same logits, same gradient, same greedy answers."""

import functools

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install -e '.[parity]' brings torch")
pytest.importorskip("peft", reason="pip install -e '.[parity]' brings peft")

import torch
from parity.cases import (
    LIMITS,
    VERSIONS,
    our_logits_and_grad,
    our_params,
    quick_jit,
    random_case,
    random_ids,
    relative_difference,
    relative_norm,
    talkative,
)
from parity.torch_t5 import torch_loss, torch_model
from peft import PromptTuningConfig, get_peft_model

from spt_jax.decoding.loop import EOS_ID, greedy
from spt_jax.t5 import T5

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning:transformers.modeling_utils"
)


def peft_model(config, t5, prompt, dtype):
    """Their T5 with our parameters in PEFT with our prompt."""
    model = get_peft_model(
        torch_model(config, t5, dtype),
        PromptTuningConfig(
            task_type="SEQ_2_SEQ_LM",
            num_virtual_tokens=len(prompt),
            num_transformer_submodules=1,
        ),
    )
    weight = model.prompt_encoder["default"].embedding.weight
    assert weight.shape == prompt.shape
    weight.data = torch.tensor(prompt, dtype=dtype)
    return model.eval()


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("version", VERSIONS)
def test_logits_and_gradient_of_peft(version, dtype):
    config, t5, prompt, batch = random_case(version, "3+1")
    logits, grad = our_logits_and_grad(version, "3+1", dtype)
    model = peft_model(config, t5, prompt, getattr(torch, dtype))
    base = model.get_base_model()
    tied = base.lm_head.weight.data_ptr() == base.shared.weight.data_ptr()
    assert tied == config.tied_head  # wrapped, too

    inputs, targets = (torch.tensor(batch[key]).long() for key in ("inputs", "targets"))
    their_logits = model(
        input_ids=inputs,
        attention_mask=(inputs > 0).long(),
        decoder_input_ids=torch.nn.functional.pad(targets, (1, -1)),
        use_cache=False,
    ).logits
    torch_loss(their_logits, batch).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(trained) == 1  # the prompt, in one tensor
    (their_grad,) = trained.values()

    of_logits, of_gradient = LIMITS[dtype]
    assert relative_difference(logits, their_logits.detach().numpy()) <= of_logits
    assert relative_norm(grad, their_grad.numpy()) <= of_gradient


@pytest.mark.parametrize("prompted", [True, False], ids=["prompt", "no_prompt"])
@pytest.mark.parametrize("version, shape", [("v1_0", "3+1"), ("v1_1", "1+3")])
def test_greedy_answers(version, shape, prompted):
    config, t5, prompt, _ = random_case(version, shape)
    t5 = talkative(config, t5)
    length = 24  # beyond the last position bucket
    inputs = random_ids(config, [12, 12, 9, 9, 5, 3, 2, 1], 12, seed=6)
    params = {"t5": t5, "prompt": prompt} if prompted else {"t5": t5}
    run = quick_jit(functools.partial(greedy, T5(config), length=length))
    ours = np.asarray(run(our_params(params, "float32"), inputs))

    if prompted:
        model = peft_model(config, t5, prompt, torch.float32)
    else:
        model = torch_model(config, t5, torch.float32)
    ids = torch.tensor(inputs).long()
    answer = model.generate(
        input_ids=ids,
        attention_mask=(ids > 0).long(),
        do_sample=False,
        max_new_tokens=length,
        # transformers sizes the cache by the encoder and fails where the decoder is deeper.
        use_cache=config.num_decoder_layers <= config.num_layers,
        output_logits=True,
        return_dict_in_generate=True,
    )
    theirs = answer.sequences[:, 1:].numpy()
    steps = theirs.shape[1]
    best, second = torch.stack(answer.logits, dim=1).topk(2).values.unbind(-1)
    clear = np.cumprod((best - second).numpy() > 1e-4, axis=1) == 1
    # There is something to compare: clear, varied answers, of which some end early.
    ended = np.any(theirs[:, :-1] == EOS_ID, axis=1)
    assert np.mean(clear) > 0.9 and len(np.unique(theirs)) > 5 and 0 < np.sum(ended) < len(ended)
    np.testing.assert_array_equal(ours[:, :steps][clear], theirs[clear])
    assert not np.any(ours[:, steps:])
