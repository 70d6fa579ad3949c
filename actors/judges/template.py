"""Template files: what a language-model judge is asked, in YAML with Jinja, checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import jinja2
import yaml
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, PositiveInt, ValidationError, model_validator

from actors.judges.errors import JudgeError
from configs.section import Section

Mode = Literal["pairwise", "pointwise"]
SHIPPED = Path(__file__).parent / "templates"
_NEEDED = {"pairwise": {"conversation", "first", "second"}, "pointwise": {"conversation", "response"}}
_OPTIONAL = {"pairwise": {"guidelines", "reference"}, "pointwise": {"guidelines", "reference", "lowest", "highest"}}
_jinja = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


class Verdicts(Section):
    """What a pairwise judge may answer."""

    first: str = Field("A", pattern=r"^\S+$")
    """What is shown first is better."""
    second: str = Field("B", pattern=r"^\S+$")
    """What is shown second is better."""
    tie: str = Field("C", pattern=r"^\S*$")
    """They are equally good: half a vote for both; empty: that may not be answered."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({self.first, self.second, self.tie}) < 3:
            raise ValueError(f"the verdicts {self.first!r}, {self.second!r} and {self.tie!r} must differ")
        return self


class Rationale(Section):
    """The judge says why before it answers."""

    max_tokens: PositiveInt = 128
    """Longest rationale; it is cut off there and the verdict asked for."""
    ends_with: str = Field("Verdict:", min_length=1)
    """What the template tells the judge to write between rationale and verdict."""


class Template(Section):
    """A question. ``system`` and ``user`` are Jinja templates of the two messages that a judge gets."""

    system: str = ""
    """System message; empty: none (some chat templates know no such role)."""
    user: str
    """User message."""
    verdicts: Verdicts | None = None
    """Answers of a pairwise judge; a pointwise judge answers with ``judge.grades``."""
    rationale: Rationale | None = None
    """Ask for a rationale first; none: the answer is the verdict alone."""


def load_template(file: str, mode: Mode) -> Template:
    """Read ``file`` (empty: the one that ships for ``mode``). Raises JudgeError naming the file and what is wrong."""
    path = Path(file) if file else SHIPPED / f"{mode}.yaml"
    try:
        raw = yaml.safe_load(read_text(path, "judge.template"))
        template = Template.model_validate(raw)
    except (yaml.YAMLError, ValidationError) as error:
        raise JudgeError(f"judge.template {path}: {error}") from None
    if mode == "pointwise" and template.verdicts is not None:
        raise JudgeError(f"judge.template {path}: verdicts are for judge.mode=pairwise; a grade is answered here")
    if mode == "pairwise" and template.verdicts is None:
        template = template.model_copy(update={"verdicts": Verdicts()})
    _refuse_wrong_fields(template, mode, path)
    return template


def load_guidelines(file: str) -> str:
    """The text of ``file`` (empty: the guidelines that ship). Raises JudgeError."""
    text = read_text(Path(file) if file else SHIPPED / "guidelines.txt", "judge.guidelines").strip()
    if not text:
        raise JudgeError(f"judge.guidelines {file} is empty: say in it what makes an answer better")
    return text


def read_text(path: Path, field: str) -> str:
    """The text of a file that ``field`` names. Raises JudgeError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise JudgeError(f"{field} {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise JudgeError(f"{field} {path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    if not text.replace("\n", "").replace("\t", "").replace("\r", "").isprintable():
        raise JudgeError(f"{field} {path} holds control characters: remove them")
    return text


def render(source: str, fields: dict[str, str | int]) -> str:
    return _jinja.from_string(source).render(fields)


def _refuse_wrong_fields(template: Template, mode: Mode, path: Path) -> None:
    used: set[str] = set()
    for name, source in (("system", template.system), ("user", template.user)):
        try:
            used |= meta.find_undeclared_variables(_jinja.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise JudgeError(f"judge.template {path}: {name}, line {error.lineno}: {error.message}") from None
    known = _NEEDED[mode] | _OPTIONAL[mode]
    if missing := _NEEDED[mode] - used:
        fields = ", ".join("{{ " + name + " }}" for name in sorted(missing))
        raise JudgeError(f"judge.template {path}: lacks {fields}; without it a judge in mode {mode} cannot judge")
    if unknown := used - known:
        raise JudgeError(
            f"judge.template {path}: unknown field {', '.join(sorted(unknown))}; "
            f"mode {mode} has {', '.join(sorted(known))}"
        )
