"""Compile DeepSpeed's CPU operators once at set-up instead of inside the first run."""

import contextlib
import io

from actors.imports import operators_of_this_environment

operators_of_this_environment()  # before DeepSpeed looks where they are

from deepspeed.ops.op_builder.cpu import CPUAdamBuilder  # noqa: E402
from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder  # noqa: E402

with contextlib.redirect_stdout(io.StringIO()):
    for builder in (CPUAdamBuilder(), ShareMemCommBuilder()):
        builder.load()
