"""Templates: what is shown, chat, truncation from the left, and files that are none."""

import numpy as np
import pytest
import yaml
from fudlr.common.errors import ModelError, UsageError
from fudlr.recommenders.prompting import Pieces
from fudlr.recommenders.templates import Template, load_template, shipped
from fudlr.train.pretrain import train_tokenizer
from prompt_models import recommender, split

TITLES = ["Red Film", "Blue Film", "Green Film"]
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def words():
    return train_tokenizer(load_template("bigrec"), TITLES, 500)


def pieces(words, template, asks=False):
    return Pieces(words, template, TITLES, ["a", "b", "c"], asks)


def test_chat_template_is_used_and_its_start_token_not_doubled(words):
    words.chat_template = CHAT
    template = load_template("chat")
    said = words.decode(pieces(words, template).prompt([0], 500).tokens)
    assert said.startswith("<|system|>You recommend films.")
    assert said.endswith("<|assistant|>")
    assert '"Red Film"' in said
    words.chat_template = None
    with pytest.raises(ModelError, match="has none"):
        pieces(words, template)


def test_chat_template_that_refuses_a_system_turn_is_said(words):
    words.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
    )
    with pytest.raises(ModelError, match="no system"):
        pieces(words, load_template("chat"))
    words.chat_template = None


def test_the_oldest_titles_go_first_and_are_counted(words):
    made = pieces(words, load_template("bigrec"))
    whole = made.prompt([0, 1, 2], 500)
    assert (whole.dropped, whole.cut) == (0, False)
    short = made.prompt([0, 1, 2], len(whole.tokens) - 1)
    assert (short.dropped, short.cut) == (1, False)
    assert short.tokens == made.prompt([1, 2], 500).tokens
    bare = made.prompt([0, 1, 2], 10)
    assert (bare.dropped, bare.cut) == (3, True)
    assert bare.tokens == made.prompt([], 500).tokens[-10:]


def test_notes_count_what_was_left_out():
    data = split()
    made = recommender("titles", data)
    samples = data.train.take(np.arange(10))
    assert made.notes(samples) == []
    longest = max(len(p.tokens) for p in made.prompts(samples))
    short = recommender("titles", data, **{"recommender.max_tokens": longest - 1})
    dropped = [p.dropped for p in short.prompts(samples)]
    (note,) = short.notes(samples)
    assert note.startswith(f"{sum(d > 0 for d in dropped)} of 10 prompts")
    assert f"{sum(dropped)} titles" in note


@pytest.mark.parametrize(
    ("fields", "asks", "said"),
    [
        ({"prompt": "no place"}, False, r"\{history\} 0 times"),
        ({"prompt": "{history} {history}"}, False, r"\{history\} 2 times"),
        ({"prompt": "{history} {item}"}, False, r"\{item\} 1 times"),
        ({"prompt": "{history}"}, True, r"\{item\} 0 times"),
        ({"prompt": "{item} {history}"}, True, "before"),
        ({"prompt": "{history}", "answer": "x"}, False, "answer"),
        ({"prompt": "{history}{item}", "answer_no": "Yes"}, True, "same"),
    ],
)
def test_templates_that_cannot_be_used(fields, asks, said):
    with pytest.raises(UsageError, match=said):
        Template(**fields).check(asks)


@pytest.mark.parametrize(
    "text", ["[1, 2]", "prompt: 3", "promt: '{history}'", "prompt: [", "", "prompt: ''", "\x00"]
)
def test_files_that_are_no_template(text, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"own\.yaml"):
        load_template(str(tmp_path / "own.yaml"))


def test_shipped_and_own_templates(tmp_path):
    assert {"bigrec", "tallrec", "chat"} <= set(shipped())
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"prompt": "{history}"}))
    assert load_template(str(tmp_path / "own.yaml")).prompt == "{history}"
    with pytest.raises(UsageError, match="bigrec, chat, minionerec, tallrec"):
        load_template("no-such")
