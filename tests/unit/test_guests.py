"""Responses that come as text: another model's under the policy's template, a data set's own; and weights on disk."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

from actors.weights import WeightFiles, WeightsError, WeightWriter, keep_version, link_version
from pipelines.data.encode import Encoder
from pipelines.data.rules import DataRules
from pipelines.judging.stage import JudgeStage
from pipelines.play.guests import Limits, Translator, Unusable, check_responses, data_responses, same_tokens
from pipelines.prompts import PromptError, PromptSet
from preference.pairing import PairingRules
from preference.types import CandidateGroup, FinishReason, Message, Prompt, Version, Written
from tests.factories import candidate, prompt
from tests.tiny import _tokenizer

LIMITS = Limits(response=20, context=60)
OTHER = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[answer]"


@cache
def tokenizer(template: str = ""):
    made = _tokenizer()
    if template:
        made.chat_template = template
    return made


ENCODER = Encoder(tokenizer(), 512, [], DataRules())


def asked(name="p", text="Is it?", meta="{}"):
    messages = (Message("user", text),)
    turns = [{"role": m.role, "content": m.content} for m in messages]
    ids = tokenizer().apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    return Prompt(name, messages, tuple(ids), meta)


def translator(template=OTHER, same=False, limits=LIMITS):
    return Translator("guest", tokenizer(template), ENCODER, limits, same=same)


def test_a_prompt_is_read_through_the_other_models_template():
    read = translator().prompt(asked())
    assert tokenizer().decode(list(read.token_ids)) == "[user] Is it?\n[answer]"
    assert translator(same=True).prompt(asked()) == asked()
    with pytest.raises(Unusable, match=r"\d+ of its tokens: no room within sampling.max_model_len"):
        translator().prompt(asked(text="long " * 40))
    with pytest.raises(Unusable, match=r"its chat template refuses the prompt: .*division"):
        translator("{{ 1 // 0 }}").prompt(asked())


def test_a_response_is_written_anew_in_the_policys_tokens():
    p, said = asked(), candidate("p", 3)
    full = translator().response(p, said)
    assert isinstance(full, Written)
    assert (full.player, full.id, full.finished) == ("guest", said.id, True)
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": said.text}]
    rendered = list(tokenizer().apply_chat_template(turns, return_dict=False))
    joined = [*p.token_ids, *full.token_ids]
    assert rendered[: len(joined)] == joined
    assert full.token_ids[-1] == tokenizer().eos_token_id
    cut = translator().response(p, candidate("p", 3, finish=FinishReason.LENGTH))
    assert (cut.finished, cut.token_ids) == (False, full.token_ids[:-1])  # where it was cut off is no end of a turn
    assert cut.text == said.text


def test_what_is_longer_in_the_policys_tokens_is_cut_off_where_the_policys_own_would_be():
    p, long = asked(), replace(candidate("p", 0), text="word " * 30)
    cut = translator().response(p, long)
    whole = translator(limits=Limits(500, 900)).response(p, long)
    assert (len(cut.token_ids), cut.finished, whole.finished) == (20, False, True)
    assert cut.token_ids == whole.token_ids[:20]
    assert long.text.startswith(cut.text)
    assert cut.text == tokenizer().decode(list(cut.token_ids))  # what is judged is what is trained on


def test_what_cannot_be_written_is_said():

    p, said = asked(), candidate("p", 0)
    with pytest.raises(Unusable, match="the response is empty"):
        translator().response(p, replace(said, text="  "))
    with pytest.raises(Unusable, match=r"template_mismatch|prompt"):
        translator().response(prompt(), said)  # rendered otherwise than it was tokenised
    same = translator(same=True)
    assert same.response(p, said) == replace(said, player="guest")
    with pytest.raises(Unusable, match="the policy has not: 512"):
        same.response(p, replace(said, token_ids=(3, 512)))


def test_the_same_tokens_are_told_by_vocabulary_and_template():
    assert same_tokens(tokenizer(), _tokenizer())
    assert not same_tokens(tokenizer(), tokenizer(OTHER))


def test_prompts_without_a_response_are_named_by_line(tmp_path):
    good = {"id": "a", "prompt": "x", "response": "yes"}
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(good) + "\n")
    check_responses(file)
    for bad in ({"id": "b", "prompt": "y"}, {"id": "b", "prompt": "y", "response": 3}):
        file.write_text(json.dumps(good) + "\n\n" + json.dumps(bad) + "\n")
        with pytest.raises(PromptError, match=r'p.jsonl:3: field "response" is missing or not a text'):
            check_responses(file)


def test_the_datas_responses_end_their_turn_and_those_too_long_are_left_out():
    texts = {"a": "Yes, it is.", "b": "word " * 30}
    prompts = PromptSet({n: asked(n, meta=json.dumps({"response": t})) for n, t in texts.items()}, ("z (99 tokens)",))
    said = []
    kept, found = data_responses(prompts, "f", ENCODER, LIMITS, stop=False, say=said.append)
    assert list(kept.prompts) == list(found) == ["a"]
    assert kept.too_long[0] == "z (99 tokens)"
    assert kept.too_long[1].startswith("b (63 tokens, more than sampling.max_tokens = 20")
    assert found["a"].token_ids[-1] == tokenizer().eos_token_id
    assert found["a"].player == "data"
    assert len(said) == 1
    with pytest.raises(PromptError, match=r"f: 1 responses of the data cannot be used: b \(\d+ tokens"):
        data_responses(prompts, "f", ENCODER, LIMITS, stop=True, say=said.append)
    lost = PromptSet({"b": prompts.prompts["b"]}, ())
    with pytest.raises(PromptError, match=r"raise sampling\.max_tokens"):
        data_responses(lost, "f", ENCODER, LIMITS, stop=False, say=said.append)


def test_spin_asks_no_judge():
    import asyncio

    class Nobody:
        name = "nobody"

        async def rate(self, groups):
            raise AssertionError("was asked")

    stage = JudgeStage(Nobody(), None, PairingRules("spin"), lambda p, t: (), 100, print)
    group = CandidateGroup(prompt(), (candidate(),))
    judged = asyncio.run(stage.judge(1, group))
    assert judged is not None
    assert (judged.group, judged.judgements) == (group, ())


# -- weights on disk -------------------------------------------------------------------------------------------------


def written(directory, version):
    writer = WeightWriter(directory, version)
    for i in range(2):
        writer.add({f"w{i}": torch.full((3,), float(i))})
    return writer.finish()


def test_a_kept_version_outlives_what_was_published(tmp_path):
    import shutil

    published = written(tmp_path / "published", Version(0, 3))
    kept = keep_version(published.directory, tmp_path / "players" / "0.3")
    shutil.rmtree(published.directory)
    assert (kept.version, kept.bytes, dict(kept.buckets)) == (Version(0, 3), published.bytes, dict(published.buckets))
    assert {name: t.tolist() for name, t in kept} == {"w0": [0.0] * 3, "w1": [1.0] * 3}
    with pytest.raises(WeightsError, match="holds no complete version"):
        keep_version(published.directory, tmp_path / "players" / "0.4")


def test_where_links_are_impossible_it_is_copied(tmp_path, monkeypatch):
    import os

    published = written(tmp_path / "published", Version(0, 3))

    def refuse(*paths, **options):
        raise OSError("another device")

    monkeypatch.setattr(os, "link", refuse)
    kept = keep_version(published.directory, tmp_path / "kept")
    assert [name for name, _ in kept] == ["w0", "w1"]
    assert not any((kept.directory / n).samefile(published.directory / n) for n in kept.buckets)


def test_the_initial_policy_is_linked_to(tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "model" / "model.safetensors"
    file.parent.mkdir()
    save_file({"w": torch.arange(4.0)}, file)
    made = link_version([file], tmp_path / "players" / "0.0", Version(0, 0))
    assert (made.directory / "model.safetensors").readlink() == file
    assert [(n, t.tolist()) for n, t in WeightFiles.open(made.directory)] == [("w", [0.0, 1.0, 2.0, 3.0])]
    save_file({"w": torch.zeros(4)}, file)
    with pytest.raises(WeightsError, match="checksum"):
        list(WeightFiles.open(made.directory))
