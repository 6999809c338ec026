"""Change the code in small ways and list the changes that no fast test notices: python tests/mutate.py --help.

pyproject.toml names the rooms and their tests under `tool.mutmut`; which test reaches which function, mutmut sees by
itself. Its files stay in `mutants/` until the next time: `mutmut browse` shows them.
"""

import argparse
import ast
import os
import random
import shutil
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process with more threads cannot be forked; read when torch is imported

import libcst as cst
from mutmut import __main__ as mutmut
from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

# With these a function is still a function; mutmut leaves out whatever is decorated, because of all the others.
HARMLESS = {"classmethod", "staticmethod", "once_differentiable", "torch.no_grad()", "torch.inference_mode()"}
MISSED = ("survived", "no tests")


def skips(visitor: MutationVisitor, node: cst.CSTNode, by_mutmut=MutationVisitor._skip_node_and_children) -> bool:
    """Whether nothing below `node` is changed. An error's words may change without a test noticing."""
    if isinstance(node, cst.FunctionDef):
        return not {cst.Module([]).code_for_node(decorator.decorator) for decorator in node.decorators} <= HARMLESS
    return isinstance(node, cst.Raise) or by_mutmut(visitor, node)


def sampled(size: int, seed: int, collect=mutmut.collect_source_file_mutation_data):
    """mutmut's collection of all mutants, cut to a random sample; 0 = all."""

    def collect_some(**arguments):
        mutants, files = collect(**arguments)
        return random.Random(seed).sample(mutants, min(size or len(mutants), len(mutants))), files

    return collect_some


def line_of(mutant: str, path: Path, diff: str) -> int:
    """The number of the line that a mutant changes."""
    function, owner = orig_function_and_class_names_from_key(mutant)
    source = path.read_text()
    node = ast.parse(source)
    for name in filter(None, (owner, function)):
        node = next(child for child in ast.walk(node) if getattr(child, "name", None) == name)
    removed = next(line[1:].strip() for line in diff.splitlines()[2:] if line.startswith("-"))
    lines = [line.strip() for line in source.splitlines()[node.lineno - 1 : node.end_lineno]]
    return node.lineno + lines.index(removed)


def report() -> None:
    """Print each missed mutant with its place and change, then the counts by room."""
    counts = {room: Counter() for room in config().only_mutate}
    for path in mutmut.walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        room = next(room for room in counts if fnmatch(str(path), room))
        for mutant, code in data.exit_code_by_key.items():
            status = status_by_exit_code[code]
            counts[room][status] += 1
            if status in MISSED:
                diff = get_diff_for_mutant(mutant, path=path)
                print(f"\n{path}:{line_of(mutant, path, diff)}: {status}, {mutant}")
                print("\n".join(line for line in diff.splitlines()[2:] if line.startswith(("-", "+"))))
    print(f"\n{'room':36} {'tried':>6} {'missed':>6} {'killed':>7} {'by time':>7}")
    for room, count in counts.items():
        tried, missed = count.total() - count["not checked"], sum(count[status] for status in MISSED)
        if tried:
            print(f"{room:36} {tried:6} {missed:6} {100 * (1 - missed / tried):6.1f}% {count['timeout']:7}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="patterns of functions, as in 'trans4pass.methods*'; all where none")
    parser.add_argument("--sample", type=int, default=0, help="mutants to try, chosen at random; 0 = all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at a time")
    arguments = parser.parse_args()
    shutil.rmtree("mutants", ignore_errors=True)  # it would keep results of older tests
    MutationVisitor._skip_node_and_children = skips
    mutmut.collect_source_file_mutation_data = sampled(arguments.sample, arguments.seed)
    mutmut._run(arguments.names, arguments.jobs)
    report()


if __name__ == "__main__":
    main()
