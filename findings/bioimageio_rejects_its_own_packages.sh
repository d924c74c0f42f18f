#!/usr/bin/env bash
# bioimageio.spec 0.5.12.0 with pydantic 2.14: every description that names a file is "invalid".
#
# bioimageio.spec asks for pydantic>=2.10.3,<3, so that a new installation gets 2.14. There each valid
# description of a model or dataset with a documentation file fails validation, with a message about a
# serialiser's 'index_key' that names no field of the description; bioimageio.core then refuses to test
# or to run the model ("expected model description"). With pydantic 2.13 the same files pass. Whoever
# checks an exported package should pin pydantic<2.14 before looking for a mistake in the package.
#
# Seen: pydantic 2.13.0: DatasetDescr, valid-format; pydantic 2.14.0 and 2.14.4: InvalidDescr, failed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "bioimageio.spec==0.5.12.0"
cat > "$folder/README.md" <<'TEXT'
# Two images

Two images of cells.
TEXT
cat > "$folder/rdf.yaml" <<'TEXT'
format_version: 0.3.0
type: dataset
name: two images
description: Two images of cells.
authors: [{name: Ada}]
cite: [{text: A paper, doi: 10.1038/s41592-021-01308-y}]
license: CC-BY-4.0
documentation: README.md
TEXT
seen() {
    "$folder/env/bin/pip" install -q "pydantic==$1"
    "$folder/env/bin/python" -W ignore - "$folder/rdf.yaml" <<'PY' | tail -n 1
import sys

import pydantic
from bioimageio.spec import load_description

found = load_description(sys.argv[1])
print(pydantic.VERSION, type(found).__name__, found.validation_summary.status)
PY
}
for expected in "2.13.0 DatasetDescr valid-format" "2.14.0 InvalidDescr failed" "2.14.4 InvalidDescr failed"; do
    found=$(seen "${expected%% *}")
    echo "$found"
    [ "$found" = "$expected" ] || { echo "expected $expected: it behaves otherwise now"; exit 1; }
done
