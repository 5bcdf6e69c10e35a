"""Prompt templates as data: YAML files with the words around history, item and answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fudlr.common.errors import ModelError, UsageError

SHIPPED = Path(__file__).resolve().parent / "prompts"
HISTORY, ITEM, TITLE = "{history}", "{item}", "{title}"
Text = Annotated[str, Field(min_length=1)]


class Template(BaseModel):
    """The words of a prompt.

    Attributes:
        chat: Whether prompt and system are turns of the tokenizer's chat template.
        system: The system's turn, for chat.
        prompt: With `{history}`, and `{item}` after it where the answer is yes or no.
        item: How an item of the history, or the one asked for, is written; with `{title}`.
        separator: Between items of the history.
        answer: The answer that is a title; with `{title}`.
        answer_yes, answer_no: The answers to whether an item will be liked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    chat: bool = False
    system: str | None = None
    prompt: Text
    item: Text = '"{title}"'
    separator: str = ", "
    answer: Text = '"{title}"'
    answer_yes: Text = "Yes"
    answer_no: Text = "No"

    def check(self, asks_for_item: bool) -> None:
        """Raise where a place for history, item or title is missing or too much.

        Raises:
            UsageError: With the field and what it should hold.
        """
        wanted = {HISTORY: 1, ITEM: int(asks_for_item)}
        count = {mark: self.prompt.count(mark) for mark in wanted}
        found = ", ".join(f"{mark} {count[mark]} times" for mark in wanted
                          if count[mark] != wanted[mark])  # fmt: skip
        if asks_for_item and not found and self.prompt.find(ITEM) < self.prompt.find(HISTORY):
            found = f"{ITEM} before {HISTORY}"
        more = f", and {ITEM} once after it" if asks_for_item else f", and no {ITEM}"
        found, remedy = found and f"its prompt has {found}", f"Write {HISTORY} once{more}"
        for name in ("item", "answer"):
            if not found and getattr(self, name).count(TITLE) != 1:
                found = f"its {name} is {getattr(self, name)!r}"
                remedy = f"Write {TITLE} in it once"
        if not found and asks_for_item and self.answer_yes == self.answer_no:
            found, remedy = "its answer_yes and answer_no are the same", "Tell them apart"
        if found:
            raise UsageError("a prompt template was to be used", found, remedy)

    def text(self, tokenizer: Any) -> str:
        """The whole prompt, its places for history and item still open.

        Raises:
            ModelError: Chat is asked for, and the tokenizer has no chat template, or loses a place.
        """
        if not self.chat:
            return self.prompt
        turns = [{"role": "user", "content": self.prompt}]
        if self.system:
            turns.insert(0, {"role": "system", "content": self.system})
        asked = "a prompt was to be written with the tokenizer's chat template"
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(asked, "it has none", "Use a template with `chat: false`")
        try:
            text = str(
                tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            )
        except Exception as error:  # Jinja's own, raised by the template: some know no system turn
            found = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                asked, f"it refuses ({found})", "Leave `system` out of the prompt template"
            ) from error
        if text.count(HISTORY) != 1 or text.count(ITEM) != self.prompt.count(ITEM):
            raise ModelError(asked, "it loses {history} or {item}", "Use one with `chat: false`")
        return text


def shipped() -> list[str]:
    """Names of the templates that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_template(name: str) -> Template:
    """The shipped template of that name, or the one in a YAML file.

    Raises:
        UsageError: There is none, or it is no template; the message names each field.
    """
    asked = f"the prompt template {name} was to be read"
    path = SHIPPED / f"{name}.yaml" if name in shipped() else Path(name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        found = "there is no such readable file"
        known = f"Name a YAML file, or one of {', '.join(shipped())}"
        raise UsageError(asked, found, known) from error
    except yaml.YAMLError as error:
        raise UsageError(asked, "it is not valid YAML", "Mend the file") from error
    try:
        return Template.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors()
        )
        fields = ", ".join(Template.model_fields)
        raise UsageError(asked, wrong, f"Its fields are {fields}") from error
