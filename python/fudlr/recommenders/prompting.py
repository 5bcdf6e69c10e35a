"""From a history to the tokens of a prompt, piece by piece.

    prompt = head + item₁ + (separator + item₂) + … + tail        answer = title + end

Each piece is tokenised on its own and once for the whole catalogue, so that a prompt is put
together without the tokenizer, and a title has the same tokens wherever it stands. A space at the
end of a piece moves to the start of the next, where tokenizers expect it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fudlr.common.device import moved
from fudlr.common.errors import DataError, ModelError, UsageError
from fudlr.config import RunConfig
from fudlr.data.candidates import candidates_of
from fudlr.data.interactions import Interactions, Samples
from fudlr.data.rows import RowSamples
from fudlr.recommenders.base import Batch, Outputs, Recommender
from fudlr.recommenders.templates import HISTORY, ITEM, TITLE, Template, load_template
from fudlr.recommenders.tree import TokenTree, check_attention, walk
from fudlr.recommenders.words import Tokens, Words
from fudlr_ext import label_loss


@dataclass(frozen=True)
class Prompt:
    """Tokens of one prompt, how many of the oldest titles were left out, and if that sufficed."""

    tokens: Tokens
    dropped: int
    cut: bool


class Pieces:
    """The tokens of a template's pieces for every item of a catalogue.

    Args:
        tokenizer: Of the model.
        template: The words.
        titles: [M], in the order of the items.
        ids: [M], the items' own names, to tell twins apart.
        asks_for_item: Whether the prompt asks for one item, after the history.
        coded: Whether titles are tokens of the model's own, of which all answers have as many, so
            that they need no end token.

    Raises:
        UsageError: The template lacks a place.
        ModelError: A piece has no tokens, or there is no end token.
        DataError: Items that not even their ids tell apart.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        titles: Sequence[str],
        ids: Sequence[str],
        asks_for_item: bool,
        *,
        coded: bool = False,
    ) -> None:
        template.check(asks_for_item)
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "prompts were to be written",
                "the tokenizer has no end token",
                "Set its eos_token, and save it beside the model again",
            )
        self.template, self.tokenizer, self.words = template, tokenizer, Words(tokenizer)
        self.end = int(tokenizer.eos_token_id)
        self.pad = int(self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        self._text = template.text(tokenizer)
        head, rest = self._text.split(HISTORY)
        middle, _, suffix = rest.partition(ITEM)
        head, lead = _spaced(head)
        self.head = ([] if template.chat else self._start()) + self.words.start(head)
        tail, item_lead = _spaced(middle) if asks_for_item else (middle, "")
        self.tail, self.suffix = self.words.after(tail), self.words.after(suffix)
        separator, between = _spaced(template.separator)
        joint = self.words.after(separator)
        self._spoken = partial(self.words.titles, split=not coded)
        self.titles = self._told_apart(list(titles), list(ids))

        def tokens(form: str, before: str = "") -> list[Tokens]:
            return self._spoken([before + form.replace(TITLE, t) for t in self.titles])

        self.first = tokens(template.item, lead)
        self.later = [joint + later for later in tokens(template.item, between)]
        self.asked = tokens(template.item, item_lead)
        self.closing = [] if coded else [self.end]
        self.answers = [[*answer, *self.closing] for answer in tokens(template.answer)]

    def _start(self) -> Tokens:
        """The token that the tokenizer puts before every text, where it does."""
        bos = self.tokenizer.bos_token_id
        found = self.tokenizer("a")["input_ids"]
        return [int(bos)] if bos is not None and found and found[0] == bos else []

    def misread(self, history: Sequence[int]) -> tuple[str, str] | None:
        """The words of a prompt and what its tokens say, where these differ."""
        written = [self.template.item.replace(TITLE, self.titles[item]) for item in history]
        text = self._text.split(ITEM)[0].replace(HISTORY, self.template.separator.join(written))
        start = [] if self.template.chat else self._start()
        tokens = self.prompt(history, 10**9).tokens[len(start) :]
        said = self.words.text(tokens)
        return (text, said) if said.strip() != text.strip() else None

    def _told_apart(self, titles: list[str], ids: list[str]) -> list[str]:
        """Titles, with the item's id where two have the same tokens: no answer could mean both."""

        def again(texts: list[str]) -> list[bool]:
            keys = [tuple(tokens) for tokens in self._spoken(texts)]
            count = Counter(keys)
            return [count[key] > 1 for key in keys]

        twin = again(titles)
        self.twins = sum(twin)
        trios = zip(titles, ids, twin, strict=True)
        told = [f"{title} [{name}]" if other else title for title, name, other in trios]
        if same := [title for title, other in zip(told, again(told), strict=True) if other]:
            raise DataError(
                "items were to be told apart by their titles",
                f"{len(same)} have the same tokens even with their ids ({', '.join(same[:3])})",
                "Use a tokenizer that knows the characters of these titles",
            )
        return told

    def answer(self, item: int) -> str:
        """The answer that means `item`, in words."""
        tokens = self.answers[item]
        return str(self.tokenizer.decode(tokens[: len(tokens) - len(self.closing)]))

    def prompt(self, history: Sequence[int], longest: int) -> Prompt:
        """The prompt that shows `history`; the oldest titles go where it is beyond `longest`."""
        room = longest - len(self.head) - len(self.tail)
        # An item is shown as the first one or as a later one; only one length is known to fit.
        sizes = [max(len(self.first[item]), len(self.later[item])) for item in reversed(history)]
        count = sum(used <= room for used in itertools.accumulate(sizes))
        shown = list(history[len(history) - count :])
        body = [*self.first[shown[0]]] if shown else []
        for item in shown[1:]:
            body += self.later[item]
        tokens = self.head + body + self.tail
        return Prompt(tokens[-longest:], len(history) - count, len(tokens) > longest)


def _spaced(text: str) -> tuple[str, str]:
    """`text` without a space at its end, and that space."""
    return (text[:-1], " ") if text.endswith(" ") else (text, "")


class Prompted(Recommender):
    """A recommender that writes the history as words; see the module's docstring.

    The template is that of `record`, or the one that the configuration names.

    Raises:
        UsageError: The longest prompt has more tokens than the model has positions.
        ModelError: The model's attention takes no mask of its own.
    """

    asks_for_item: ClassVar[bool] = False
    usual_template: ClassVar[str] = "bigrec"
    coded: ClassVar[bool] = False
    """Whether items are written in tokens of their own; see `Pieces`."""
    nodes: ClassVar[int] = 512
    """Of a tree that go through the model together."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        interactions: Interactions,
        config: RunConfig,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, tokenizer, interactions, config)
        self.config, self.seed = config.recommender, config.seed
        self.candidates, self.tokenizer = config.data.candidates, tokenizer
        if record is not None:
            template = Template.model_validate(record["template"])
        else:
            template = load_template(self.config.template or self.usual_template)
        written, ids = self.words(interactions, record), interactions.items["item_id"].to_list()
        self.pieces = pieces = Pieces(
            tokenizer, template, written, ids, self.asks_for_item, coded=self.coded
        )
        check_attention(model)
        answer = max(len(tokens) for tokens in (*pieces.answers, *pieces.asked))
        more, longest, limit = (
            answer + len(pieces.suffix),
            self.config.max_tokens,
            _positions(model),
        )
        if limit is not None and longest + more > limit:
            raise UsageError(
                f"prompts of up to {longest} tokens were asked for",
                f"with the longest title they take {longest + more}, and the model knows {limit} "
                "positions",
                f"Set recommender.max_tokens to {max(limit - more, 8)} or less",
            )

    def words(self, interactions: Interactions, record: Mapping[str, Any] | None) -> list[str]:
        """What stands for each item in prompts and answers, [M]."""
        return written_titles(interactions)

    def record(self) -> dict[str, Any]:
        """The template, so that a changed file changes no run."""
        return {"template": self.pieces.template.model_dump()}

    def prompts(self, samples: Samples) -> list[Prompt]:
        """The prompt of every sample."""
        histories = (samples.history(i)[-self.window :].tolist() for i in range(len(samples)))
        return [self.pieces.prompt(history, self.config.max_tokens) for history in histories]

    def _probe(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Logits of a tree below two prompts of unlike length, and of its sequences alone."""
        shown = list(range(min(self.window, self.n_items)))
        prompts = [self.pieces.prompt(h, self.config.max_tokens).tokens for h in (shown, shown[:1])]
        tails = [[*self.pieces.asked[j], *self.pieces.suffix] for j in range(self.n_items)]
        if not self.asks_for_item:
            tails = [answer[:-1] for answer in self.pieces.answers]
        order = sorted(range(len(tails)), key=lambda j: tuple(tails[j]))
        # As many as go through the model together, and some that branch.
        sizes = itertools.accumulate(len(tails[j]) for j in order)
        used = [tails[j] for i, (j, size) in enumerate(zip(order, sizes, strict=True))
                if i < 3 or size <= self.nodes]  # fmt: skip
        tree = TokenTree(used)
        rows = moved(self.padded(prompts), self.device)
        passes = walk(self.model, rows, tree, self.nodes)
        found = torch.cat([part.values for part in passes], 1)
        for which in sorted({0, len(used) // 2, len(used) - 1}):
            for row, prompt in enumerate(prompts):
                alone = self._alone([*prompt, *used[which]])
                yield "a title below a shared prompt", found[row, tree.ends[which] + 1], alone

    def own_rows(self, samples: Samples) -> list[tuple[Tokens, Tokens]] | None:
        """Prompt and answer of rows of texts, as tokens; None for other samples.

        A text has the tokens that the tokenizer gives it as a whole, and its end token behind it
        where it is no chat.
        """
        if not isinstance(samples, RowSamples):
            return None
        tokenizer, found = self.pieces.tokenizer, []
        for row in samples.rows:
            given = {"add_special_tokens": not row["chat"]}
            start = tokenizer(row["prompt"], **given)["input_ids"]
            whole = tokenizer(row["prompt"] + row["answer"], **given)["input_ids"]
            same = zip(start, whole, strict=False)
            cut = next((i for i, (a, b) in enumerate(same) if a != b), len(start))
            cut = min(cut, len(whole) - 1)
            answer = whole[cut:]
            if not row["chat"] and answer[-1] != self.pieces.end:
                answer = [*answer, self.pieces.end]
            room = max(1, self.config.max_tokens - len(answer))
            found.append((whole[:cut][-room:], answer))
        return found

    def labelled(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> Batch:
        """Prompts with their answers, and labels on the answers alone."""
        batch = self.padded([prompt + answer for prompt, answer in pairs])
        labels = torch.full_like(batch["input_ids"], -100)
        for i, (_, answer) in enumerate(pairs):
            labels[i, -len(answer) :] = batch["input_ids"][i, -len(answer) :]
        return {**batch, "labels": labels}

    def lengths(self, samples: Samples) -> Tensor:
        """Tokens of every prompt with its answer, [n]."""
        if (own := self.own_rows(samples)) is not None:
            return torch.tensor([len(prompt) + len(answer) for prompt, answer in own])
        prompts, targets = self.prompts(samples), samples.target.tolist()
        pairs = zip(prompts, targets, strict=True)
        return torch.tensor([len(p.tokens) + len(self.pieces.answers[t]) for p, t in pairs])

    def terms(self, samples: Samples) -> Tensor:
        """Tokens of the target's title with its end, [n]."""
        if (own := self.own_rows(samples)) is not None:
            return torch.tensor([float(len(answer)) for _, answer in own])
        answers = [self.pieces.answers[target] for target in samples.target.tolist()]
        return torch.tensor([float(len(answer)) for answer in answers])

    def notes(self, samples: Samples) -> list[str]:
        """How many prompts were too long, and what was left out of them."""
        self.probe()
        prompts = self.prompts(samples)
        short = [prompt for prompt in prompts if prompt.dropped]
        cut = sum(prompt.cut for prompt in prompts)
        said = []
        if self.pieces.twins:
            said.append(
                f"{self.pieces.twins} items have titles of the same tokens as another's; their ids "
                "are written behind them"
            )
        if misread := self.pieces.misread(range(min(2, self.n_items))):
            differ = (i for i, (a, b) in enumerate(zip(*misread, strict=False)) if a != b)
            place = next(differ, min(map(len, misread)))
            written, read = (text[place : place + 40] for text in misread)
            found = f"{written!r} is read as {read!r}"
            said.append(f"the tokenizer cannot write the prompt as it stands: {found}")
        if short:
            left_out = sum(prompt.dropped for prompt in short)
            said.append(
                f"{len(short)} of {len(prompts)} prompts are longer than recommender.max_tokens "
                f"({self.config.max_tokens}); {left_out} titles were left out of them, the oldest "
                "first"
            )
        if cut:
            said.append(
                f"{cut} of {len(prompts)} prompts are too long even without a history; they were "
                "cut from the left, which takes the start of the instruction"
            )
        return said

    def for_scores(self, samples: Samples, prompts: Sequence[Prompt]) -> Batch:
        """What a batch for scoring has beside: `prompt`, and `candidates` where there are some."""
        batch: Batch = {"prompt": self.padded([prompt.tokens for prompt in prompts])}
        if self.candidates is not None:
            chosen = candidates_of(samples, self.candidates)
            batch["candidates"] = torch.from_numpy(chosen)
        return batch

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean −log p over the title's tokens and its end, [n]."""
        return label_loss(outputs if isinstance(outputs, Tensor) else outputs[0], batch)

    def scored(self, outputs: Outputs) -> Tensor:
        """The scores' part of outputs of a batch that was collated for scoring.

        Raises:
            UsageError: It was not.
        """
        if isinstance(outputs, Tensor):
            raise UsageError(
                "scores over the catalogue were asked for",
                "the batch was made for the loss alone",
                "Collate it with scoring=True",
            )
        return outputs[1]

    def answered(self, samples: Samples, prompts: Sequence[Prompt]) -> Batch:
        """Prompts with the target's title, and labels on the title and its end alone."""
        answers = [self.pieces.answers[target] for target in samples.target.tolist()]
        return self.labelled([(p.tokens, a) for p, a in zip(prompts, answers, strict=True)])

    def padded(self, rows: Sequence[Tokens]) -> Batch:
        """`input_ids`, `attention_mask` and `position_ids` [n, t], padded on the left."""
        width = max((len(row) for row in rows), default=1)
        ids = torch.tensor([[self.pieces.pad] * (width - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        ids, mask = ids.reshape(-1, width), mask.reshape(-1, width)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        }


def written_titles(interactions: Interactions) -> list[str]:
    """The items' titles, their ids where they have none, [M]."""
    items = interactions.items
    return items["title" if "title" in items.columns else "item_id"].to_list()


def _positions(model: nn.Module) -> int | None:
    """Positions that the model can attend to from one place, where it has a limit."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limits = [getattr(config, "max_position_embeddings", None)]
    if getattr(config, "use_sliding_window", True):
        # A tree's own attention mask cannot say where a window ends.
        limits.append(getattr(config, "sliding_window", None))
    known = [int(limit) for limit in limits if limit]
    return min(known) if known else None


def scattered(values: Tensor, columns: Tensor, n_items: int) -> Tensor:
    """`values` [n, c] at `columns` [n, c] of rows [n, M], the rows' smallest elsewhere.

    Columns that stand twice in a row stand side by side, with equal values; one has the gradient.
    """
    again = columns[:, 1:] == columns[:, :-1]
    again = torch.cat([torch.zeros_like(columns[:, :1], dtype=torch.bool), again], 1)
    values = torch.where(again, values.detach(), values)
    floor = values.detach().amin(1, keepdim=True).expand(-1, n_items)
    return floor.scatter(1, columns, values)
