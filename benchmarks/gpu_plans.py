"""Plans of the shipped configs for GPUs that are not here: memory by category, largest batch.

    python benchmarks/run.py gpu_plans [--configs=quickstart] [--topologies=h100,h100x8]

Needs the extra cuda, not a GPU. The largest batch is searched for on the first topology.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from benchmarks.measuring import Result, Table

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
OPTIONS = {
    "configs": (sorted(path.stem for path in CONFIGS.glob("*.py")), "names of config files"),
    "topologies": (["h100", "h100x8"], "of cellseg_jax.plan"),
    "nobatch": (False, "without the search for the largest batch"),
    "keep": ("", "a folder of the plans made so far, with which a second start goes on"),
}
MIB = 2**20
HEAD = ["config", "GPUs", "batch", "state, MiB", "images", "temporaries", "of it workspaces",
        "training", "validation", "fits", "largest batch", "all-reduced", "compiled, s"]


def planned(config: str, topology: str, folder, *, search: bool) -> dict:
    """The plan as data, kept in a folder."""
    file = pathlib.Path(folder, f"{config}_{topology}.json")
    if not file.exists():
        command = [sys.executable, "-m", "cellseg_jax.plan", f"--config={CONFIGS / config}.py",
                   f"--topology={topology}", f"--json={file}", *([] if search else ["--nobatch"])]
        done = subprocess.run(command, capture_output=True, text=True)
        if not file.exists():
            raise RuntimeError(f"{config}, {topology}: {done.stderr[-2000:]}")
    return json.loads(file.read_text())


def row(config: str, plan: dict) -> list:
    """Of the table, MiB of each GPU."""
    memory = plan.get("memory", {})
    mib = lambda *names: round(sum(memory.get(name, 0) for name in names) / MIB)
    return [config, plan["topology"], plan["batch_size"],
            mib("parameters", "optimizer", "averaged", "batch_stats"), mib("images"),
            mib("temporaries"), round(plan["workspace"] / MIB), mib(*memory),
            round(plan["validation"] / MIB), "yes" if plan["fits"] else "no",
            plan.get("largest_batch"), round(plan.get("all_reduced", 0) / MIB, 1),
            round(plan["compile_seconds"])]


def measure(options) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        if options.keep:
            pathlib.Path(options.keep).mkdir(parents=True, exist_ok=True)
        return result(options, options.keep or folder)


def result(options, folder) -> Result:
    """All plans, made or found in the folder."""
    rows, plans = [], {}
    for config in options.configs:
        for topology in options.topologies:
            search = topology == options.topologies[0] and not options.nobatch
            plan = plans[f"{config} {topology}"] = planned(config, topology, folder,
                                                               search=search)
            rows.append(row(config, plan))
            print(*rows[-1], file=sys.stderr)
    found = {plan["topology"]: f"{plan['device']} with {plan['limit'] / 2**30:.1f} GiB "
             f"({plan['limit_source']})" for plan in plans.values()}
    notes = [f"{name}: {text}." for name, text in found.items()]
    return Result([Table(HEAD, rows)], notes, plans)
