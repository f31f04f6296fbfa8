"""Prompts that PEFT wrote mean the same to us, and ours to PEFT."""

import functools
import json

import jax.numpy as jnp
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
    talkative,
)
from parity.torch_t5 import torch_model
from peft import (
    MultitaskPromptTuningConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from peft import get_peft_model as wrap

from spt_jax.decoding.loop import greedy
from spt_jax.forward import forward
from spt_jax.prompts.convert import export_prompt, import_prompt
from spt_jax.prompts.file import load_prompt, save_prompt
from spt_jax.t5 import T5

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning:transformers.modeling_utils",
    "ignore:Could not find a config file in tiny:UserWarning:peft.utils.save_and_load",
)
LIMIT, _ = LIMITS["float32"]


def their_logits(model, batch):
    inputs, targets = (torch.tensor(batch[key]).long() for key in ("inputs", "targets"))
    with torch.no_grad():
        return model(
            input_ids=inputs,
            attention_mask=(inputs > 0).long(),
            decoder_input_ids=torch.nn.functional.pad(targets, (1, -1)),
            use_cache=False,
        ).logits.numpy()


def exported(folder, prompt):
    """The folder of our export of a prompt, and PEFT's reading of it on a torch T5."""
    save_prompt(folder / "prompt.safetensors", prompt, {"model": "tiny", "task": "sst2"})
    export_prompt(folder / "prompt.safetensors", folder / "peft", format="peft")
    return folder / "peft"


@pytest.mark.parametrize("version", VERSIONS)
def test_peft_computes_our_logits_with_our_export(tmp_path, version):
    config, t5, prompt, batch = random_case(version, "3+1")
    folder = exported(tmp_path, prompt)
    model = PeftModel.from_pretrained(torch_model(config, t5, torch.float32), folder).eval()
    ours, _ = our_logits_and_grad(version, "3+1", "float32")
    assert relative_difference(ours, their_logits(model, batch)) <= LIMIT

    # Saved by PEFT again, it is the same prompt.
    model.save_pretrained(tmp_path / "again")
    import_prompt(tmp_path / "again", tmp_path / "again.safetensors")
    assert load_prompt(tmp_path / "again.safetensors")[0].tobytes() == prompt.tobytes()


def test_peft_writes_our_greedy_answers_with_our_export(tmp_path):
    config, t5, prompt, _ = random_case("v1_0", "3+1")
    t5, length = talkative(config, t5), 12
    inputs = random_ids(config, [12, 12, 9, 9, 5, 3, 2, 1], 12, seed=6)
    run = quick_jit(functools.partial(greedy, T5(config), length=length))
    ours = np.asarray(run(our_params({"t5": t5, "prompt": prompt}, "float32"), inputs))
    folder = exported(tmp_path, prompt)
    model = PeftModel.from_pretrained(torch_model(config, t5, torch.float32), folder).eval()
    ids = torch.tensor(inputs).long()
    answer = model.generate(
        input_ids=ids, attention_mask=(ids > 0).long(), do_sample=False, max_new_tokens=length
    )
    theirs = answer[:, 1:].numpy()
    assert len(np.unique(theirs)) > 5
    np.testing.assert_array_equal(ours[:, : theirs.shape[1]], theirs)
    assert not np.any(ours[:, theirs.shape[1] :])


CONFIGS = {
    "one submodule": functools.partial(PromptTuningConfig, num_transformer_submodules=1),
    "two submodules": PromptTuningConfig,
    "P-tuning, MLP": functools.partial(PromptEncoderConfig, encoder_hidden_size=9),
    "P-tuning, LSTM": functools.partial(
        PromptEncoderConfig,
        encoder_reparameterization_type="LSTM",
        encoder_hidden_size=7,
        encoder_dropout=0.0,
        num_transformer_submodules=1,
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_our_logits_with_an_adapter_that_peft_wrote(tmp_path, kind):
    config, t5, _, batch = random_case("v1_1", "3+1")
    torch.manual_seed(0)
    made = CONFIGS[kind](task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5)
    model = wrap(torch_model(config, t5, torch.float32), made)
    # As in training: the encoder of P-tuning runs, where the stored file has what it made.
    expected = their_logits(model.eval(), batch)
    model.save_pretrained(tmp_path / "theirs")
    stored = json.loads((tmp_path / "theirs/adapter_config.json").read_text())
    assert stored["num_transformer_submodules"] == (
        1 if kind in ("one submodule", "P-tuning, LSTM") else 2
    )

    import_prompt(tmp_path / "theirs", tmp_path / "ours.safetensors")
    prompt, metadata = load_prompt(tmp_path / "ours.safetensors")
    assert prompt.shape == (5, config.d_model) and metadata["imported_from"] == "peft"
    run = quick_jit(functools.partial(forward, T5(config)))
    params = our_params({"t5": t5, "prompt": prompt}, "float32")
    ours = np.asarray(run(params, batch["inputs"], batch["targets"]))
    assert relative_difference(ours, expected) <= LIMIT


def test_prefix_tuning_of_peft_is_refused(tmp_path):
    config, t5, _, _ = random_case("v1_1", "3+1")
    made = PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5)
    wrap(torch_model(config, t5, torch.float32), made).save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="'PREFIX_TUNING', which puts keys and values into every"):
        import_prompt(tmp_path / "theirs", tmp_path / "ours.safetensors")
    assert not (tmp_path / "ours.safetensors").exists()


def test_a_task_of_their_multitask_prompt_is_a_prompt_here(tmp_path):
    config, t5, prompt, batch = random_case("v1_1", "3+1")
    settings = MultitaskPromptTuningConfig(
        task_type="SEQ_2_SEQ_LM",
        num_tasks=3,
        num_ranks=2,
        num_virtual_tokens=len(prompt),
        num_transformer_submodules=1,
        prompt_tuning_init="RANDOM",
    )
    model = wrap(torch_model(config, t5, torch.float32), settings).eval()
    model.save_pretrained(tmp_path / "multitask")
    inputs, targets = (torch.tensor(batch[key]).long() for key in ("inputs", "targets"))
    answers = []
    for task in range(3):
        with torch.no_grad():
            theirs = model(
                input_ids=inputs,
                attention_mask=(inputs > 0).long(),
                labels=targets,  # shifted right, they are the decoder's input
                task_ids=torch.full((len(inputs),), task),
                use_cache=False,
            ).logits.numpy()
        import_prompt(f"{tmp_path}/multitask#{task}", tmp_path / f"{task}.safetensors")
        folded, _ = load_prompt(tmp_path / f"{task}.safetensors")
        params = our_params({"t5": t5, "prompt": folded}, "float32")
        ours = quick_jit(functools.partial(forward, T5(config)))(
            params, jnp.asarray(batch["inputs"]), jnp.asarray(batch["targets"])
        )
        assert relative_difference(np.asarray(ours), theirs) <= LIMIT
        answers.append(theirs)
    assert np.abs(answers[0] - answers[1]).max() > 1e-3
