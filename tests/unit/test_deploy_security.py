"""The lines of docs/security.md that need no cluster: what comes from outside is read, never run."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.loading import ConfigError, load_config
from configs.runs import RunConfig
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]
PACKAGES = ("preference", "actors", "pipelines", "configs", "scripts")
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


class Bomb:
    """What leaves a file behind if it is ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path) -> Path:
    return tmp_path / "it-ran"


def test_the_bomb_works(mark):
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()


def without_safetensors(directory: Path, weights: bytes) -> Path:
    tiny_model(directory)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    (directory / "pytorch_model.bin").write_bytes(weights)
    return directory


def test_weights_are_never_unpickled(tmp_path, mark):
    directory = without_safetensors(tmp_path / "model", pickle.dumps(Bomb(mark)))
    config = load_config(RunConfig, QUICKSTART, [f"model.path={directory}"])
    from pipelines.checks import Level, inputs

    [check] = inputs.model(config)
    assert check.level is Level.FAIL
    assert "safetensors only, found pytorch_model.bin" in check.detail

    from transformers import AutoModelForCausalLM

    for save in (pickle.dumps(Bomb(mark)), _torch_file(tmp_path, mark)):  # were the check not there
        (directory / "pytorch_model.bin").write_bytes(save)
        with pytest.raises(Exception, match=r"(?i)weights_only|safetensors|corrupt|load"):
            AutoModelForCausalLM.from_pretrained(directory)
    assert not mark.exists()


def _torch_file(tmp_path: Path, mark: Path) -> bytes:
    torch.save({"model.embed_tokens.weight": Bomb(mark)}, tmp_path / "evil.bin")
    return (tmp_path / "evil.bin").read_bytes()


