"""The benchmark floor's commands: demo, bench."""

from __future__ import annotations

import argparse


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this floor's commands."""
