"""The config of a run: defaults, changes, rules, and what differs.

A config file is a Python file whose `get_config()` changes a few keys of `default()`. The options
of the chosen model and dataset join their sections in `complete`, so that they can be overridden
like any other key. A complete config is locked: `check` has passed and no key can be added.
"""

from cellseg_jax.config.compare import diff, flatten, identity, program_key
from cellseg_jax.config.defaults import FREE_KEYS, VALUE_KEYS, default
from cellseg_jax.config.edit import changed, check, complete, override, plain, unread
from cellseg_jax.config.user_file import as_json, blame, from_json, load, run_file, to_json
from cellseg_jax.config.values import set_value

__all__ = ["FREE_KEYS", "VALUE_KEYS", "as_json", "blame", "changed", "check", "complete",
           "default", "diff", "flatten", "from_json", "identity", "load", "override", "plain",
           "program_key", "run_file", "set_value", "to_json", "unread"]
