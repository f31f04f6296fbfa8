"""Greedy answers, beam search, drawing and ranking are those of transformers' torch T5."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install -e '.[parity]' brings torch")

import torch
from parity.cases import our_params, quick_jit, random_case, random_ids
from parity.torch_t5 import torch_logits, torch_model
from transformers import LogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from spt_jax.config.decode import DecodeConfig
from spt_jax.decoding.generate import generate
from spt_jax.decoding.loop import EOS_ID, answer_log_probs
from spt_jax.decoding.sampling import candidates
from spt_jax.t5 import T5

LENGTH = 24  # beyond the last position bucket
CASES = pytest.mark.parametrize(
    "version, shape, prompted",
    [("v1_0", "3+1", True), ("v1_0", "1+3", False), ("v1_1", "1+3", True), ("v1_1", "3+1", False)],
)


def case(version, shape, prompted):
    """(config, parameters, prompt or None, inputs) of a T5 whose answers vary and often end."""
    config, t5, prompt, _ = random_case(version, shape)
    t5 = copy.deepcopy(t5)
    t5["decoder"]["decoder_norm"]["scale"] *= np.float32(3)  # logits further apart
    embedding = t5["token_embedder"]["embedding"]
    if config.tied_head:
        embedding *= np.float32(0.1)  # so that the head does not repeat the decoder's input
        embedding[EOS_ID] *= 3
    else:
        t5["decoder"]["logits_dense"]["kernel"][:, EOS_ID] *= 3
    inputs = random_ids(config, [12, 12, 9, 9, 5, 3, 2, 1], 12, seed=6)
    return config, t5, prompt if prompted else None, inputs


def ours(config, t5, prompt, function, *args, **kwargs):
    """One of our functions, jitted with what follows its params."""
    params = {"t5": t5} if prompt is None else {"t5": t5, "prompt": prompt}
    args = [jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in args]
    run = quick_jit(lambda params: function(T5(config), params, *args, **kwargs))
    return run(our_params(params, "float32"))


def theirs(config, t5, prompt, inputs, **options):
    """What `generate` of transformers gives for the embedded input, the prompt in front."""
    model, ids = torch_model(config, t5, torch.float32), torch.tensor(inputs).long()
    embedded, mask = model.shared(ids), (ids > 0).long()
    if prompt is not None:
        rows = torch.tensor(prompt).expand(len(ids), *prompt.shape)
        embedded = torch.cat([rows, embedded], dim=1)
        mask = torch.cat([torch.ones(rows.shape[:2], dtype=torch.long), mask], dim=1)
    return model.generate(
        inputs_embeds=embedded.detach(),
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=LENGTH,
        # transformers sizes the cache by the encoder and fails where the decoder is deeper.
        use_cache=config.num_decoder_layers <= config.num_layers,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )


def padded(sequences):
    """Their ids without the start id, as wide as ours, 0 after EOS as in ours."""
    ids = sequences[:, 1:].numpy()
    ids = np.where(np.cumsum(ids == EOS_ID, axis=1) - (ids == EOS_ID) > 0, 0, ids)
    return np.pad(ids, ((0, 0), (0, LENGTH - ids.shape[1])))


@CASES
def test_greedy_answers_and_scores(version, shape, prompted):
    config, t5, prompt, inputs = case(version, shape, prompted)
    ids, scores = ours(config, t5, prompt, generate, inputs, DecodeConfig(), length=LENGTH)
    answer = theirs(config, t5, prompt, inputs)
    expected, logits = padded(answer.sequences), torch.stack(answer.logits, dim=1)
    best, second = logits.topk(2).values.unbind(-1)
    steps = logits.shape[1]
    tokens = np.where(expected == EOS_ID, np.arange(1, LENGTH + 1), LENGTH).min(axis=1)
    written = np.arange(steps) < tokens[:, None]
    clear = np.all((best - second).numpy() > 1e-4, axis=1, where=written)
    # There is something to compare: clear, varied answers, of which some end early.
    assert np.mean(clear) > 0.8 and len(np.unique(expected)) > 4
    assert np.any(tokens < LENGTH) and len(np.unique(tokens)) > 1
    np.testing.assert_array_equal(ids[clear, 0], expected[clear])
    picked = torch.tensor(expected[:, :steps, None]).long()
    log_probs = logits.log_softmax(-1).gather(2, picked)[..., 0].numpy()
    total = np.sum(log_probs, axis=1, where=written) / tokens
    np.testing.assert_allclose(scores[clear, 0], total[clear], rtol=1e-5)


class Margins(LogitsProcessor):
    """Watches a beam search: the least margin by which any beam of a row was ever kept."""

    def __init__(self, rows, beams):
        self.beams = beams
        self.log_probs = [{(0,): 0.0} for _ in range(rows)]  # of each beam, by its ids
        self.margins = np.full(rows, np.inf)

    def __call__(self, input_ids, scores):
        rows = len(self.margins)
        written = input_ids.reshape(rows, self.beams, -1).tolist()
        after = scores.reshape(rows, self.beams, -1).tolist()
        for row, (beams, more) in enumerate(zip(written, after, strict=True)):
            old = self.log_probs[row]
            new = {
                (*beam, token): old[tuple(beam)] + log_prob
                for beam, log_probs in zip(beams, more, strict=True)
                for token, log_prob in enumerate(log_probs)
            }
            leading = sorted(new, key=new.get, reverse=True)
            going_on = [answer for answer in leading if answer[-1] != EOS_ID]
            for answers in (leading, going_on):
                last, first_out = answers[self.beams - 1 : self.beams + 1]
                self.margins[row] = min(self.margins[row], new[last] - new[first_out])
            self.log_probs[row] = new
        return scores


@pytest.mark.parametrize(
    "version, shape, prompted, penalty",
    [
        ("v1_0", "3+1", True, 0.6),
        ("v1_0", "1+3", False, 1.0),
        ("v1_0", "3+1", False, 2.0),
        ("v1_1", "1+3", False, 0.6),
        ("v1_1", "1+3", True, 1.0),
        ("v1_1", "3+1", True, 2.0),
    ],
)
def test_beam_search(version, shape, prompted, penalty):
    config, t5, prompt, inputs = case(version, shape, prompted)
    four = DecodeConfig(num_beams=4, num_results=4, length_penalty=penalty)
    ids, scores = ours(config, t5, prompt, generate, inputs, four, length=LENGTH)
    watched = Margins(len(inputs), beams=4)
    answer = theirs(
        config,
        t5,
        prompt,
        inputs,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=penalty,
        early_stopping=False,
        logits_processor=[watched],
    )
    expected = padded(answer.sequences).reshape(ids.shape)
    their_scores = answer.sequences_scores.numpy().reshape(scores.shape)
    apart = np.diff(their_scores) / their_scores[:, 1:]
    clear = (watched.margins > 1e-4) & np.all(apart > 1e-5, axis=1)
    ended = np.any(expected[:, :, :-1] == EOS_ID, axis=2)
    assert np.mean(clear) >= 0.5 and len(np.unique(expected)) > 5 and np.any(ended[clear])
    np.testing.assert_array_equal(ids[clear], expected[clear])
    np.testing.assert_allclose(scores[clear], their_scores[clear], rtol=1e-5)


@CASES
def test_log_probs_of_answers(version, shape, prompted):
    config, t5, prompt, inputs = case(version, shape, prompted)
    answers = random_ids(config, [1, 2, 5, 24], LENGTH, seed=8)
    found = ours(config, t5, prompt, answer_log_probs, inputs, answers)
    model = torch_model(config, t5, torch.float32)
    for number, answer in enumerate(answers):
        targets = np.tile(answer, (len(inputs), 1))
        batch = {"inputs": inputs, "targets": targets}
        with torch.no_grad():
            logits = torch_logits(model, batch, None if prompt is None else torch.tensor(prompt))
        picked = logits.log_softmax(-1).gather(2, torch.tensor(targets[..., None]).long())
        expected = np.sum(picked[..., 0].numpy(), axis=1, where=targets > 0)
        np.testing.assert_allclose(found[:, number], expected, rtol=1e-5)


@pytest.mark.parametrize("top_k, top_p", [(5, 1.0), (None, 0.7), (8, 0.9), (3, 0.05)])
def test_what_may_be_drawn(top_k, top_p):
    logits = np.random.default_rng(0).normal(scale=2.0, size=(20, 30)).astype(np.float32)
    config = DecodeConfig(sample=True, temperature=0.8, top_k=top_k, top_p=top_p)
    values, ids = candidates(jnp.asarray(logits), config)
    found = np.full_like(logits, -np.inf)
    np.put_along_axis(found, np.asarray(ids), np.asarray(values), axis=1)
    expected = torch.tensor(logits / np.float32(0.8))
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
