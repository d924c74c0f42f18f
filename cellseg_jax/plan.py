"""What a run costs and whether it fits, before it is run: on this machine or on a TPU slice.

    python -m cellseg_jax.plan --config=configs/unetr_sgd.py [--config.train.batch_size=8 ...]
        [--topology=local|v5e:2x4|v4:2x2x1|...] [--nobatch] [--json=FILE]

Compiles the run's own train step and validation. For a TPU slice the compiler of libtpu does so
without a TPU: pip install -e ".[plan]". Exit codes: 0 it fits, 2 it does not fit (what would fit
is then computed), or bad input.
"""

import json
import os
import pathlib
import sys

from absl import flags

from cellseg_jax.cli import define_device_flags, run_command
from cellseg_jax.errors import InputError, print_error

LOCAL = "local"
# Before libtpu is loaded where there is no TPU: it asks nobody, and writes no logs.
WITHOUT_A_TPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
                 "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_LOG_DIR": "disabled",
                 "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # the lock is for a TPU, of which there is none


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command, beside --config and --config.*."""
    flags.DEFINE_string("topology", LOCAL, "local: all devices of this machine; or a TPU slice as "
                        "GENERATION:AxB[xC], such as v5e:2x4", flag_values=values)
    flags.DEFINE_bool("batch", True, "search for the largest batch that fits: compiles a few "
                      "more programs", flag_values=values)
    flags.DEFINE_string("json", "", "a file for the same as data", flag_values=values)
    define_device_flags(values)


def main(args, overrides: list[tuple[str, str]]) -> int:
    """One plan; returns the exit code."""
    if not args.config:
        raise InputError("--config: missing; expected a file such as configs/quickstart.py")
    if args.topology != LOCAL:
        os.environ.update(WITHOUT_A_TPU, JAX_PLATFORMS="cpu")
    from cellseg_jax import config as config_lib
    from cellseg_jax.planning.plan import plan as plan_
    from cellseg_jax.planning.plan import rows
    from cellseg_jax.report import terminal

    config = config_lib.load(args.config, overrides)
    plan = plan_(config, args.topology, search=args.batch)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(plan, indent=2))
    if not plan["fits"]:
        print_error(f"{plan['key']}: {plan['refusal']}")
    terminal.summary(rows(plan))
    return 0 if plan["fits"] else 2


if __name__ == "__main__":
    sys.exit(run_command(main, define_flags))
