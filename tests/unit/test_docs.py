"""Pages that are made from the code are what the code says today."""

import ast
import json
import re

import pytest

from scripts import config_docs, metrics_docs, objective_docs, performance_docs
from tests.documents import ROOT


@pytest.mark.parametrize(
    "page", [config_docs, metrics_docs, objective_docs, performance_docs], ids=lambda page: page.__name__
)
def test_generated_page_is_current(page):
    assert page.FILE.read_text(encoding="utf-8") == page.render(), f"run: python -m {page.__name__}"


def test_a_result_without_a_section_is_listed(tmp_path):
    found = json.loads((performance_docs.RESULTS / "reference.json").read_text(encoding="utf-8"))
    (tmp_path / "sweep.json").write_text(json.dumps({"machine": found["machine"]}), encoding="utf-8")
    page = performance_docs.render(tmp_path)
    assert "`python -m benchmarks.sweep`" in page
    assert "results/sweep.json" in page
    assert "## The quickstart" not in page


def test_recipes_are_about_every_configuration_that_ships():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert {p.name for p in (ROOT / "configs").glob("*.yaml")} == set(re.findall(r"`(\w+\.yaml)`", page))


def quoted(results) -> list[str]:
    """What README.md says of the measured results, as they are today."""
    dpo, online, whole, demo = (results[name] for name in ("trl_dpo", "trl_online_dpo", "iteration", "demo"))
    stages, alone = whole["rondo_seconds_by_stage"], whole["ceiling_seconds_by_stage"]
    e = demo["evaluation"]
    return [
        f"{dpo['rondo_seconds']['median']:.1f} s a step against {dpo['trl_seconds']['median']:.1f} s of TRL 1.16",
        f"**{dpo['speedup']:.2f} times as fast**",
        f"{dpo['rondo_peak_mb']['median']:,.0f} MB against {dpo['trl_peak_mb']['median']:,.0f} MB",
        f"{online['rondo_seconds']['median']:.1f} s against {online['trl_seconds']['median']:.1f} s with TRL 1.16",
        f"**{online['speedup']:.2f} times as fast**",
        f"| sample | {stages['sample']:.2f} | {alone['sampler']:.2f} |",
        f"| reference | {stages['reference']:.2f} | {alone['reference']:.2f} |",
        f"| train | {stages['train']:.2f} | {alone['trainer']:.2f} |",
        f"| publish | {stages['publish']:.2f} | - |",
        f"| load | {stages['load']:.2f} | - |",
        f"| whole | {whole['rondo_seconds']['median']:.2f} | {whole['ceiling_seconds']:.2f} |",
        f"{whole['ratio']:.2f} times the sum of the stages alone",
        f"{demo['seconds']:.0f} s from the command to the report",
        f"{demo['peak_memory_gb']:.1f} GB at most",
        f"{e['eval/win_rate']:.2f} [{e['eval/win_rate_low']:.2f}, {e['eval/win_rate_high']:.2f}] by VADER",
        f"{e['eval/win_rate_second']:.2f} [{e['eval/win_rate_low_second']:.2f}, {e['eval/win_rate_high_second']:.2f}] "
        "by Pattern",
        f"KL {e['eval/kl']:.1f} nats",
    ]


def test_the_front_page_quotes_the_results_as_they_are():
    results = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in performance_docs.RESULTS.glob("*.json")}
    page = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert [words for words in quoted(results) if words not in page] == []


def said() -> list[str]:
    """What the code says to people: its strings, with an ellipsis where a value goes."""
    found = []
    for room in ("preference", "configs", "actors", "pipelines"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_messages_are_quoted_as_the_code_says_them():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [m for m in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE) if " " in m]
    assert len(quoted) > 15
    everything = "\n".join(said())
    patterns = {m: ".*".join(re.escape(part.strip()) for part in m.split("…")) for m in quoted}
    assert [m for m, pattern in patterns.items() if not re.search(pattern, everything)] == []
