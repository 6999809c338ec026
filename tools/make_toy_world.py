"""Render the toy world, a stand-in for real data: python tools/make_toy_world.py [setting=value ...]."""

from trans4pass.cli import run

if __name__ == "__main__":
    run("toy-world")
