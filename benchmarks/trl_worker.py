"""One measured run of TRL's OnlineDPOTrainer; started by trl_online_dpo.py inside TRL's own environment.

fp32 master weights with bf16 autocast, so that it really learns (pure bf16 AdamW rounds small updates away); the
same prompts, judge, sampling and update as the run of Rondo beside it. Prints one JSON line: seconds by step.
"""

import json
import sys
import time

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

settings = json.loads(sys.argv[1])
torch.set_num_threads(settings["threads"])
vader = SentimentIntensityAnalyzer()
scores = []


def vader_sentiment(prompts, completions, **_):
    values = [vader.polarity_scores(c[0]["content"])["compound"] for c in completions]
    scores.append(sum(values) / len(values))
    return values


class Clock(TrainerCallback):
    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *_, **__):
        self._at = time.monotonic()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.monotonic() - self._at)


with open(settings["prompts"], encoding="utf-8") as lines:
    prompts = [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in lines]
tokenizer = AutoTokenizer.from_pretrained(settings["model"], padding_side="left")
model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
reference = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
clock = Clock()
trainer = OnlineDPOTrainer(
    model=model,
    ref_model=reference,
    reward_funcs=vader_sentiment,
    args=OnlineDPOConfig(
        output_dir=settings["scratch"],
        per_device_train_batch_size=settings["prompts_per_step"],
        gradient_accumulation_steps=1,
        max_new_tokens=settings["max_tokens"],
        temperature=1.0,
        beta=settings["beta"],
        learning_rate=settings["lr"],
        lr_scheduler_type="constant",
        max_steps=settings["steps"],
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=settings["seed"],
    ),
    train_dataset=Dataset.from_dict({"prompt": prompts}),
    processing_class=tokenizer,
    callbacks=[clock],
)
trainer.train()
print(json.dumps({"seconds": clock.seconds, "scores": scores}))
