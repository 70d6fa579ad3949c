"""Every command, configuration, link and name of code in the pages exists, and would be accepted as it stands."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import click
import pytest
import yaml

from configs.judging import Rejudge
from configs.loading import ConfigError, config_kind, configure, load_config, read_yaml
from configs.runs import OfflineConfig, RewardModelConfig, RunConfig, SftConfig
from pipelines.cli import main
from pipelines.plan.cluster import read_cluster
from pipelines.sweep import plan
from tests.documents import OUTSIDE, PAGES, ROOT, Command, blocks, commands, links, named_code, slugs

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
KINDS = {"run": RunConfig, "offline": OfflineConfig, "sft": SftConfig, "reward-model": RewardModelConfig}
JUDGES = ({"kind": "rule", "rule": "my_rules:politeness"}, {"kind": "llm", "model": "judge"})
YOURS = {"CONFIG", "configs/mine.yaml", "/etc/rondo/run.yaml"}
"""Configurations that a reader has, and the repository has not."""
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A place where what a command names can be: the repository's files, and a home of one's own."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith("."):
            (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def provide(command: click.Command, words: list[str]) -> None:
    """Make what ``command`` wants to exist already: only its form is looked at here."""
    wanted = [p for p in command.params if isinstance(p.type, click.Path) and p.type.exists]
    flags = {flag for p in wanted for flag in p.opts}
    arguments = any(isinstance(p, click.Argument) for p in wanted)
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("-") or not (before in flags if before.startswith("--") else arguments):
            continue
        path = Path(word)
        if path.resolve().is_relative_to(ROOT):  # through a link
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.touch()
        else:
            path.mkdir(exist_ok=True)


def rondo(command: Command) -> None:
    """Raises where ``rondo`` would refuse it: an unknown command, flag or type, a configuration that is none."""
    name, *words = command.words[1:]
    words = [str(Path(w).expanduser()) if w.startswith("~") else w for w in words]
    known = main.commands.get(name)
    if known is None:
        raise ValueError(f"rondo has no command {name}")
    if "--help" in words:
        return
    provide(known, words)
    try:
        given = known.make_context(name, words).params
    except click.MissingParameter:
        if command.whole:
            raise
        return
    overrides = [o for o in given.get("overrides") or given.get("words") or () if "=" in o and not o.isupper()]
    config = str(given["config"]) if given.get("config") else None
    if name == "rejudge":
        accepted(lambda judge: configure(Rejudge, {"judge": judge}, overrides, ROOT), JUDGES)
    elif config is None or config in YOURS:
        accepted(lambda file: plan(file, overrides) if name == "sweep" else load(file, overrides))
    elif name == "sweep":
        plan(Path(config), overrides)
    else:
        load_config(KINDS.get(name) or config_kind(config), config, overrides)


def load(file: Path, overrides: list[str]) -> None:
    load_config(config_kind(file), file, overrides)


def accepted(attempt, candidates=CONFIGS) -> None:
    """Overrides for a configuration of the reader's fit one of those that ship."""
    errors = []
    for candidate in candidates:
        try:
            attempt(candidate)
            return
        except ConfigError as error:
            errors.append(f"{candidate}: {error}")
    raise ValueError("no shipped configuration takes it:\n" + "\n".join(errors))


def check(command: Command) -> None:
    program, *rest = command.words
    if program == "rondo":
        rondo(command)
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        unknown = [w for w in rest if "=" not in w and w not in targets]
        if unknown:
            raise ValueError(f"the Makefile has no target {unknown[0]}")
    elif program in ("python", "torchrun") and "-m" in rest:
        module = rest[rest.index("-m") + 1]
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"there is no module {module}")
    elif program == "ray" and "--" in rest:
        check(Command(tuple(rest[rest.index("--") + 1 :]), command.line, command.needs))
    if (need := OUTSIDE.get(program)) and command.whole and command.needs != need:
        raise ValueError(f"stands in a block without <!-- needs: {need} --> before it")
    for word in command.words:
        ours = re.match(r"(actors|benchmarks|configs|deploy|docs|pipelines|preference|scripts|tests)/", word)
        if ours and word not in YOURS and not (ROOT / word).exists():
            raise ValueError(f"there is no {word}")


