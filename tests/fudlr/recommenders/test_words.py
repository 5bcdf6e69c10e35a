"""Prompts as text: the tokens say what the template says, whatever the tokenizer."""

import pytest
import torch
from fudlr.common.errors import DataError
from fudlr.recommenders import RECOMMENDERS
from fudlr.recommenders.prompting import Pieces
from fudlr.recommenders.templates import load_template
from fudlr.recommenders.words import Words
from fudlr.train.pretrain import train_tokenizer
from prompt_models import adapted, base, config, split
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TITLES = ["Toy Story (1995)", "Heat", "Léon", "</s>", "a  b", "Yes"]
TEXTS = [load_template(name).prompt for name in ("bigrec", "tallrec")] * 3 + [
    *TITLES[:3],
    "a  b",
    "< / s >",
]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def sentencepiece(bos="<s>"):
    """As Llama 2's and Mistral's files have it: a space put before, bytes for what is not known."""
    plain = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    plain.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    plain.decoder = decoders.Sequence([*ends, decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>", *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    plain.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token=bos, eos_token="</s>"
    )


def metaspace(scheme):
    plain = Tokenizer(models.BPE(unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    plain.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    plain.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="</s>")


def byte_level():
    return train_tokenizer(load_template("bigrec"), TITLES[:3], 500)


def byte_level_with_space():
    words = byte_level()
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return words


TOKENIZERS = {
    "sentencepiece": sentencepiece,
    "always": lambda: metaspace("always"),
    "first": lambda: metaspace("first"),
    "never": lambda: metaspace("never"),
    "byte level": byte_level,
    "byte level with space": byte_level_with_space,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


@pytest.mark.parametrize("name", ["bigrec", "tallrec"])
def test_a_prompt_says_what_the_template_says(tokenizer, name):
    template, asks = load_template(name), name == "tallrec"
    made = Pieces(tokenizer, template, TITLES, list("abcdef"), asks)
    tokens = made.prompt([0, 3, 1], 10**6).tokens + (made.asked[2] + made.suffix if asks else [])
    expected = template.prompt.replace("{history}", '"Toy Story (1995)", "</s>", "Heat"')
    said = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    assert said.removeprefix("<s>").strip(" ") == expected.replace("{item}", '"Léon"')
    assert made.misread([0, 1, 3]) is None
    if not asks:
        answer = tokenizer.decode(tokens + made.answers[1], clean_up_tokenization_spaces=False)
        assert answer == said + '"Heat"' + tokenizer.eos_token


def test_answers_are_the_tokens_that_follow_the_text(tokenizer):
    """What code in TALLRec's manner reads: the text with its answer, less the text."""
    suffix = load_template("tallrec").prompt.partition("{item}")[2]
    assert suffix.endswith("\n")
    before = tokenizer("a" + suffix, add_special_tokens=False)["input_ids"]
    for answer in ("Yes", "No"):
        after = tokenizer("a" + suffix + answer, add_special_tokens=False)["input_ids"]
        assert after[: len(before)] == before
        assert Words(tokenizer).after(answer) == after[len(before) :]


def test_yes_and_no_are_read_where_the_text_has_them():
    data, tokenizer = split(), sentencepiece()
    made = RECOMMENDERS["yes_no"](
        adapted(base(vocabulary=900)), tokenizer, data.interactions, config("yes_no")
    )
    names = tokenizer.convert_ids_to_tokens(made.answers.tolist())
    assert not any(name.startswith("▁") for name in names)


def test_a_title_that_is_a_special_token_does_not_become_it():
    tokenizer = byte_level()
    made = Pieces(tokenizer, load_template("bigrec"), ["<eos>", "Heat"], ["a", "b"], False)
    assert made.answers[0].count(tokenizer.eos_token_id) == 1
    assert tokenizer.eos_token_id not in made.first[0]
    assert tokenizer.decode(made.answers[0][:-1]) == '"<eos>"'


def test_a_title_that_can_be_no_other_token_is_refused():
    plain = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "Heat": 2}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", eos_token="</s>", bos_token="Heat"
    )
    with pytest.raises(DataError, match="1 hold a special token"):
        Words(tokenizer).titles(["</s>", "other"])


def test_a_tokenizer_that_changes_the_text_is_said():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    data = split()
    made = RECOMMENDERS["titles"](adapted(base()), tokenizer, data.interactions,
                                         config("titles"))  # fmt: skip
    (note,) = made.notes(data.train)
    assert "cannot write the prompt" in note
    assert torch.is_tensor(made.evaluate(data.valid)[0])
