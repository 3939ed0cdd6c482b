"""Counts the inputs that were tried, over all processes, and says so at the end."""

import warnings
from collections.abc import Iterator
from importlib import import_module

import pytest

from tests.fuzz import watching


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    """What readers import when they need it: some of it makes folders of its own while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import_module("torch_geometric.utils")
    for name in ("sklearn.datasets", "torchvision.datasets", "PIL.Image", "matplotlib.figure"):
        import_module(name)


@pytest.fixture(autouse=True)
def _counted(request: pytest.FixtureRequest) -> Iterator[None]:
    before = watching.inputs
    yield
    request.node.user_properties.append(("inputs", watching.inputs - before))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tells the inputs of each test of this folder."""
    counts: dict[str, int] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "teardown":
                name = report.nodeid.partition("[")[0].rpartition("::")[2]
                counts[name] = counts.get(name, 0) + dict(report.user_properties).get("inputs", 0)
    counts = {name: count for name, count in counts.items() if count}
    if counts:
        terminalreporter.section("hostile inputs")
        for name, count in sorted(counts.items()):
            terminalreporter.line(f"{count:>7,}  {name}")
        terminalreporter.line(f"{sum(counts.values()):>7,}  in all")