def test_data_files_are_never_unpickled(tmp_path, mark):
    from rich.console import Console

    from pipelines.data import DataError, DataRules
    from pipelines.look.inspect import inspect

    for name in ("pairs.jsonl", "pairs.json", "pairs.parquet", "pairs.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(mark)))
        with pytest.raises(DataError):
            inspect(tmp_path / name, Console(quiet=True), None, DataRules())
    assert not mark.exists()


def test_code_of_a_model_directory_is_never_run(tmp_path, mark):
    directory = tiny_model(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "evil", "architectures": ["Evil"]}
    config |= {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "evil.py").write_text(f"import os\nos.system('touch {mark}')\nclass Evil: pass\n")
    from transformers import AutoConfig, AutoModelForCausalLM

    for load in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises((ValueError, OSError)):
            load.from_pretrained(directory)
    assert not mark.exists()


@pytest.mark.parametrize("value", ["true", "'yes'", "1"])
def test_trust_remote_code_cannot_be_turned_on(value):
    with pytest.raises(ConfigError, match=r"model\.trust_remote_code"):
        load_config(RunConfig, QUICKSTART, [f"model.trust_remote_code={value}"])


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!!python/object/new:os.system"]
)
def test_yaml_makes_no_objects(tmp_path, mark, tag):
    (tmp_path / "run.yaml").write_text(QUICKSTART.read_text() + f"\nevil: {tag} ['touch {mark}']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(RunConfig, tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(RunConfig, QUICKSTART, [f"run.name={tag} ['touch {mark}']"])
    assert not mark.exists()


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/etc/x", ".hidden", "a\x00b", "a b", "~x", "x" * 64, "a\n"])
def test_a_run_name_is_one_directory(name):
    with pytest.raises(ConfigError, match=r"run\.name"):
        load_config(RunConfig, QUICKSTART, [f"run.name={json.dumps(name)}"])


@pytest.mark.parametrize("identity", ["../../evil", "/tmp/evil", "a/../../evil", "..\\evil"])
def test_ids_of_imported_items_are_no_paths(tmp_path, identity):
    """An id is data: it names a row, and nothing is written beside the file's own store."""
    from pipelines.annotate.command import open_target

    folder = tmp_path / "inside"
    folder.mkdir()
    row = {
        "id": identity,
        "prompt": "p",
        "first": "a",
        "second": "b",
        "responses": ["a", "b"],
        "chosen": "a",
        "rejected": "b",
    }
    (folder / "items.jsonl").write_text(json.dumps(row) + "\n")
    before = set(tmp_path.rglob("*"))
    store = open_target(str(folder / "items.jsonl"), str(tmp_path), [])
    assert store.counts().items == 1
    new = set(tmp_path.rglob("*")) - before
    assert new
    assert all(p.parent == folder and p.name.startswith("items.") for p in new)


def test_headers_count_only_from_the_proxies_that_were_named(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from pipelines.annotate import command, serving
    from pipelines.cli import main

    made: list[Any] = []

    def captured(*given: Any, **options: Any) -> Any:
        made.append(serving.server(*given, **options).config)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "server", captured)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    words = ["annotate", str(tmp_path / "pairs.jsonl"), "--port", "0"]
    for more in ([], ["--behind-tls"], ["--behind-tls", "--trusted-proxies", "10.0.0.0/8"]):
        CliRunner().invoke(main, [*words, *more])
    assert [(c.proxy_headers, c.forwarded_allow_ips) for c in made] == [
        (False, ""),
        (True, "127.0.0.1,::1"),
        (True, "10.0.0.0/8"),
    ]


def sources() -> list[tuple[Path, ast.AST]]:
    files = [f for p in PACKAGES for f in (ROOT / p).rglob("*.py")]
    return [(f.relative_to(ROOT), ast.parse(f.read_text())) for f in files]


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


def keyword(call: ast.Call, name: str) -> Any:
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def unsafe(tree: ast.AST) -> list[str]:
    """Calls that run what they read."""
    found = []
    for name, call in calls(tree):
        tail = name.rpartition(".")[2]
        if name in ("eval", "exec", "os.system", "os.popen") or name.startswith(("pickle.load", "dill.", "joblib.")):
            found.append(name)
        if name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"):
            found.append(name)
        if name == "torch.load" and keyword(call, "weights_only") is not True:
            found.append("torch.load without weights_only")
        if tail == "from_pretrained" and keyword(call, "trust_remote_code"):
            found.append(f"{name}(trust_remote_code)")
        if keyword(call, "shell") or keyword(call, "trust_remote_code"):
            found.append(f"{name}(shell or trust_remote_code)")
        if keyword(call, "verify") is False:
            found.append(f"{name}(verify=False)")
    return found


def test_nothing_of_ours_runs_what_it_reads():
    found = {str(path): names for path, tree in sources() if (names := unsafe(tree))}
    # Ray Data's rows between two of our own functions in one job: they never touch a file from outside.
    assert found == {"pipelines/data/load.py": ["pickle.loads"]}


@pytest.mark.parametrize(
    "line",
    ["eval(x)", "pickle.load(f)", "yaml.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)",
     "M.from_pretrained(p, trust_remote_code=True)", "subprocess.run(c, shell=True)", "get(u, verify=False)"],
)  # fmt: skip
def test_the_look_through_the_code_finds(line):
    assert unsafe(ast.parse(line))


def test_development_doors_of_vllm_stay_shut():
    doors = re.compile(r"VLLM_SERVER_DEV_MODE|VLLM_ALLOW_INSECURE_SERIALIZATION|VLLM_ALLOW_RUNTIME_LORA_UPDATING")
    files = [
        f for p in (*PACKAGES, "deploy") for f in (ROOT / p).rglob("*") if f.is_file() and "__pycache__" not in f.parts
    ]
    assert [f for f in files if doors.search(f.read_text(errors="ignore"))] == []
    # No server of vLLM is ever started: its engine runs inside an actor, without a port.
    assert [
        f
        for f in files
        if re.search(r"vllm serve|vllm\.entrypoints\.(?:openai|api_server)", f.read_text(errors="ignore"))
    ] == []


def test_every_line_of_the_threat_model_names_a_test_that_exists():
    rows = [r for r in (ROOT / "docs" / "security.md").read_text().splitlines() if r.startswith("| ") and "test" in r]
    named = [(f, t) for row in rows for f, t in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)]
    assert len(named) >= 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"
