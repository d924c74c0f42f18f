"""Sections of a study's page on what single rows are worth: cost, margin, next step, images."""

from cellseg_jax.report import front_chart
from cellseg_jax.report.document import NONE, Cell, number, soft
from cellseg_jax.report.row_charts import MARKERS
from cellseg_jax.runs.resources import RESOURCES
from cellseg_jax.studies import pareto, stats
from cellseg_jax.studies.confounders import FOLLOWS, NAMED, NOT_NAMED, text
from cellseg_jax.studies.output import image_wins
from cellseg_jax.studies.output import table_cells as cells
from cellseg_jax.studies.output.disagreement import pictures
from cellseg_jax.studies.output.next_step import next_step
from cellseg_jax.studies.output.sentences import within_texts
from cellseg_jax.studies.output.summary import headline

FRONT_MARKERS = {pareto.FRONT: "up", pareto.UNSURE: "circle", pareto.DOMINATED: "diamond",
                 pareto.NOT_WHOLE: "cross"}
MOST_POINTS = 60  # of a chart of the front


def fronts(table) -> list[dict]:
    """Charts of the headline score over each cost, with the rows that none beats for less."""
    metric, found = headline(table), []
    for cost in pareto.COSTS:
        kind = RESOURCES[cost]
        points = _most(pareto.points(table, metric, cost))
        if len({one.cost for one in points}) < 2:
            continue
        chart = front_chart.front(
            f"{metric} over {kind.title}", (kind.title, metric),
            [(one.name, one.cost / kind.divisor, one.score, one.sd,
              MARKERS[FRONT_MARKERS[one.kind]], one.kind == pareto.FRONT) for one in points],
            upwards=stats.larger_is_better(metric), limits=stats.bounds(metric))
        found.append({"title": kind.title, "chart": chart,
                      "key": [(one.name, one.kind) for one in points]})
    return found


def _most(points) -> list[pareto.Point]:
    """At most MOST_POINTS in their order: those of the front, then the first of the others."""
    kept = sorted(points, key=lambda one: one.kind != pareto.FRONT)[:MOST_POINTS]
    return [one for one in points if one in kept]


def advice(table) -> dict:
    """What to do about each row, and the keys in which it differs from the baseline."""
    rows = []
    for row in table.rows:
        named, other = ([soft(text(one)) for one in row.differs if one.why == why]
                        for why in (NAMED, NOT_NAMED))
        follows = ", ".join(one.key for one in row.differs if one.why == FOLLOWS)
        rows.append([cells.row_name(table, row), next_step(table, row) or NONE,
                     Cell("confounded", below=tuple(other), kind="v worse") if other else NONE,
                     Cell(named[0] if named else "", below=(
                         *named[1:], soft(f"from which follow {follows}" if follows else "")))
                     if named or follows else NONE])
    return {"head": ["row", "what to do next", "differs in, unnamed", "differs in, named"],
            "rows": rows}


def margins(table) -> dict | None:
    """What is shown within the margins of the study, with the Bayesian reading."""
    rows = [[cells.row_name(table, row), metric, Cell(*cells.difference(
                row.compared[metric], metric)), *within_texts(row, metric)]
            for row in table.rows for metric in row.within]
    return {"head": ["row", "metric", "difference [95 % interval]", "within the margin",
                     "p (no worse)", "p (equal)", "P(worse/equal/better)"],
            "rows": rows} if rows else None


def won(table, by_run, column) -> dict | None:
    """The images on which each row wins and loses most against the baseline.

    Args:
      by_run: {row: disagreement.run_scores}.
    """
    wins = image_wins.of_rows(table, by_run, column)
    rows = [[cells.row_name(table, row), *map(_listed, wins[row.name])]
            for row in table.rows if any(wins.get(row.name, ()))]
    if not rows:
        return None
    names = {one.name for sides in wins.values() for images in sides for one in images}
    return {"rows": rows, "strips": image_wins.strips(table, wins, pictures(table, names))}


def _listed(images) -> Cell | str:
    """Images with what a row gains on them, and its own score, a line each."""
    lines = [f"{one.name} {one.gain:+.3f} ({number(one.mine, '.3f')})" for one in images]
    return Cell(lines[0], below=tuple(lines[1:]), kind="small") if lines else NONE
