"""A tokenizer asked for pieces of a text: each as it stands after other text, not at a start.

Tokenizers of the SentencePiece family (Llama 1 and 2, Mistral 7B v0.1, TinyLlama) put a space
before whatever they are given, so that pieces tokenised apart gain spaces, and "Yes" after a
prompt's last line would become the token of " Yes". Such a piece is tokenised behind an anchor,
whose tokens are then taken off. Byte-level tokenizers put nothing before a text and need no anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fudlr.common.errors import DataError, ModelError
from fudlr.data.text import listed

Tokens = list[int]

# Texts that seldom grow together with what follows; the first is a line's end, after which no
# tokenizer expects a space.
ANCHORS = ("\n", '"', ".", "1", "a", "。")


class Words:
    """The tokenizer of a model; see the module's docstring.

    Args:
        tokenizer: A Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        plain = self.start("a") + self.start("b")
        self._anchored = self.text(plain) != "ab"

    def start(self, text: str) -> Tokens:
        """Tokens of a text with which a prompt starts, without special ones."""
        return self._each([text], False)[0] if text else []

    def after(self, text: str) -> Tokens:
        """Tokens of a piece of a template behind other text; names of special tokens are those."""
        return self._behind([text], False)[0] if text else []

    def titles(self, texts: Sequence[str], split: bool = True) -> list[Tokens]:
        """Tokens of texts of the data behind other text: nothing in them is a special token, unless
        `split` is false and they hold a name of one.

        Raises:
            ModelError: A text has no token.
            DataError: A text is a special token, and the tokenizer cannot write it otherwise.
        """
        found = self._behind(texts, split)
        if empty := [text for text, tokens in zip(texts, found, strict=True) if not tokens]:
            raise ModelError(
                "titles were to be written as tokens",
                f"{len(empty)} have no token of the tokenizer ({listed(empty, 3)})",
                "Give every item a title that the model's tokenizer knows",
            )
        special = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        if not split:
            return found
        wrong = [t for t, tokens in zip(texts, found, strict=True) if special & set(tokens)]
        if wrong:
            raise DataError(
                "titles were to be written as tokens",
                f"{len(wrong)} hold a special token of the model ({listed(wrong, 3)}), which would "
                "end or begin a prompt in the middle of it",
                "Rename these items",
            )
        return found

    def text(self, tokens: Sequence[int]) -> str:
        """What the tokens say."""
        return str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    def _behind(self, texts: Sequence[str], split: bool) -> list[Tokens]:
        found: dict[str, Tokens] = {}
        for anchor in (*(ANCHORS if self._anchored else ()), ""):
            left = [text for text in dict.fromkeys(texts) if text not in found]
            head, whole = self.start(anchor), self._each([anchor + text for text in left], split)
            for text, tokens in zip(left, whole, strict=True):
                if tokens[: len(head)] == head:
                    found[text] = tokens[len(head) :]
        return [found[text] for text in texts]

    def _each(self, texts: list[str], split: bool) -> list[Tokens]:
        if not texts:
            return []
        given = {"split_special_tokens": True} if split else {}
        found = self.tokenizer(texts, add_special_tokens=False, **given)["input_ids"]
        return [list(tokens) for tokens in found]
