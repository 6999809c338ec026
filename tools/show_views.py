"""Draw what training sees: python tools/show_views.py experiment=<name> [setting=value ...], as for tools/train.py."""

from trans4pass.cli import run

if __name__ == "__main__":
    run("show-views")
