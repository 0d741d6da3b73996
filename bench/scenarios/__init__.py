"""What is measured, one scenario a file: each has `cases(plan)`, and a docstring that says what its figures mean."""

from __future__ import annotations

import importlib
import pkgutil

from bench.frame import Case, Plan


def names() -> list[str]:
    """Every scenario, in the order of the alphabet."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def cases(scenario: str, plan: Plan) -> list[Case]:
    """Its cases; of a quick run those that are marked."""
    module = importlib.import_module(f"bench.scenarios.{scenario}")
    found: list[Case] = module.cases(plan)
    return [case for case in found if case.quick or not plan.quick]
