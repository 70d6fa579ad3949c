"""Compile DeepSpeed's CPU operators once at set-up instead of inside the first run."""

import contextlib
import io

from deepspeed.ops.op_builder.cpu import CPUAdamBuilder
from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder

with contextlib.redirect_stdout(io.StringIO()):
    for builder in (CPUAdamBuilder(), ShareMemCommBuilder()):
        builder.load()
