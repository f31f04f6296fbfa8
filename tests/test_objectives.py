"""Rows of the pretraining mixture: shapes, purity, and that every answer follows from its input."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from spt_jax.config.pretrain import MixtureConfig
from spt_jax.data.builtin.docstrings import Docstring
from spt_jax.pretraining.corpus import Corpus, Excerpt
from spt_jax.pretraining.instructions import INSTRUCTIONS
from spt_jax.pretraining.mixture import TASKS, Mixture, make_batches
from spt_jax.pretraining.packing import PackedRows
from spt_jax.pretraining.passage_tasks import corrupt_spans
from spt_jax.pretraining.passages import split_name, tokenize_corpus
from spt_jax.pretraining.wordlists import CHOICES, MOODS
from spt_jax.tokenizers.bpe import train_tokenizer

NOUNS = """house river garden window letter stone captain teacher market bridge candle village horse
    mountain forest table matrix vector number window engine server folder pointer buffer""".split()
VERBS = "sees finds takes keeps sends holds opens moves counts reads".split()
ADJECTIVES = "good bad happy sad great terrible small large early late cold warm".split()


def sentence(rng):
    words = ["the", rng.choice(ADJECTIVES), rng.choice(NOUNS), rng.choice(VERBS), "the"]
    words += [
        rng.choice(NOUNS),
        *rng.choices([*NOUNS, "and", "with", "never"], k=rng.randint(0, 6)),
    ]
    return f"{' '.join(words).capitalize()}{rng.choice(['.', '.', '?', '!'])}"


def text(rng, sentences):
    return " ".join(sentence(rng) for _ in range(sentences))


@pytest.fixture(scope="module")
def corpus():
    rng = random.Random(0)
    docstrings = tuple(
        Docstring("p", "p.m", kind, f"Thing.{rng.choice(VERBS)}_{rng.choice(NOUNS)}", text(rng, 9))
        for kind in ("function", "class", "method", "module")
        for _ in range(15)
    )
    excerpts = tuple(
        Excerpt(text(rng, 150), f"Title {'ABCD'[book]}", f"Author {'ABCD'[book]}", book)
        for book in (0, 0, 1, 1, 2, 3)
    )
    return Corpus(docstrings, excerpts)


@pytest.fixture(scope="module")
def tokenizer(corpus):
    texts = [*corpus.texts(), *(w for ws in INSTRUCTIONS.values() for w in ws)]
    texts += [f"{e.title} {e.author}" for e in corpus.excerpts]
    return train_tokenizer(texts * 2, 420)


@pytest.fixture(scope="module")
def passages(corpus, tokenizer):
    return tokenize_corpus(corpus, tokenizer)


def mixture(passages, seed=0, **options):
    return Mixture(passages, MixtureConfig(batch_size=16, **options), seed)


@pytest.fixture(scope="module")
def plain(passages):
    """The usual wording of every instruction, and labels under their own names."""
    return mixture(passages, wording_share=0.0, relabel_share=0.0)


def rows(plain, name, batches=3):
    """(instruction's arguments as text, text after the instruction, answer as text) of a task."""
    wording = INSTRUCTIONS[name][0]
    pattern = re.compile(re.escape(wording).replace(r"\{\}", r"(\S+)") + r"\s*(.*)", re.DOTALL)
    for step in range(batches):
        batch = plain.task_batch(name, step)
        for inputs, targets in zip(batch["inputs"], batch["targets"]):
            *arguments, body = pattern.fullmatch(spell(plain, inputs)).groups()
            yield arguments, body, spell(plain, targets)


def spell(plain, ids):
    """Text of ids up to the end marker; sentinels are spelled out as words."""
    ids = ids.tolist()
    pieces = [plain.passages.tokenizer.piece(i) for i in ids[: ids.index(1)]]
    pieces = [f"▁{p} ▁" if p.startswith("<extra") else p for p in pieces]
    return " ".join("".join(pieces).replace("▁", " ").split())


def plain_words(body):
    return re.findall(r"[^\W\d_]+", body)


def sides(body):
    return re.fullmatch(r"(.*?)\s*\ba: (.*) b: (.*)", body).groups()


def same_batch(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_batches_have_two_shapes_and_end_markers(passages):
    mixed = mixture(passages)
    shapes = {}
    for step in range(40):
        group, batch = mixed[step]
        shapes.setdefault(group, set()).add((batch["inputs"].shape, batch["targets"].shape))
        for array in batch.values():
            assert array.dtype == np.int32
            assert array.max() < passages.tokenizer.vocab_size
            ends = (array == 1).argmax(axis=1)
            for row, end in zip(array, ends):
                assert row[end] == 1 and end > 0
                assert (row[:end] > 1).all() and (row[end + 1 :] == 0).all()
    assert shapes == {"long": {((16, 96), (16, 48))}, "short": {((16, 96), (16, 12))}}


def test_a_batch_is_a_function_of_seed_and_step(passages):
    first, second = mixture(passages), mixture(passages)
    group, wanted = first[7]
    for step in (3, 1, 9):
        second[step]
    again_group, again = second[7]
    assert again_group == group
    assert same_batch(again, wanted)
    others = [mixture(passages, seed=1)[7], first[8]]
    for _, other in others:
        assert not np.array_equal(other["inputs"], wanted["inputs"])


def test_packed_rows_are_whole_examples_and_hold_more_of_them(passages):
    packed, alone = mixture(passages, pack=2), mixture(passages)
    counts = []
    for step in range(12):
        group, batch = packed[step]
        if group == "long":
            assert same_batch(batch, alone[step][1])
            continue
        assert batch["inputs"].shape == (8, 192) and batch["targets"].shape == (8, 24)
        assert same_batch(batch, mixture(passages, pack=2)[step][1])
        for name in ("inputs", "targets"):
            ids, segments = batch[name], batch[f"{name}_segments"]
            assert ((ids > 0) == (segments > 0)).all()
            ends = np.concatenate([segments[:, 1:] != segments[:, :-1], ids[:, -1:] > 0], axis=1)
            assert ((ids == 1) == (ends & (ids > 0))).all()
            assert (np.diff(segments, axis=1)[segments[:, 1:] > 0] >= 0).all()
        each = [batch[f"{name}_segments"].max(axis=1) for name in ("inputs", "targets")]
        assert (each[0] == each[1]).all()
        counts.append(each[0].sum())
    assert np.mean(counts) > 16


def test_examples_go_into_the_first_row_with_room_for_both_parts():
    rows = PackedRows(2, 5, 4)
    assert rows.add([7, 7, 1], [8, 1])
    assert rows.add([6, 6, 1], [9, 1])  # no room for its inputs in the first row
    assert rows.add([5, 1], [4, 1])
    assert not rows.add([5, 1], [3, 2, 1])  # the first row is full, the targets of the second too
    assert {name: array.tolist() for name, array in rows.batch().items()} == {
        "inputs": [[7, 7, 1, 5, 1], [6, 6, 1, 0, 0]],
        "targets": [[8, 1, 4, 1], [9, 1, 0, 0]],
        "inputs_segments": [[1, 1, 1, 2, 2], [1, 1, 1, 0, 0]],
        "targets_segments": [[1, 1, 2, 2], [1, 1, 0, 0]],
    }


def test_packing_that_does_not_divide_the_batch():
    with pytest.raises(ValueError, match="pack is 3, expected a divisor of .*batch_size, 16"):
        MixtureConfig(batch_size=16, pack=3)


def test_make_batches_is_the_mixture_of_a_corpus(corpus, tokenizer, passages):
    config = MixtureConfig(batch_size=16)
    _, made = make_batches(corpus, tokenizer, config, 0)[5]
    _, wanted = mixture(passages)[5]
    assert (made["inputs"] == wanted["inputs"]).all()


def test_share_of_short_steps(passages):
    mixed = mixture(passages, short_share=0.25)
    groups = Counter(mixed[step][0] for step in range(200))
    assert 30 <= groups["short"] <= 70
    weights = {"copy": 1.0}
    assert {mixture(passages, short_share=1.0, weights=weights)[s][0] for s in range(5)} == {
        "short"
    }


def test_weights_choose_the_tasks(passages):
    mixed = mixture(
        passages, short_share=1.0, wording_share=0.0, weights={"copy": 3.0, "first": 1.0}
    )
    texts = [spell(mixed, row) for step in range(30) for row in mixed[step][1]["inputs"]]
    starts = Counter(text.split(":")[0] for text in texts)
    assert set(starts) == {"copy", "first"}
    assert 0.65 < starts["copy"] / len(texts) < 0.85


def test_every_task_is_served_and_has_an_instruction(passages):
    assert set(TASKS) == set(INSTRUCTIONS) == set(MixtureConfig().weights)
    assert "library" not in TASKS
    mixed = mixture(passages, weights=dict.fromkeys(TASKS, 1.0))
    assert set(mixed.tasks) == set(TASKS)
    assert mixed.left_out == ()


def test_tasks_that_a_corpus_cannot_serve_are_left_out(corpus, tokenizer):
    books = Mixture(tokenize_corpus(Corpus((), corpus.excerpts[:1]), tokenizer), MixtureConfig(), 0)
    assert set(books.left_out) == {"name", "kind", "summary", "same"}
    docstrings = Mixture(
        tokenize_corpus(Corpus(corpus.docstrings, ()), tokenizer), MixtureConfig(), 0
    )
    assert set(docstrings.left_out) == {"book", "author", "same"}
    assert docstrings[0][1]["inputs"].any()


def test_span_corruption_is_undone_by_its_targets(tokenizer):
    rng = np.random.default_rng(0)
    for length in (10, 50, 105):
        ids = list(range(3, 3 + length))
        inputs, targets = corrupt_spans(ids, rng, tokenizer)
        spans = []
        for i in targets:
            if i >= tokenizer.sentinel(99):
                spans.append([])
            else:
                spans[-1].append(i)
        sentinels = [i for i in targets if i >= tokenizer.sentinel(99)]
        assert sentinels == [tokenizer.sentinel(k) for k in range(len(sentinels))]
        assert sentinels == [i for i in inputs if i >= tokenizer.sentinel(99)]
        restored = [
            k for i in inputs for k in (spans[tokenizer.sentinel(0) - i] if i in sentinels else [i])
        ]
        assert restored == ids
        noise = sum(map(len, spans))
        assert noise == max(1, round(0.15 * length))
        assert len(spans) == max(1, round(noise / 3))


def test_span_corruption_fills_the_inputs(plain):
    batch = plain.task_batch("span_corruption", 0)
    assert ((batch["inputs"] > 0).sum(axis=1) >= 93).all()
    assert (batch["inputs"][:, -1] <= 1).all()


def test_lm_targets_continue_the_inputs(plain):
    batch = plain.task_batch("lm", 0)
    stream = plain.passages.tokens.tobytes()
    for inputs, targets in zip(batch["inputs"], batch["targets"]):
        joined = np.concatenate([row[: row.tolist().index(1)] for row in (inputs, targets)])
        assert joined.tobytes() in stream
    assert (batch["targets"] > 0).all()


def test_name_is_the_documented_name_in_words(plain, corpus):
    names = {" ".join(d.text.split())[:60]: split_name(d.name) for d in corpus.docstrings}
    for _, body, answer in rows(plain, "name"):
        assert names[body[:60]] == answer


def test_names_are_split_in_words():
    assert split_name("a.HTTPServer_run2") == "http server run 2"
    assert split_name("LayerNorm") == "layer norm"
    assert split_name("Thing.__init__") == ""


def test_kind_is_the_kind_of_the_docstring(plain, corpus):
    kinds = {d.text[:60]: d.kind for d in corpus.docstrings}
    found = Counter()
    for _, body, answer in rows(plain, "kind", 8):
        assert kinds.get(body[:60], "story") == answer
        found[answer] += 1
    assert set(found) == {"function", "class", "method", "module", "story"}
    assert min(found.values()) >= 10


def test_summary_is_the_beginning_of_the_first_sentence(plain, corpus):
    texts = [d.text for d in corpus.docstrings]
    for _, body, answer in rows(plain, "summary"):
        assert any(t.startswith(answer) and body in t[len(answer) :] for t in texts)
        assert not re.search(r"[.?!] ", answer)


def test_next_and_order_and_together_follow_the_text(plain, corpus):
    whole = list(corpus.texts())

    def adjacent(first, second):
        return any(f"{first} {second}" in text for text in whole)

    answers = Counter()
    for _, body, answer in rows(plain, "next"):
        before, *options = sides(body)
        assert adjacent(before, options["ab".index(answer)])
        answers[answer] += 1
    for _, body, answer in rows(plain, "order"):
        _, first, second = sides(body)
        assert adjacent(*((first, second) if answer == "yes" else (second, first)))
        answers[f"order {answer}"] += 1
    for _, body, answer in rows(plain, "together"):
        _, first, second = sides(body)
        assert adjacent(first, second) == (answer == "yes")
        answers[f"together {answer}"] += 1
    assert len(answers) == 6 and min(answers.values()) >= 10


def test_same_book(plain, corpus):
    books = {}
    for excerpt in corpus.excerpts:
        books.setdefault(excerpt.book, []).append(excerpt.text)
    found = Counter()
    for _, body, answer in rows(plain, "same"):
        _, first, second = sides(body)
        of = [
            {b for b, texts in books.items() if any(p in t for t in texts)} for p in (first, second)
        ]
        assert all(len(numbers) == 1 for numbers in of)
        assert (of[0] == of[1]) == (answer == "yes")
        found[answer] += 1
    assert min(found.values()) >= 10


def test_scrambled_text_is_no_longer_in_the_corpus(plain, corpus):
    whole = list(corpus.texts())
    found = Counter()
    for _, body, answer in rows(plain, "scrambled"):
        assert any(body in text for text in whole) == (answer == "yes")
        found[answer] += 1
    assert min(found.values()) >= 10


def test_copy_first_and_last(plain):
    for _, body, answer in rows(plain, "copy"):
        assert body.startswith(answer) and answer
    for _, body, answer in rows(plain, "first"):
        assert plain_words(body)[0] == answer
    for _, body, answer in rows(plain, "last"):
        assert plain_words(body)[-1] == answer


def test_repeat_is_the_passage_from_the_argument_on(plain):
    lengths = []
    for (word,), body, answer in rows(plain, "repeat"):
        assert plain_words(answer)[0] == word and body.count(answer) == 1
        assert plain_words(body).count(word) == 1
        lengths.append(len(answer.split()))
    assert max(lengths) > 8 > min(lengths)


def test_look_up_says_what_the_table_says(plain):
    asked_of = Counter()
    for _, body, answer in rows(plain, "look_up"):
        table, asked = re.fullmatch(r"((?:for \S+ say \S+ )+)text: (.*)", body).groups()
        says = dict(re.findall(r"for (\S+) say (\S+) ", table))
        assert answer.split() == [w for key in asked.split() for w in (key, says[key])]
        asked_of[len(says), len(asked.split())] += 1
    assert len(asked_of) > 10


def test_mend_restores_the_text(plain, corpus):
    whole = list(corpus.texts())
    for _, body, answer in rows(plain, "mend"):
        assert any(answer in text for text in whole)
        given, mended = body.split(), answer.split()
        assert len(given) == len(mended) and any(a != b for a, b in zip(given, mended))
        assert any(a == b for a, b in zip(given, mended))


@pytest.mark.parametrize(("name", "offset"), [("after", 1), ("before", -1)])
def test_neighbour_of_the_argument(plain, name, offset):
    for (word,), body, answer in rows(plain, name):
        words = plain_words(body)
        assert words.count(word) == 1
        assert words[words.index(word) + offset] == answer


def test_contains_and_count(plain):
    found = Counter()
    for (word,), body, answer in rows(plain, "contains"):
        assert (word in plain_words(body)) == (answer == "yes")
        found[answer] += 1
    assert min(found.values()) >= 10
    counts = ("none", "one", "two", "three", "many")
    for (word,), body, answer in rows(plain, "count"):
        assert counts[min(plain_words(body).count(word), 4)] == answer
        found[answer] += 1
    assert len(found) == 7


def test_topic_and_pick_answer_with_a_keyword(plain):
    for _, body, answer in rows(plain, "topic"):
        assert answer in plain_words(body)
    hidden = 0
    for options, body, answer in rows(plain, "pick"):
        assert answer in options and len(set(options)) == 4
        words = plain_words(body)
        others = [word for word in options if word != answer]
        assert not set(others) & set(words)
        hidden += "<extra_id_0>" in body
        assert (answer in words) != ("<extra_id_0>" in body)
    assert 10 <= hidden <= 38


def test_odd_word_is_the_one_that_the_corpus_does_not_have_there(plain, corpus):
    whole = " ".join(corpus.texts())
    for _, body, answer in rows(plain, "odd"):
        assert answer in plain_words(body)
        at = re.search(rf"(?<![^\W\d_]){answer}(?![^\W\d_])", body).start()
        around = body[max(0, at - 25) : at + len(answer) + 25].strip()
        assert around not in whole


@pytest.mark.parametrize("name", ["gap", "choice", "mood"])
def test_the_answer_fills_the_gap(plain, corpus, name):
    whole = list(corpus.texts())
    sets = [set(words) for words in CHOICES]
    hidden = 0
    for options, body, answer in rows(plain, name, 4):
        if name == "choice":
            assert answer in options and any(set(options) <= words for words in sets)
        words = MOODS[("bad", "good").index(answer)] if name == "mood" else [answer]
        before, gap, after = body.partition("<extra_id_0>")
        hidden += bool(gap)
        if gap:
            after = after.strip()
            space = " " if after[:1].isalpha() else ""
            filled = [f"{before.strip()} {word}{space}{after}".strip() for word in words]
            assert any(candidate in text for candidate in filled for text in whole)
        else:
            assert name == "mood" and set(words) & set(plain_words(body))
    assert hidden == 64 if name != "mood" else 25 <= hidden <= 52


def test_book_and_author(plain, corpus):
    for name, field in (("book", "title"), ("author", "author")):
        for _, body, answer in rows(plain, name):
            assert {getattr(e, field) for e in corpus.excerpts if body in e.text} == {answer}


def test_renamed_labels_are_answered_with_the_new_names(passages):
    renaming = mixture(passages, wording_share=0.0, relabel_share=1.0)
    pattern = r"contains (\S+) : for yes say (\S+) for no say (\S+) text: (.*)"
    for step in range(3):
        batch = renaming.task_batch("contains", step)
        for inputs, targets in zip(batch["inputs"], batch["targets"]):
            word, yes, no, body = re.fullmatch(pattern, spell(renaming, inputs)).groups()
            assert yes != no
            assert spell(renaming, targets) == (yes if word in plain_words(body) else no)


def test_instructions_come_in_other_words(passages):
    def starts(share):
        mixed = mixture(passages, wording_share=share)
        batches = [mixed.task_batch("topic", step)["inputs"] for step in range(4)]
        texts = [spell(mixed, row) for batch in batches for row in batch]
        return Counter(next(w for w in INSTRUCTIONS["topic"] if t.startswith(w)) for t in texts)

    assert starts(0.0) == {"topic:": 64}
    varied = starts(0.5)
    assert 20 <= varied["topic:"] <= 44 and len(varied) == len(INSTRUCTIONS["topic"])


def test_docstring_share(passages, corpus):
    for share, texts in ((1.0, corpus.docstrings), (0.0, corpus.excerpts)):
        mixed = mixture(passages, docstring_share=share, wording_share=0.0)
        for _, body, _ in rows(mixed, "first", 1):
            assert any(body in t.text for t in texts)


def test_passages_start_with_sentences_and_end_with_words(passages, tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(50):
        start = passages.start(rng, 0.5)
        low, high = passages.document(start)
        assert start == low or tokenizer.piece(passages.tokens[start - 1])[-1] in ".?!"
        end = passages.cut(start, 30)
        assert start < end <= min(start + 30, high)
        assert end == high or tokenizer.piece(passages.tokens[end]).startswith("▁")


def test_unknown_task_is_refused_with_a_suggestion(passages):
    with pytest.raises(ValueError, match=r"'mixture.weights.copi'; .*\(did you mean 'copy'\?\)"):
        mixture(passages, weights={"copi": 1.0})


@pytest.mark.parametrize(("group", "name"), [("long", "copy"), ("short", "lm")])
def test_a_group_without_tasks_is_refused(passages, group, name):
    with pytest.raises(ValueError, match=f"no task with {group} targets that the corpus serves"):
        mixture(passages, weights={name: 1.0})


def test_corpus_without_a_passage_is_refused(tokenizer):
    with pytest.raises(ValueError, match="the corpus has no text of 12 tokens or more"):
        tokenize_corpus(Corpus((), (Excerpt("Too short.", None, None, 0),)), tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs_length": 32}, "mixture.inputs_length is 32, expected 64 or more"),
        ({"batch_size": 0}, "mixture.batch_size is 0, expected 1 or more"),
        ({"short_share": 1.5}, "mixture.short_share is 1.5, expected 0 to 1"),
        ({"weights": {"lm": -1.0}}, "mixture.weights.lm is -1.0, expected 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MixtureConfig(**options)


def test_corpus_is_tokenized_as_the_tokenizer_does(passages, corpus, tokenizer):
    texts = ["\u00a0 ´a  b\u0301c ﬁne … word", "", *corpus.texts()]
    made = tokenize_corpus(Corpus((), tuple(Excerpt(t, None, None, 0) for t in texts)), tokenizer)
    expected = tokenizer.encode_batch(texts)
    assert [made.ids(*span) for span in zip(made.document_starts, made.document_starts[1:])] == (
        expected
    )


def test_the_smallest_shapes_serve_every_task(passages):
    small = mixture(
        passages,
        inputs_length=64,
        long_targets_length=8,
        short_targets_length=4,
        relabel_share=1.0,
        weights=dict.fromkeys(TASKS, 1.0),
    )
    assert small.left_out == ()
    for name in small.tasks:
        batch = small.task_batch(name, 0)
        assert batch["inputs"].shape == (16, 64)
        assert ((batch["inputs"] == 1).sum(axis=1) == 1).all()


def test_assign_says_the_word_of_the_keywords_that_fit(plain, corpus):
    whole = list(corpus.texts())
    inside = Counter()
    for _, body, answer in rows(plain, "assign", 6):
        table, text = re.fullmatch(r"((?:for .+? say \S+ )+)text: (.*)", body).groups()
        groups = {said: set(k.split()) for k, said in re.findall(r"for (.+?) say (\S+) ", table)}
        assert 2 <= len(groups) <= 4 and answer in groups
        words = set(plain_words(text))
        assert not any(groups[said] & words for said in groups if said != answer)
        fits = groups[answer] <= words
        inside[fits] += 1
        # Where it is not in the passage, it is in the text behind it.
        behind = [t.partition(text)[2] for t in whole if text in t]
        assert fits or any(groups[answer] <= set(plain_words(rest)) for rest in behind)
    assert min(inside.values()) >= 20
