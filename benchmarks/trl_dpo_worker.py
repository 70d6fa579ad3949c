"""TRL's side of trl_dpo.py, started inside TRL's own environment. Prints one line of JSON."""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks import peak

settings = json.loads(sys.argv[1])
torch.set_num_threads(settings["threads"])


class Clock(TrainerCallback):
    """Seconds and losses of every step after the tiny first one, and the peak above it."""

    def __init__(self):
        self.seconds, self.losses, self.base = [], [], 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step <= 1:
            peak.reset()
        self.at = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.base = peak.megabytes()
        else:
            self.seconds.append(time.monotonic() - self.at)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs and state.global_step > 1:
            self.losses.append(logs["loss"])


steps = json.loads(Path(settings["data"]).read_text())
pure = settings["mode"] == "bfloat16"
model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.bfloat16 if pure else torch.float32)
clock = Clock()
trainer = DPOTrainer(
    model=model,
    args=DPOConfig(
        output_dir=settings["scratch"], per_device_train_batch_size=settings["batch"],
        gradient_accumulation_steps=settings["pairs"] // settings["batch"], learning_rate=settings["lr"],
        lr_scheduler_type="constant", beta=settings["beta"], precompute_ref_log_probs=True, max_length=None,
        bf16=not pure, use_cpu=True, gradient_checkpointing=False, logging_steps=1, report_to=[], save_strategy="no",
        disable_tqdm=True, num_train_epochs=1, train_sampling_strategy="sequential",
    ),
    train_dataset=Dataset.from_list([pair for step in steps for pair in step]),
    processing_class=AutoTokenizer.from_pretrained(settings["model"]),
    callbacks=[clock],
)  # fmt: skip
trainer.train()
print(
    "RESULT " + json.dumps({"seconds": clock.seconds, "losses": clock.losses, "peak_mb": peak.megabytes() - clock.base})
)
