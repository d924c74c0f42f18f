"""The front of all benchmarks.

    python benchmarks/run.py --list [NAME ...]         # what there is; the options of some
    python benchmarks/run.py NAME [NAME ...] [--OPTION=VALUE ...] [--out=DIR]
    python benchmarks/run.py --tables                  # docs/benchmarks.md, from docs/benchmarks/

Prints Markdown, and writes DIR/NAME.json with command, machine, load, commit and all numbers. A
result to be kept is a file of docs/benchmarks/; its tables stand in the page between
`<!-- NAME -->` and `<!-- /NAME -->`. An option goes to all benchmarks that have it. A benchmark
that fails says why and does not end the others; the exit code is then 1.
"""

import argparse
import ast
import importlib
import json
import pathlib
import re
import shlex
import sys
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path[0] = str(ROOT)

from benchmarks import measuring  # noqa: E402
from cellseg_jax import cli  # noqa: E402

PAGE, KEPT = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks"


def summaries() -> dict[str, str]:
    """{name: first line of its docstring}, without importing what may not be installed."""
    found = {}
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        tree = ast.parse(path.read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if "measure" in names:
            found[path.stem] = ast.get_docstring(tree).splitlines()[0]
    return found


def with_tables(page: str, records: dict[str, dict]) -> str:
    """The page with the tables of the records between their marks.

    Raises: ValueError for a record without marks, or marks without a record.
    """
    marked = set(re.findall(r"^<!-- (\w+) -->$", page, re.MULTILINE))
    if marked != records.keys():
        raise ValueError(f"{PAGE.name} has marks for {sorted(marked)}, {KEPT.name}/ has "
                         f"{sorted(records)}: give each file its <!-- NAME --> <!-- /NAME -->")
    for name, found in records.items():
        page = re.sub(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)",
                      lambda _, found=found: measuring.markdown(found), page, flags=re.DOTALL)
    return page


def kept() -> dict[str, dict]:
    """{name: record} of the results that the page shows."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json"))}


def run(name: str, options: argparse.Namespace, out: str) -> bool:
    """One benchmark, printed and written; whether it ended well."""
    module = importlib.import_module(f"benchmarks.{name}")
    command = shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]])
    try:
        found = measuring.record(name, command, vars(options), lambda: module.measure(options))
    except Exception:  # whatever it measures may raise; the other benchmarks still run
        traceback.print_exc()
        print(f"{name}: failed", file=sys.stderr)
        return False
    print(f"## {name}\n\n{measuring.markdown(found)}", flush=True)
    if out:
        pathlib.Path(out).mkdir(parents=True, exist_ok=True)
        text = json.dumps(found, indent=1, default=str)
        (pathlib.Path(out) / f"{name}.json").write_text(text + "\n")
    return True


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="see --list")
    parser.add_argument("--list", action="store_true", help="the benchmarks, or options of some")
    parser.add_argument("--tables", action="store_true", help="write the tables of the page")
    parser.add_argument("--out", default="", help="a folder for NAME.json")
    # argparse would take an option that it does not know for a name, where its value has a space.
    known = {option for action in parser._actions for option in action.option_strings}
    rest = [word for word in sys.argv[1:] if word.startswith("--")
            and word.partition("=")[0] not in known]
    args = parser.parse_args([word for word in sys.argv[1:] if word not in rest])
    found = summaries()
    if unknown := set(args.names) - found.keys():
        parser.error(f"got {', '.join(sorted(unknown))}; expected some of {', '.join(found)}")
    if args.tables:
        PAGE.write_text(with_tables(PAGE.read_text(), kept()))
        return 0
    if args.list and not args.names:
        print("\n".join(f"{name:20} {summary}" for name, summary in found.items()))
        return 0
    if not args.names:
        parser.error("expected the name of a benchmark, --list or --tables")
    parsers = {}
    for name in args.names:
        try:
            module = importlib.import_module(f"benchmarks.{name}")
        except ModuleNotFoundError as error:
            parser.error(f"{name} needs {error.name}: pip install it, or -e '.[parity]'")
        parsers[name] = measuring.parser_of(module.OPTIONS)
        parsers[name].prog = f"run.py {name}"
        if args.list:
            print(f"{name}: {module.__doc__}")
            parsers[name].print_help()
    if args.list:
        return 0
    left, options = set(rest), {}
    for name, own in parsers.items():
        options[name], others = own.parse_known_args(rest)
        left &= set(others)
    if left:
        parser.error(f"no benchmark of these has {' '.join(sorted(left))}; see --list NAME")
    cli.set_xla_flags()  # as commands do
    return int(not all([run(name, options[name], args.out) for name in args.names]))


if __name__ == "__main__":
    sys.exit(main())
