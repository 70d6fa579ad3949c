"""Who plays follows from the journal: a resumed run repeats it, and keeps and loads no more weights than it has to."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from preference.types import Version
from tests.unit.season import FEW, Season, config, steps_of

PLAYERS = st.fixed_dictionaries(
    {
        "lag": st.integers(1, 4),
        "size": st.integers(1, 3),
        "every": st.integers(1, 4),
        "draw": st.sampled_from(["uniform", "win_rate"]),
    }
).map(
    lambda d: [
        {"player": "previous", "lag": d["lag"]},
        {"player": "league", "size": d["size"], "every": d["every"], "draw": d["draw"]},
        {"player": "reference"},
    ]
)
STEPS = 9
PUBLISHES = st.sets(st.integers(1, STEPS), min_size=4)
REFERENCES = st.sampled_from([{}, {"refresh": "periodic", "every": 3}])


@settings(deadline=None, max_examples=25)
@given(PLAYERS, st.integers(0, 2), PUBLISHES, REFERENCES, st.data())
def test_a_resumed_run_repeats_who_played(tmp_path_factory, opponents, staleness, publishes, reference, data):
    cfg = config(opponents, staleness, reference=reference)
    whole = Season(tmp_path_factory.mktemp("whole"), cfg, prompts=FEW)
    asyncio.run(whole.run(0, STEPS, {}, publishes))
    late = Season(tmp_path_factory.mktemp("late"), cfg, prompts=FEW)
    asyncio.run(late.run(0, STEPS, {}, publishes, late=True))
    assert steps_of(late.played) == steps_of(whole.played)  # newer weights that are there already are nobody's

    directory, journal = tmp_path_factory.mktemp("stopped"), {}
    died = data.draw(st.integers(1, STEPS), label="died after")
    done = data.draw(st.integers(0, died), label="checkpoint")
    first = Season(directory, cfg, prompts=FEW)
    asyncio.run(first.run(0, STEPS, journal, publishes, until=died))
    again = Season(directory, cfg, done, incarnation=1, prompts=FEW)
    asyncio.run(again.resume(done, STEPS, journal, publishes))
    assert steps_of(first.played) | steps_of(again.played) == steps_of(whole.played)
    assert not set(first.played) & set(again.played)  # what was journaled is not sampled again
    for version in again.played.values():
        assert version.incarnation == int(version.step > done), "a dead version played"


@settings(deadline=None, max_examples=20)
@given(PLAYERS, st.integers(0, 2), PUBLISHES)
def test_a_step_loads_each_version_at_most_once_and_keeps_what_may_be_asked_for(
    tmp_path_factory, opponents, staleness, publishes
):
    season = Season(tmp_path_factory.mktemp("season"), config(opponents, staleness))
    asyncio.run(season.run(0, STEPS, {}, publishes))
    for step, loads in season.loads.items():
        wanted = {v for (s, _, _), v in season.played.items() if s == step}
        assert len(loads) == len(set(loads))
        assert set(loads) <= wanted
        assert len(loads) >= len(wanted) - 1
    lag, size = opponents[0]["lag"], opponents[1]["size"]
    every, newest = opponents[1]["every"], staleness + lag + 1
    assert len(season.versions.versions) <= newest + size + 1 + newest // every


def test_weights_that_went_back_within_an_attempt_never_play(tmp_path):
    cfg = config([{"player": "previous"}])
    season = Season(tmp_path, cfg)
    journal = {}
    asyncio.run(season.run(0, 6, journal, set(range(1, 7)), until=5))
    assert season.versions.versions[-1] == Version(0, 5)
    season.incarnation = 1  # the trainer was lost and goes on from step 3
    asyncio.run(season.publish(3))
    assert [v for v in season.versions.versions if v.step > 3] == []
    asyncio.run(season.run(3, 8, journal, set(range(4, 9))))
    assert {v.incarnation for (s, _, _), v in season.played.items() if v.step > 3 and s > 5} == {1}
