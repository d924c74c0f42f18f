"""Train and score the runs of a study, and go on where it was."""

import fnmatch

from cellseg_jax.cli import INTERRUPTED
from cellseg_jax.errors import InputError, nearest, print_error


def chosen_rows(text: str, rows) -> list[str]:
    """The rows that --rows names, in their order in the study."""
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    found = set()
    for pattern in wanted:
        matches = [pattern] if pattern in rows else fnmatch.filter(rows, pattern)
        if not matches:
            raise InputError(f"--rows: no row {pattern!r}{nearest(pattern, rows)}")
        found.update(matches)
    return [row for row in rows if row in found]


def dry_run(study, args, rows, repeats, task) -> int:
    """Print what would be run."""
    from cellseg_jax.studies.cost import estimate, print_estimate

    print_estimate(study, estimate(
        study, rows=rows, repeats=repeats, smoke=args.smoke, measure_seconds=args.measure), task)
    return 0


def collect(study, args, workdir, rows, repeats) -> int:
    """Write and print the tables of the finished runs."""
    from cellseg_jax.files import write_atomic
    from cellseg_jax.report import terminal
    from cellseg_jax.studies import render
    from cellseg_jax.studies import table as collection
    from cellseg_jax.studies.page import write_study_page

    if not workdir.is_dir():
        raise InputError(f"--workdir: no folder {workdir}; run the study first")
    table = collection.collect(study, workdir, rows=rows, repeats=repeats, smoke=args.smoke)
    for suffix, text in (("md", render.markdown), ("tex", render.latex), ("csv", render.csv_text)):
        write_atomic(workdir / f"table.{suffix}", text(table))
    if table.curves:
        write_atomic(workdir / "learning_curve.csv", render.curves_csv(table))
    render.show(table)
    write_study_page(table, workdir / "report.html")
    curves = f"; learning curves: {workdir}/learning_curve.csv" if table.curves else ""
    terminal.log(f"tables: {workdir}/table.md, .tex, .csv; page: {workdir}/report.html{curves}")
    return 0


def run(study, args, workdir, rows, repeats, task) -> int:
    """Train and score all runs of this task that are not done; the exit code."""
    from cellseg_jax import config as config_lib
    from cellseg_jax import studies
    from cellseg_jax.report import terminal
    from cellseg_jax.runs.folder import ENVIRONMENT_FILE, check_continues

    groups = {}
    for row in study.rows if rows is None else rows:
        for repeat in range(repeats):
            config = studies.config_of(study, row, repeat, smoke=args.smoke)
            folder = workdir / row / str(repeat)
            if (folder / ENVIRONMENT_FILE).exists():
                try:
                    check_continues(folder, config)
                except InputError as error:
                    raise InputError(f"row {row}, repeat {repeat}: {error}") from error
            groups.setdefault(config_lib.program_key(config), []).append((config, folder))
    runs = [one for group in groups.values() for one in group]
    mine = {folder for _, folder in runs[slice(*(len(runs) * i // task[1] for i in
                                                 (task[0], task[0] + 1)))]}
    groups = [[(c, f) for c, f in group if f in mine and not _done(c, f)]
              for group in groups.values()]
    groups = [group for group in groups if group]
    left = sum(map(len, groups))
    share = f"task {task[0]}/{task[1]}: " if task[1] > 1 else ""
    terminal.log(f"{study.title}: {share}{left} of {len(mine)} runs to do, in {len(groups)} "
                  f"program{'s' * (len(groups) != 1)}")
    said, left_out, busy = set(), [], False
    for number, group in enumerate(groups, 1):
        for configs, folders in _attempts(group):
            if len(configs) == len(group):
                terminal.log(f"--- program {number} of {len(groups)}: {len(group)} runs, "
                              f"{', '.join(sorted({f.parent.name for f in folders}))}")
            try:
                interrupted, in_use = _train(configs, folders, args)
            except InputError as error:
                if len(configs) > 1:
                    continue  # each alone, to find the one that is wrong
                left_out.append(folders[0])
                if str(error) not in said:
                    terminal.log(f"{folders[0]}: not run")
                    print_error(error)
                said.add(str(error))
                continue
            if interrupted:
                terminal.log("stopped after saving; the same command continues")
                return INTERRUPTED
            busy |= in_use
            if len(configs) == len(group):
                break
    if said:
        names = [f"{folder.parent.name}/{folder.name}" for folder in left_out]
        terminal.log(f"not run, {len(names)} of {left}: {', '.join(names)}")
        return 2
    if busy:
        terminal.log("other processes have some runs; start again when they have ended")
    return INTERRUPTED if busy else 0


def _attempts(group):
    """The whole group; then, if that failed on bad input, each run by itself."""
    yield [c for c, _ in group], [f for _, f in group]
    if len(group) > 1:
        for config, folder in group:
            yield [config], [folder]


def _train(configs, folders, args) -> tuple[bool, bool]:
    """Train and score runs of one program: (stopped by a signal, some are in use elsewhere)."""
    from cellseg_jax import train
    from cellseg_jax.config import derived
    from cellseg_jax.inference import evaluate
    from cellseg_jax.runs import page
    from cellseg_jax.runs.lock import InUse, Lock

    in_use = False
    results = train.train(configs, folders, backend=args.backend, slots=args.slots)
    for config, folder, result in zip(configs, folders, results, strict=True):
        if result.status in ("done", "stopped early") and derived.has_part(config, "test"):
            try:
                with Lock(folder):
                    if evaluate.read_scores(folder, "test", config) is None:
                        evaluate.evaluate(config, folder)
                    page.write_run_page(folder)
            except InUse:
                in_use = True
    status = {result.status for result in results}
    return "interrupted" in status, in_use or "in use" in status


def _done(config, folder) -> bool:
    """Whether the run has ended and, if it has something to be scored on, was scored."""
    from cellseg_jax import config as config_lib
    from cellseg_jax.config import derived
    from cellseg_jax.files import read_json
    from cellseg_jax.runs.folder import RESULT_FILE, scores_file

    result, scores = folder / RESULT_FILE, scores_file(folder)
    if derived.has_part(config, "test"):
        if not scores.exists():
            return result.exists() and read_json(result)["status"] == "non-finite"
        return read_json(scores).get("config_hash") == config_lib.identity(config)
    return result.exists()
