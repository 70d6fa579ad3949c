"""Write docs/configuration.md from the schema: ``python -m scripts.config_docs``; a test keeps it current."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs.loading import defines_experiment
from configs.objectives import BradleyTerry
from configs.runs import OfflineConfig, RewardModelConfig, RunConfig, SftConfig, TrainingConfig
from pipelines.plan.cluster import GPUS, Cluster

FILE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = """# Configuration

A run is one YAML file; any field is overridden on the command line as `section.key=value`, the value being YAML
(`resources.sampler.gpus=1`, `"judge={kind: rule, rule: 'my_rules:politeness'}"`). The schema is strict: an unknown key,
a wrong type or fields that contradict each other are refused before anything starts, with the field, the values and
the fix. Paths may start with `~` or use `$VARIABLES`; relative input paths are resolved against the YAML file's folder.

`rondo doctor CONFIG` says whether this machine fits a configuration. A resumed run must have the configuration that it
began with, except for the fields marked ↻: they say where and with how much it runs, not what it computes.
`rondo rejudge` takes `judge`, `resources`, `deadlines` and `recovery`.

This page is made from `configs/` (`python -m scripts.config_docs`).
"""
CLUSTER = f"""What `rondo plan --cluster FILE` reads ([scaling.md](scaling.md)): a YAML file of its own, of which only
`pools` has to be there. `gpu` names one of {", ".join(f"`{name}`" for name in GPUS)}."""
KINDS: dict[str, type[TrainingConfig]] = {
    "rondo run": RunConfig,
    "rondo offline": OfflineConfig,
    "rondo sft": SftConfig,
    "rondo reward-model": RewardModelConfig,
}
ORDER = (
    "run", "model", "prompts", "sampling", "opponents", "judge", "pairing", "data", "sft", "objective", "reference",
    "optimizer", "batching", "evaluation", "resources", "weights", "checkpoint", "deadlines", "recovery", "tracking",
)  # fmt: skip
TAGS = ("kind", "player", "name")
"""Keys that say which member of a union is meant."""
COLUMNS = ["| field | values | default | meaning |", "|---|---|---|---|"]


def models(annotation: Any) -> list[type[BaseModel]]:
    """The sections inside a field's type: of unions and tuples, too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models(inner)]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def tag(model: type[BaseModel]) -> tuple[str, str] | None:
    """``("kind", "rule")``: how YAML names this member of a union."""
    for key in TAGS:
        words = get_args(model.model_fields[key].annotation) if key in model.model_fields else ()
        if len(words) == 1 and isinstance(words[0], str):
            return key, words[0]
    return None


def heading(section: str, model: type[BaseModel]) -> str:
    found = tag(model)
    return f"{section}: {{{found[0]}: {found[1]}}}" if found else section


def cell(text: str) -> str:
    """Text that stands in one cell of a table."""
    return re.sub(r"(?<!\\)\|", r"\|", " ".join(text.split())).replace("``", "`")


def values(schema: dict[str, Any]) -> str:
    """What a field may hold, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(values(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        words = schema.get("enum", [schema.get("const")])
        return " \\| ".join(f"`{str(w).lower() if isinstance(w, bool) else w}`" for w in words)
    match schema.get("type"):
        case "null":
            return "none"
        case "array" if "prefixItems" in schema:
            return f"[{', '.join(values(item) for item in schema['prefixItems'])}]"
        case "array":
            least = f", {schema['minItems']} or more" if "minItems" in schema else ""
            kind = values(schema["items"])
            return f"list of {kind}{'' if '`' in kind else 's'}{least}"
        case "object":
            return f"mapping of names to {values(schema['additionalProperties'])}s"
        case "string":
            return f"text like `{cell(schema['pattern'])}`" if "pattern" in schema else "text"
        case "boolean":
            return "`true` \\| `false`"
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return " ".join([schema["type"], ", ".join(bounds)]).strip()


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (tuple, list)):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if value not in ("", {}) else "empty"


def changes(field: FieldInfo) -> str:
    """Where a section's defaults differ from those of its own table: ``lr=2e-05``."""
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    if not isinstance(value, BaseModel):
        return ""
    return ", ".join(f"`{k}={v}`" for k, v in value.model_dump(exclude_defaults=True).items() if k not in TAGS)


def only(key: str) -> str:
    """Who alone takes a field of a section that others have, too."""
    section, _, name = key.partition(".")
    having = {
        c: models(kind.model_fields[section].annotation) for c, kind in KINDS.items() if section in kind.model_fields
    }
    taking = [c for c, found in having.items() if any(name in m.model_fields for m in found)]
    return f" (Only `{'`, `'.join(taking)}`.)" if taking and len(taking) < len(having) else ""


