#!/usr/bin/env bash
# jax 0.10.2 on a CPU: a program that came from JAX's compile cache can be written to a file by
# jax.experimental.serialize_executable, without an error, but the file lacks its functions.
#
# A program that was compiled in the process is written whole. Whether the file is good so depends on
# whether an earlier process has compiled the same program: a script that writes the file works at
# its first run, and replaces the good file by one that fails at its second.
#
# Seen: the file of the process that compiled has 15,547 bytes and computes; that of the next process
# has 7,322, is read without an error, and the first call fails: "NOT_FOUND: Function
# multiply_exponential_fusion not found".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2" "numpy==2.4.6"
cat > "$folder/program.py" <<'PY'
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable

task, path = sys.argv[1:]
image = np.arange(64, dtype=np.float32).reshape(8, 8)
if task == "write":
    hits = []
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
    program = jax.jit(lambda x: jnp.exp(x / 64) @ jnp.sin(x).T).lower(image).compile()
    with open(path, "wb") as file:
        pickle.dump(serialize_executable.serialize(program), file)
    np.asarray(program(image))
    print("from the compile cache" if hits else "compiled")
else:
    with open(path, "rb") as file:
        program = serialize_executable.deserialize_and_load(*pickle.load(file))
    try:
        print("computes", np.asarray(program(image)).sum())
    except jax.errors.JaxRuntimeError as error:
        print("fails:", str(error).splitlines()[0])
PY
export JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR="$folder/cache"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
for file in first second; do
    written=$("$folder/env/bin/python" "$folder/program.py" write "$folder/$file")
    used=$("$folder/env/bin/python" "$folder/program.py" call "$folder/$file")
    echo "$file: $written, $(stat -c %s "$folder/$file") bytes; read and called it $used"
    echo "$written; $used" > "$folder/$file.txt"
done
grep -q "^compiled; computes" "$folder/first.txt"
grep -q "^from the compile cache; fails: NOT_FOUND: Function .* not found" "$folder/second.txt"
