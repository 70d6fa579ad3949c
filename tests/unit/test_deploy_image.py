"""The Dockerfile: linted, built from files that exist, by the steps of `make setup`; and what runs inside the image."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.deploy.house import PROJECT
from tests.deploy.render import ROOT, find, pods, render

DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of every instruction, continuation lines joined."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(a, b) for a, _, b in (line.partition(" ") for line in joined.splitlines() if line)]


def rests(*names: str) -> list[str]:
    return [rest for name, rest in instructions() if name in names]


def test_hadolint_has_nothing_to_say():
    done = subprocess.run([BIN / "hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_would_speak_up(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN apt-get install g++\n")
    done = subprocess.run([BIN / "hadolint", tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 1
    assert {"DL3007", "DL3008"} <= set(re.findall(r"DL\d+", done.stdout))


def test_every_copied_file_exists_and_is_in_the_build_context():
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    copied = [w for rest in rests("COPY") for w in rest.split() if not w.startswith("--")]
    sources = {w for rest in rests("COPY") for w in [w for w in rest.split() if not w.startswith("--")][:-1]}
    assert len(copied) > len(sources)
    assert {s for s in sources if not (ROOT / s).exists()} == set()
    assert sources == allowed
    assert ignore[1] == "*"  # all else stays outside


def test_all_that_is_installed_is_copied():
    """setup.py's packages, what the bootstrap reads, and nothing of tests or runs."""
    sources = {w for rest in rests("COPY") for w in [w for w in rest.split() if not w.startswith("--")][:-1]}
    import tomllib

    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {p.partition(".")[0] for p in packages} <= sources
    named = set(re.findall(r"\b(?:requirements|scripts)/[\w.*$]+", (ROOT / "scripts" / "bootstrap.sh").read_text()))
    assert {n.partition("/")[0] for n in named} <= sources
    assert not any(fnmatch("tests/x.py", s) or s.startswith((".", "tests", "benchmarks")) for s in sources)


def test_both_targets_install_as_the_makefile_does():
    stages = dict(re.findall(r"(?m)^FROM (\S+) AS (\w+)", (DEPLOY / "Dockerfile").read_text()))
    assert set(stages.values()) == {"base", "gpu"} or len(rests("FROM")) == 3
    engines = re.findall(r"RONDO_ENGINE=(\w+)", " ".join(rests("ENV")))
    assert engines == ["cpu", "gpu"]
    assert [r for r in rests("RUN") if r.startswith("make setup")] == [
        "make setup && rm -rf .venv/torch_extensions"
    ] * 2
    assert "bash scripts/bootstrap.sh" in (ROOT / "Makefile").read_text()
    assert not any(re.search(r"\bpip install|curl |wget ", r) for r in rests("RUN"))


def test_the_system_packages_are_the_bootstraps():
    asked = set(re.findall(r"printf '(\S+) '", (ROOT / "scripts" / "bootstrap.sh").read_text())) - {"%s"}
    installed = set(rests("RUN")[0].partition("--no-install-recommends")[2].partition("&&")[0].split())
    assert asked <= installed
    assert installed - asked == {"ca-certificates", "make"}


def test_the_base_is_pinned_and_has_a_python_that_fits():
    base = rests("FROM")[0]
    version = re.fullmatch(r"python:(\d+)\.(\d+)\.\d+-slim-bookworm AS base", base)
    assert version, base
    low, high = re.findall(r"\d+\.(\d+)", PROJECT["requires-python"])
    assert int(low) <= int(version[2]) < int(high)


def test_nobody_is_root():
    assert rests("USER") == ["1000:1000"]
    assert "useradd --uid 1000" in rests("RUN")[0]
    order = [name for name, _ in instructions()]
    assert order.index("USER") < order.index("COPY")
    for name in ("cpu-smoke", "annotate"):
        users = {p["spec"]["securityContext"]["runAsUser"] for _, p in pods(render(name))}
        assert users == {1000}


def test_what_the_manifests_run_is_in_the_image():
    copied = {rest.split()[-1] for rest in rests("COPY")}
    drain = {
        c["lifecycle"]["preStop"]["exec"]["command"][0]
        for _, p in pods(render("spot"))
        for c in p["spec"]["containers"]
        if "lifecycle" in c
    }
    assert drain == {"ray", "rondo-drain"}
    assert "/usr/local/bin/rondo-drain" in copied
    assert "/opt/rondo/.venv/bin:$PATH" in " ".join(rests("ENV"))
    assert (BIN / "ray").exists()
    assert (BIN / "rondo").exists()
    assert find(render("cpu-smoke"), "RayJob")["spec"]["entrypoint"].startswith("rondo run ")


@pytest.mark.parametrize("answers", [True, False])
def test_a_node_that_is_taken_drains_then_stops(tmp_path, answers):
    """With a stand-in for `ray`: its real options are looked up below."""
    said = tmp_path / "said"
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" >> {said}\n[ "$1" != drain-node ] || exit {0 if answers else 1}\n')
    ray.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", DEPLOY / "drain.sh", "1"], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    drain, stop = said.read_text().splitlines()
    assert drain.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION")
    assert drain.endswith("--deadline-remaining-seconds 1")
    assert stop == "stop --grace-period 5"
    assert ("did not take the request" in done.stderr) != answers


def test_ray_has_the_commands_that_the_pods_use():
    from ray.scripts.scripts import cli

    drain = {o for p in cli.commands["drain-node"].params for o in p.opts}
    assert {"--reason", "--reason-message", "--deadline-remaining-seconds"} <= drain
    reason = next(p for p in cli.commands["drain-node"].params if p.name == "reason")
    assert "DRAIN_NODE_REASON_PREEMPTION" in reason.type.choices
    assert "--grace-period" in {o for p in cli.commands["stop"].params for o in p.opts}


@pytest.mark.parametrize("script", ["drain.sh", "local/mlflow.sh"])
def test_scripts_parse(script):
    shell = "sh" if script == "drain.sh" else "bash"
    done = subprocess.run([shell, "-n", DEPLOY / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
