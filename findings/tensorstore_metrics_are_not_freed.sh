#!/usr/bin/env bash
# tensorstore 0.1.86: what experimental_collect_matching_metrics returns is never freed, nor what
# Spec.to_json does.
#
# Each call leaves a list and a dictionary for each metric in the process, which nothing refers to: a
# reference too many is counted in the extension. orbax-checkpoint 0.12.8 calls it before and after
# every save and restore, to log the bytes that were moved, so that a training that saves often grows
# by about 35 kB with each save, whatever is saved. No option of orbax turns it off.
#
# Reading a checkpoint, it also asks for the spec of each array, whose dictionaries stay: about 10 kB.
#
# Seen: of 13 metrics each of 2,000 calls leaves 13 objects and 8 kB; the JSON of a spec
# 7 objects and 3 kB, making the spec itself none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "tensorstore==0.1.86" "numpy==2.4.6"
"$folder/env/bin/python" - <<'PY'
import gc

import tensorstore as ts

CALLS = 2000


def kib():
    return int(open("/proc/self/statm").read().split()[1]) * 4


store = ts.open({"driver": "zarr", "kvstore": {"driver": "memory"},
                 "metadata": {"shape": [4], "dtype": "<f4"}}, create=True).result()
store[...] = 1


def left(call):
    """Objects and kB that stay after each call."""
    for _ in range(50):
        call()
    gc.collect()
    before, objects = kib(), len(gc.get_objects())
    for _ in range(CALLS):
        call()
    gc.collect()
    return (len(gc.get_objects()) - objects) / CALLS, (kib() - before) / CALLS


metrics = left(lambda: ts.experimental_collect_matching_metrics("/tensorstore/"))
spec, json = left(store.spec), left(lambda: store.spec().to_json())
print(f"objects and kB that each call leaves: metrics {metrics}, spec {spec}, its JSON {json}")
assert metrics[0] > 5, "they are freed now"
assert spec[0] < 0.1 and json[0] > 1, "it is freed now"
PY
