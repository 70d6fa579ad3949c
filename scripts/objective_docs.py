"""Write docs/objectives.md from the objectives: ``python -m scripts.objective_docs``; a test keeps it current."""

from __future__ import annotations

import inspect
from pathlib import Path

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from configs.objectives import SECTIONS
from preference.objectives import REGISTRY
from preference.objectives.base import Objective

FILE = Path(__file__).parents[1] / "docs" / "objectives.md"
HEAD = """# Objectives

`objective: {name: ..., <parameters>}` selects one; `rondo run` and `rondo offline` take any of them, `rondo sft` the
supervised one. Several are mixed with weights:

```yaml
objective:
  name: mix
  terms:
    - {name: dpo, beta: 0.1}
    - {name: sft, weight: 0.2}
```

*Data:* an objective on pairs needs chosen and rejected; one on labels takes single responses with a label, and pairs as
two of them. *Reference:* without one, no reference pool is started. r = log pi - log pi_ref, summed over a response's
tokens; D = r_chosen - r_rejected. TR-DPO is `dpo` (or any other) with a moving reference: `reference.refresh=periodic`,
`reference.every`, `reference.alpha`. Statistics over the batch are those of the whole step, over all workers and
micro-batches. An objective is one function in `preference/objectives/` and one test; this page is made from them.
"""
SIGNS = {Gt: ">", Ge: ">=", Lt: "<", Le: "<="}


def bounds(field: FieldInfo) -> str:
    found = [f"{SIGNS[type(m)]} {next(iter(vars_of(m)))}" for m in field.metadata if type(m) in SIGNS]
    return ", ".join(found)


def vars_of(bound: object) -> list[object]:
    return [getattr(bound, name) for name in ("gt", "ge", "lt", "le") if hasattr(bound, name)]


def section(name: str, definition: Objective) -> str:
    traits = [f"data: {definition.data}", "reference" if definition.reference else "no reference"]
    if definition.ties:
        traits.append("takes tied pairs (`pairing.ties: keep`)")
    if definition.observe:
        traits.append("statistics of the whole batch")
    paper = f"[arXiv {definition.paper}](https://arxiv.org/abs/{definition.paper})" if definition.paper else ""
    lines = [f"## {name}", "", "; ".join([*traits, *([paper] if paper else [])]), ""]
    lines += ["```", inspect.getdoc(definition.loss) or "", "```", ""]
    fields = {k: f for k, f in SECTIONS[name].model_fields.items() if k not in ("name", "weight")}
    if fields:
        lines += ["| parameter | default | bounds | meaning |", "|---|---|---|---|"]
        lines += [f"| `{k}` | {f.default} | {bounds(f)} | {f.description} |" for k, f in fields.items()]
        lines.append("")
    return "\n".join(lines)


def render() -> str:
    return HEAD + "\n" + "\n".join(section(name, REGISTRY[name]) for name in sorted(REGISTRY))


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(render(), encoding="utf-8")
    print(FILE)
