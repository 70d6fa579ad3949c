"""A tiny random model with a real tokenizer, written in a second: loads in Transformers and in vLLM alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

Arch = Literal["llama", "qwen3", "gemma3", "gemma2"]

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # the ids 0, 1 and 2
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Enough text for 250 merges; every byte is in the alphabet, so any prompt encodes.
_TEXT = (
    "The policy answers a prompt, a judge scores every answer, and the better answer becomes the chosen one.",
    "Write a short review of a film that you have seen, and say what you liked about the actors and the story.",
    "What is the capital of France? The capital of France is Paris, and Paris stands on the river Seine.",
    "A system message says how the assistant should behave; the user asks and the assistant answers in its turn.",
    "The loop samples, judges, pairs, scores against the reference, trains one step and publishes new weights.",
    "This was a wonderful movie with great acting. That was a terrible movie with a boring plot and bad sound.",
    "Describe the weather of yesterday in two sentences, then tell whether people went outside or stayed at home.",
    "Numbers such as 10, 25 and 100 are words too; so are names, questions, lists and the other parts of speech.",
)


def tiny_model(out: Path, arch: Arch = "llama", seed: int = 0, *, tied: bool = True) -> Path:
    """Write a random fp32 model of about 100 thousand parameters and its tokenizer to ``out``; returns ``out``.

    The same arguments give the same weights. ``tied`` shares input and output embeddings.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = _tokenizer()
    config = _config(arch, len(tokenizer), tied)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def _config(arch: Arch, vocabulary: int, tied: bool) -> Any:
    from transformers import Gemma2Config, Gemma3TextConfig, LlamaConfig, Qwen3Config

    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,  # the smallest that vLLM's CPU attention knows
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
        "initializer_range": 0.1,  # the usual 0.02 is so flat that wrong weights would hardly show
    }
    match arch:
        case "llama":
            return LlamaConfig(**shape)
        case "qwen3":
            return Qwen3Config(**shape)
        case "gemma3":
            # One layer of each kind; the window is short enough to matter within a test's prompts.
            layers = ["sliding_attention", "full_attention"]
            return Gemma3TextConfig(**shape, layer_types=layers, sliding_window=8, query_pre_attn_scalar=32)
        case "gemma2":
            layers = ["sliding_attention", "full_attention"]
            caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
            return Gemma2Config(**shape, **caps, layer_types=layers, sliding_window=8, query_pre_attn_scalar=32)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        min_frequency=1,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = _TEMPLATE
    return fast
