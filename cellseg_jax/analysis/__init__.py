"""What lies inside a trained run, by the name of the question.

Each takes (workdir, config, folder, its own options by name) and leaves tables and pictures in
`folder`; see report.analysis_page.Findings.
"""

from cellseg_jax.analysis import filters, gradients, pruning, weights

ANALYSES = {
    "pruning": pruning.analyse,
    "weights": weights.analyse,
    "gradients": gradients.analyse,
    "filters": filters.analyse,
}
