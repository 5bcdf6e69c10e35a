"""Configuration: defaults, the round trip through YAML, and the words in which it refuses."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from fudlr.common.errors import UsageError
from fudlr.config import (
    DebiasConfig,
    RunConfig,
    dump_config,
    field_names,
    load_config,
    merge,
    to_plain,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def _load(tmp_path: Path, text: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def _refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        _load(tmp_path, text)
    assert caught.value.exit_code == 2
    return caught.value.found


def test_empty_file_means_defaults(tmp_path: Path) -> None:
    assert _load(tmp_path, "") == RunConfig()


@settings(deadline=None, max_examples=30)
@given(
    budget=st.floats(1e-6, 1.0),
    damping=st.none() | st.floats(1e-8, 10.0),
    seed=st.integers(0, 2**40),
    objective=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    budget: float,
    damping: float | None,
    seed: int,
    objective: str,
) -> None:
    debias = DebiasConfig(budget=budget, damping=damping, objective=objective)
    config = merge(RunConfig(debias=debias), {"seed": seed})
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    dump_config(path, config)
    assert load_config(path) == config


def test_scientific_notation_without_a_dot_is_a_number(tmp_path: Path) -> None:
    # YAML 1.1 reads 5e-3 as a string.
    assert _load(tmp_path, "train: {learning_rate: 5e-3}").train.learning_rate == 0.005


def test_one_name_of_layers_needs_no_list(tmp_path: Path) -> None:
    assert _load(tmp_path, "lora: {targets: all-linear}").lora.targets == ("all-linear",)
    assert merge(RunConfig(), {"lora.targets": "all-linear"}).lora.targets == ("all-linear",)


def test_run_seed_reaches_the_training_unless_it_has_its_own(tmp_path: Path) -> None:
    config = _load(tmp_path, "seed: 7\ntrain: {seed: 3}\n")
    assert (config.seed, config.train.seed) == (7, 3)
    dump_config(tmp_path / "run.yaml", merge(RunConfig(), {"seed": 5}))
    again = merge(load_config(tmp_path / "run.yaml"), {"seed": 6})
    assert again.train.seed == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("debias: {budget: 1.5}", ["debias.budget is 1.5", "less than or equal to 1"]),
        ("debias: {lambda_acc: -1}", ["debias.lambda_acc is -1", "greater than or equal to 0"]),
        ("debias: {lambda_fair: .nan}", ["debias.lambda_fair is nan", "finite"]),
        ("data: {k: ten}", ["data.k is 'ten'", "integer"]),
        ("data: {source: ''}", ["data.source is ''"]),
        ("train: {epochs: yes}", ["train.epochs is True", "not be true or false"]),
        ("train: {through: it}", ["train.through is 'it'", "'peft'"]),
        ("model: {hidden: 66}", ["in model", "multiple of heads"]),
        ("lora: {targets: [q_proj, q_proj]}", ["lora.targets", "once"]),
        ("lora: {rank: 257}", ["lora.rank is 257", "256"]),
        ("record: {energy: }", ["record.energy is None"]),
        ("record: {dtype: float16}", ["record.dtype is 'float16'"]),
        ("debias: {bugdet: 0.1}", ["debias.bugdet is not a field", "debias.budget"]),
        ("lambda_fair: 1", ["lambda_fair is not a field", "debias.lambda_fair"]),
        ("debias: 3", ["debias is 3"]),
        ("[1, 2]", ["[1, 2]", "sections"]),
        ("data: {k: 1, k: 2}", ["k is given twice"]),
        ("data: {k: 1", ["not valid YAML"]),
        ("data: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
    ],
)
def test_refusals_name_the_field_the_value_and_what_is_allowed(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    found = _refusal(tmp_path, text)
    assert all(word in found for word in words), found


def test_all_wrong_fields_are_named_at_once(tmp_path: Path) -> None:
    found = _refusal(tmp_path, "debias: {budget: 2}\ndata: {k: 0}\n")
    assert "debias.budget" in found
    assert "data.k" in found


def test_what_is_no_text_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.yaml"):
        load_config(tmp_path / "run.yaml")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="folder"):
        load_config(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    with pytest.raises(UsageError, match="no regular file"):
        load_config(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        load_config(tmp_path / "binary")


def test_merge_sets_only_what_it_names() -> None:
    config = merge(RunConfig(), {"debias.budget": 0.05, "data.source": Path("elsewhere")})
    expected = to_plain(RunConfig())
    expected["debias"]["budget"] = 0.05
    expected["data"]["source"] = "elsewhere"
    assert to_plain(config) == expected


@pytest.mark.parametrize("name", ["debias.bugdet", "nowhere.k", "seed.k", "debias"])
def test_merge_refuses_unknown_names(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        merge(RunConfig(), {name: 1})


def test_field_names_are_those_that_merge_takes() -> None:
    plain = to_plain(merge(RunConfig(), {"train.seed": 1}))
    flat = {
        f"{key}.{inner}" if isinstance(value, dict) else key
        for key, value in plain.items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    assert set(field_names()) == flat


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lora: {targets: [&a [x, x], " + "".join(
            f"&{b} [{', '.join([f'*{a}'] * 9)}], " for a, b in itertools.pairwise("abcdefghij")
         ) + "x]}", "lora.targets.1 is"),
        ("".join(f"a{n}: 1\n" for n in range(500)), "495 more"),
        ("[" * 5000, "nested too deep"),
        ("? [a, b]\n: 1\n", "a key that is no text"),
        ("seed: 2020-99-99\n", "not valid YAML"),
        ("data: {k: 1" + "0" * 5000 + "}", "not valid YAML"),
    ],
)  # fmt: skip
def test_crafted_yaml_is_refused_in_few_words(tmp_path, text, words):
    """Aliases within aliases printed in full would be 9⁸ elements."""
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=words) as found:
        load_config(tmp_path / "c.yaml")
    assert len(str(found.value)) < 3000
