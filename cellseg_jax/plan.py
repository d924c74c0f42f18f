"""What a run costs and whether it fits, before it is run: here, on GPUs or on a TPU slice.

    python -m cellseg_jax.plan --config=configs/unetr_sgd.py [--config.train.batch_size=8 ...]
        [--topology=local|h100|h200x8|a100|l4|rtx4090|v5e:2x4|...] [--nobatch] [--json=FILE]

Compiles the run's own train step and validation. For a TPU slice the compiler of libtpu does so
without a TPU (pip install -e ".[plan]"), for GPUs that of CUDA without a GPU (".[cuda]"). It
prints, and writes nothing but --json. Exit codes: 0 it fits, 2 it does not fit (what would fit is
then computed), or bad input.
"""

import json
import os
import pathlib
import sys

from absl import flags

from cellseg_jax import cli, errors

LOCAL = "local"
# Set before libtpu is loaded where there is no TPU: no metadata query, no log files, and no lock,
# which is for a TPU.
WITHOUT_A_TPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
                 "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_LOG_DIR": "disabled",
                 "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command, beside --config and --config.*."""
    cli.string(values, "topology", "local: all devices of this machine; or GPUs as NAMExN, such "
               "as h100x8; or a TPU slice as GENERATION:AxB[xC], such as v5e:2x4", default=LOCAL)
    cli.switch(values, "batch", "search for the largest batch that fits: compiles a few more "
               "programs", default=True)
    cli.string(values, "json", "a file for the same as data")
    cli.define_device_flags(values)


def main(args, overrides: list[tuple[str, str]]) -> int:
    """One plan; returns the exit code."""
    cli.require_config(args)
    if args.topology != LOCAL:
        os.environ.update(WITHOUT_A_TPU, JAX_PLATFORMS="cpu")
    from cellseg_jax import config as config_lib
    from cellseg_jax.planning import plan as planning
    from cellseg_jax.report import terminal

    config = config_lib.load(args.config, overrides)
    out = pathlib.Path(args.json)
    if args.json and (out.is_dir() or not out.parent.is_dir()):
        raise errors.InputError(f"--json: cannot write to {args.json!r}; expected a file such as "
                                "plan.json in a folder that exists")
    plan = planning.plan(config, args.topology, search=args.batch)
    if args.json:
        out.write_text(json.dumps(plan, indent=2))
    if not plan["fits"]:
        errors.print_error(f"{plan['key']}: {plan['refusal']}")
    terminal.summary(planning.rows(plan))
    return 0 if plan["fits"] else 2


if __name__ == "__main__":
    sys.exit(cli.run_command(main, define_flags))
