"""The Bayesian correlated t-test beside that of baycomp, which its authors wrote."""

import numpy as np
import pytest

from cellseg_jax.studies import stats
from cellseg_jax.studies.equivalence import posterior

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("runs, folds", [(1, 5), (1, 10), (10, 10)])
@pytest.mark.parametrize("rope", [0.001, 0.01, 0.03])
def test_posterior_equals_baycomp(runs, folds, rope):
    baycomp = pytest.importorskip("baycomp")
    rng = np.random.default_rng(runs + folds)
    a, b = rng.normal([[0.82], [0.81]], 0.02, (2, runs * folds))
    below, inside, above = baycomp.two_on_single(b, a, rope=rope, runs=runs)
    found = posterior(stats.paired(a, b, test_train_ratio=1 / (folds - 1)), rope)
    assert found == pytest.approx((below, inside, above), abs=1e-12)
