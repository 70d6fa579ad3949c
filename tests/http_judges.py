"""An HTTP judge in a Ray actor, for the tests that play its endpoint and for those that serve a real one."""

import asyncio

import pytest

from actors.judges.http import HttpJudgePool
from configs.judges import HttpJudge
from configs.schema import Deadlines, Group

KEY = "sk-very-secret-1234567890"


@pytest.fixture
def key_file(tmp_path):
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o600)
    return file


@pytest.fixture
def start(ray_here, tmp_path, key_file):
    pools = []

    def started(url, spent=0.0, **fields):
        section = HttpJudge(
            **{"kind": "http", "url": url, "model": "tiny", "api_key_file": str(key_file), "min_mass": 0.0, **fields}
        )
        pool = HttpJudgePool(section, Group(cpus=0.1), Deadlines(call_s=120), tmp_path, "judge", spent)
        pools.append(pool)
        asyncio.run(pool.ready())
        return pool, section

    yield started
    for pool in pools:
        pool.close()