@every_page
def test_commands_would_be_accepted(page, home):
    problems = []
    for command in commands(page.read_text(encoding="utf-8")):
        try:
            check(command)
        except (click.ClickException, ValueError, ConfigError) as error:
            problems.append(f"{command}: {error.message if isinstance(error, click.ClickException) else error}")
    assert problems == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rondo fly RUN", "no command fly"),
        ("rondo run configs/quickstart.yaml --fast", "No such option"),
        ("rondo run configs/quickstart.yaml objective.bta=1", "did you mean 'beta'"),
        ("rondo run configs/slowstart.yaml", "slowstart.yaml"),
        ("rondo offline CONFIG data.trian=pairs.jsonl", "no shipped configuration"),
        ("rondo sweep configs/quickstart.yaml objective.beta=0.1,x", "objective.beta"),
        ("rondo rejudge RUN judge.guidlines=values.txt", "no shipped configuration"),
        ("rondo resume", "MissingParameter"),
        ("make coffee", "no target coffee"),
        ("python -m benchmarks.nonsense", "no module"),
        ("ray job submit -- rondo run configs/nowhere.yaml", "nowhere.yaml"),
        ("kubectl apply -k deploy/kubernetes/overlays/cpu-smoke", "needs: cluster"),
        ("bash deploy/local/nothing.sh", "there is no deploy/local/nothing.sh"),
    ],
)
def test_what_is_wrong_is_found(line, words, home):
    (command,) = commands(f"```\n{line}\n```\n")
    with pytest.raises((click.ClickException, ValueError, ConfigError)) as caught:
        check(command)
    assert words in f"{type(caught.value).__name__} {getattr(caught.value, 'message', '')} {caught.value}"


@every_page
def test_links_lead_somewhere(page):
    broken = []
    for file, anchor in links(page.read_text(encoding="utf-8")):
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in slugs(target.read_text(encoding="utf-8"))):
            broken.append(f"{file}#{anchor}")
    assert broken == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = {file for file, _ in links(index)}
    assert {p.name for p in PAGES if p.parent.name == "docs"} - {"README.md"} <= linked


@every_page
def test_code_that_is_named_exists(page):
    text = page.read_text(encoding="utf-8")
    files, names = named_code(text)
    shown = set(re.findall(r"^# (\S+\.py)$", text, re.MULTILINE))  # files that a block of the page stands for
    missing = [f for f in files - shown if not (ROOT / f).exists()]
    for name in names:
        *modules, last = name.split(".")
        found = next((n for n in range(len(modules) + 1, 0, -1) if is_module([*modules, last][:n])), 0)
        source = source_of([*modules, last][:found])
        if found < len(modules) or (found == len(modules) and not re.search(rf"\b{last}\b", source)):
            missing.append(name)
    assert missing == []


def is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").is_file()


def source_of(parts: list[str]) -> str:
    path = ROOT.joinpath(*parts)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.read_text(encoding="utf-8") if file.is_file() else ""


@every_page
def test_yaml_is_accepted(page, home):
    """A block of sections fits a shipped configuration; a cluster is one that ``rondo plan`` reads."""
    problems = []
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language != "yaml":
            continue
        given = yaml.safe_load(block.text)
        try:
            if "pools" in given:
                Path("cluster.yaml").write_text(block.text)
                read_cluster("cluster.yaml")
            elif set(given) <= set(RunConfig.model_fields) | set(OfflineConfig.model_fields):
                accepted(lambda file, given=given: configure(config_kind(file), merged(file, given), [], file.parent))
        except (ConfigError, ValueError) as error:
            problems.append(f"line {block.line}: {error}")
    assert problems == []


def merged(file: Path, given: dict[str, object]) -> dict[str, object]:
    return read_yaml(file) | given
