"""The command line: trans4pass <tool> [setting=value ...]; in a checkout, tools/<tool>.py are the same."""

import importlib
import sys

# Name -> the configuration that it is called with, and the function that does it (imported only when it is asked for).
TOOLS = {
    "train": ("train", "pipeline.run", "train"),
    "show-views": ("train", "pipeline.show_views", "show_views"),
    "eval": ("eval", "inference.evaluation", "evaluate_checkpoint"),
    "predict": ("predict", "report.predicted", "predict"),
    "export": ("export", "inference.export", "export"),
    "adapt": ("adapt", "inference.adapt", "adapt"),
    "compare": ("compare", "report.compare", "compare_runs"),
    "report": ("report", "report.page", "report_runs"),
    "serve": ("serve", "report.serve", "serve"),
    "check-data": ("check_data", "pipeline.check_data", "check_data"),
    "toy-world": ("make_toy_world", "pipeline.make_toy_world", "make_toy_world"),
}


def run(name: str) -> None:
    """Run the tool of that name on `sys.argv`, and exit."""
    from trans4pass.pipeline.launch import main as launch_main  # Hydra and torch take seconds to import

    config, module, function = TOOLS[name]
    launch_main(config, getattr(importlib.import_module(f"trans4pass.{module}"), function))


def main() -> None:
    """The command `trans4pass`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in TOOLS and not name.startswith("-"):
        from trans4pass.settings import nearest  # as in `run`

        print(f"there is no tool {name}.{nearest(name, TOOLS)} There are {', '.join(TOOLS)}", file=sys.stderr)
        sys.exit(2)
    if name not in TOOLS:
        print(f"trans4pass <tool> [setting=value ...]\n\nTools: {', '.join(TOOLS)}\nHelp: trans4pass <tool> --help")
        sys.exit(0 if name in ("-h", "--help") else 2)
    sys.argv = [f"{sys.argv[0]} {name}", *sys.argv[2:]]
    run(name)


if __name__ == "__main__":
    main()