class Page:
    """Tables of sections, each once: what the first one says of a section holds wherever it is used."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self.known: dict[type[BaseModel], str] = {}  # heading under which a section stands
        self.unions: dict[str, list[type[BaseModel]]] = {}  # sections that are one of several: judge, opponents

    def table(self, path: str, title: str, model: type[BaseModel], intro: str = "", level: int = 2) -> None:
        """A section's table, then those of the sections in it. ``path``: where it stands in the YAML."""
        self.known[model] = title
        about = intro or cell(vars(model).get("__doc__") or "")
        self.add("#" * level + " " + title, "", *([about, ""] if about else []), *COLUMNS)
        properties = model.model_json_schema()["properties"]
        shared = Counter(m for f in model.model_fields.values() for m in models(f.annotation))
        inner: list[tuple[str, str, type[BaseModel]]] = []
        for name, field in model.model_fields.items():
            if tag(model) == (name, *get_args(field.annotation)):
                continue  # the heading says it
            if not field.description:
                raise ValueError(f"{model.__module__}.{model.__name__}.{name} has no description")
            key = f"{path}.{name}"
            for child in models(field.annotation):
                if child not in self.known and child not in TOP:
                    self.known[child] = f"{path}: {child.__name__}" if shared[child] > 1 else heading(key, child)
                    inner.append((key, self.known[child], child))
            self.add(self._row(key, name, field, properties[name]))
        self.add("")
        for key, sub, child in inner:
            self.table(key, sub, child, level=level + 1)

    def _row(self, key: str, name: str, field: FieldInfo, schema: dict[str, Any]) -> str:
        found = models(field.annotation)
        shown = changes(field) if found else default(field)
        if found and field.is_required():
            shown = "**required**"
        elif found and field.get_default(call_default_factory=True) is None:
            shown = "none"
        plain = [values(o) for o in schema.get("anyOf", []) if o.get("type", "null") != "null"]
        allowed = " or ".join([*plain, self._links(found)]) if found else values(schema)
        mark = "" if defines_experiment(key) else " ↻"
        return f"| `{name}`{mark} | {allowed} | {shown} | {cell(field.description or '')}{only(key)} |"

    def _links(self, found: list[type[BaseModel]]) -> str:
        for union, members in self.unions.items():
            if set(found) < set(members):
                others = [(tag(m) or ("", m.__name__))[1] for m in members if m not in found]
                return f"any [{union}](#{union}) but {', '.join(others)}"
            if set(found) == set(members):
                return f"any [{union}](#{union})"
        titles = dict.fromkeys(TOP.get(m) or self.known[m] for m in found)
        return " or ".join(f"[{t}](#{slug(t)})" for t in titles)

    def add(self, *lines: str) -> None:
        self._lines += lines

    def __str__(self) -> str:
        return "\n".join(self._lines)


def top_sections() -> Iterator[tuple[str, FieldInfo]]:
    """Every section of any kind of run, once, in the order of the page."""
    found = {name: field for kind in reversed(KINDS.values()) for name, field in kind.model_fields.items()}
    if set(found) != set(ORDER):
        raise ValueError(f"ORDER and the schema differ in {set(found) ^ set(ORDER)}")
    yield from ((name, found[name]) for name in ORDER)


TOP = {found[0]: name for name, field in top_sections() if len(found := models(field.annotation)) == 1}
"""Sections that have a heading of their own, wherever else they are used."""


def overview() -> list[str]:
    lines = ["## Sections", "", f"| section | {' | '.join(f'`{k}`' for k in KINDS)} | what it holds |"]
    lines.append("|---|" + "---|" * (len(KINDS) + 1))
    for name, field in top_sections():
        fields = [kind.model_fields.get(name) for kind in KINDS.values()]
        marks = ["" if f is None else "required" if f.is_required() else "yes" for f in fields]
        lines.append(f"| [`{name}`](#{name}) | {' | '.join(marks)} | {cell(field.description or '')} |")
    return [*lines, ""]


def objective(page: Page) -> None:
    names = [kind.model_fields["objective"].get_default(call_default_factory=True).name for kind in KINDS.values()]
    page.add(
        "## objective", "", "What is minimised, by `name`: [objectives.md](objectives.md) has every one with its "
        "equation and parameters.", "", "By default: "
        + ", ".join(f"`{name}` for `{command}`" for name, command in zip(names, KINDS, strict=True))
        + ". `name: mix` adds several: `terms: [{name: dpo, beta: 0.1}, {name: sft, weight: 0.2}]`.", "",
    )  # fmt: skip
    page.add("`bradley_terry`, what `rondo reward-model` learns by, takes", "", *COLUMNS)
    properties = BradleyTerry.model_json_schema()["properties"]
    for name, field in BradleyTerry.model_fields.items():
        if name != "name":
            page.add(f"| `{name}` | {values(properties[name])} | {default(field)} | {cell(field.description or '')} |")
    page.add("", "(`weight` is every objective's.)", "")


def render() -> str:
    page = Page()
    page.add(*overview())
    found = {name: models(field.annotation) for name, field in top_sections()}
    page.unions = {name: found[name] for name in ("judge", "opponents")}
    for name, field in top_sections():
        about = cell(field.description or "")
        if name == "objective":
            objective(page)
        elif name in page.unions:
            page.known |= {model: heading(name, model) for model in found[name]}
            page.add(f"## {name}", "", about, "")
            for model in found[name]:
                page.table(name, heading(name, model), model, level=3)
        else:
            page.table(name, name, found[name][0], about)
    page.table("cluster", "Cluster files", Cluster, CLUSTER)
    return HEAD + "\n" + str(page).rstrip() + "\n"


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
    print(FILE)
