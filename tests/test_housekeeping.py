"""What may go and what must stay: one test a kind, and whatever is found is what is removed."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dd_bench import files, housekeeping
from dd_bench import store as store_module
from dd_bench.checkpoint import save_tree
from dd_bench.files import home, lock_file, locked
from dd_bench.housekeeping import Survey, Waste, remove
from dd_bench.run import lock_of_run, open_run
from dd_bench.sets import Images, Provenance, SyntheticSet
from dd_bench.store import Store
from dd_bench.stored import StoredSet
from dd_bench.targets import HardLabels
from tests.test_runs import other_process_at, save_stage

NOW = time.time()
DAY = 86_400.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What housekeeping takes for the time; ``clock.now`` may be set."""
    clock = SimpleNamespace(now=NOW, time=lambda: clock.now)
    monkeypatch.setattr(housekeeping, "time", clock)
    monkeypatch.setattr(store_module, "render_card", lambda *_: b"\x89PNG, in name only")
    return clock


def aged(path: Path, days: float) -> Path:
    """Returns a file or folder after making it, and all in it, older."""
    for one in (path, *path.rglob("*")):
        os.utime(one, (NOW - days * DAY,) * 2, follow_symlinks=False)
    return path


def make_file(path: Path, *, days: float = 30, content: bytes = b"12345") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return aged(path, days)


def make_run(name: str, *, days: float = 30) -> Path:
    return aged(save_stage(name, "stage", 1, 3).parent, days)


def make_network(name: str, *, days: float = 30) -> Path:
    folder = home() / "teachers" / name
    make_file(folder / "weights.safetensors")
    make_file(folder / "manifest.json")
    return aged(folder, days)


def make_set(*parents: str, seed: int = 0) -> StoredSet:
    classes = torch.tensor([0, 1])
    origin = Provenance("infer", "p", {}, "digits", "f0", 1, seed, "0123456789ab", parents=parents)
    return Store().write(SyntheticSet(Images(torch.zeros(2, 1, 8, 8)), HardLabels(classes), origin, "quick"))


def make_cache(kind: str = "offsets", *, days: float = 0) -> Path:
    path = home() / kind / f"{'0123456789abcdef'}.safetensors"
    save_tree(path, {kind: torch.zeros(3), "seconds": 1.0})
    return aged(path, days)


def survey(days: float = 7, caches: tuple[Path, ...] = ()) -> Survey:
    return housekeeping.survey(days, caches)


def going(kind: str | None = None, **options: object) -> list[str]:
    """Returns what may go, but for locks, as it lies in ``home()``."""
    found = survey(**options).waste  # type: ignore[arg-type]
    return [str(one.path.relative_to(home())) for one in found if one.kind == kind or (not kind and one.kind != "lock")]


def everything() -> set[Path]:
    return set(home().parent.rglob("*"))


# --- nothing to do ----------------------------------------------------------------------------------------------------


def test_no_home_at_all() -> None:
    assert survey() == Survey((), ())
    assert not home().exists(), "looking changes nothing"


def test_what_is_never_among_it() -> None:
    make_network("teacher")
    stored = make_set("teacher")
    kept = [
        stored.path / "manifest.json",
        make_file(home() / "reports" / "infer-1.jsonl"),
        make_file(home() / "experts" / "convnet3-ab" / "expert000.safetensors"),
        make_file(home() / "priors" / "0123456789abcdef.json"),
        make_file(home() / "wandb" / "wandb" / ".x.abcd1234.partial"),
        make_file(stored.path.parent / "somebody's own" / ".x.abcd1234.partial"),
        make_file(home() / "notes.partial"),
        make_file(home() / "teachers" / "mine" / "notes.txt"),
        make_file(home() / "runs" / "a file"),
    ]
    aged(home(), 400)
    for lock in (home() / "locks").iterdir():
        lock.unlink()
    assert survey(0) == Survey((), ())
    assert all(path.exists() for path in kept)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_runs_go_by_age(clock: SimpleNamespace) -> None:
    make_run("old", days=7)
    make_run("new", days=6.99)
    found = survey()
    assert [(one.kind, one.path.name) for one in found.waste] == [("run", "old")]
    assert found.waste[0].size_bytes == sum(file.stat().st_size for file in found.waste[0].path.iterdir())
    assert found.stays == ("1 × unfinished run: written to within 7 days",)
    assert going(days=6) == ["runs/new", "runs/old"]
    clock.now += 0.01 * DAY
    assert going() == ["runs/new", "runs/old"]
    assert survey(30).stays == ("2 × unfinished run: written to within 30 days",)


def test_the_newest_file_of_a_run_counts() -> None:
    make_file(make_run("a") / "labels.f16", days=1)
    assert going() == []


def test_a_run_of_another_process_stays() -> None:
    held, idle = make_run("held"), make_run("idle")
    with other_process_at("held") as process:
        found = survey(0)
        assert [one.path for one in found.waste if one.kind == "run"] == [idle]
        assert "1 × unfinished run: a process is at it" in found.stays
        assert all(map(remove, found.waste))
        assert held.exists()
        assert lock_file(lock_of_run("held")).exists()
        process.kill()
        process.wait()
        assert going("run", days=0) == ["runs/held"]
    for one in survey(0).waste:
        assert remove(one)
    assert not list((home() / "runs").iterdir())
    assert not list((home() / "locks").iterdir())


def test_a_run_that_came_into_use_stays() -> None:
    taken, moved, gone = make_run("a"), make_run("b"), make_run("c")
    found = survey().waste
    make_file(moved / "report.jsonl", days=0)
    gone.rename(home() / "elsewhere")
    with open_run("a"):
        assert [remove(one) for one in found] == [False, False, False]
        assert taken.exists()
    assert moved.exists()


def test_a_damaged_run_goes_like_others() -> None:
    make_file(make_run("run") / "stage.safetensors", content=b"bad")
    assert going() == ["runs/run"]
    aged(make_file(home() / "runs" / "empty" / "x").parent, 30)
    (home() / "runs" / "empty" / "x").unlink()
    aged(home() / "runs" / "empty", 30)
    assert going() == ["runs/empty", "runs/run"]


def test_nobody_sees_half_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cleaning that is cut off leaves no run of fewer stages, and the next one finds the rest."""
    make_run("run")

    def cut_off(folder: Path) -> None:
        raise KeyboardInterrupt

    (found,) = survey().waste
    with monkeypatch.context() as patch:
        patch.setattr(housekeeping.shutil, "rmtree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            remove(found)
    assert not (home() / "runs" / "run").exists()
    (leftover,) = survey().waste
    assert leftover.kind == "leftover"
    assert remove(leftover)
    assert not list((home() / "runs").iterdir())


# --- leftovers --------------------------------------------------------------------------------------------------------


def test_leftovers_of_files() -> None:
    cut = [
        make_file(home() / "teachers" / "net" / ".weights.safetensors.abcd_123.partial", days=0.01),
        make_file(home() / "offsets" / ".x.safetensors.abcd_123.partial", days=0.01),
        make_file(make_run("new", days=1) / ".stage.safetensors.abcd_123.partial", days=0.01),
    ]
    for name in ("x.abcd1234.partial", ".x.partial", ".x.abcd1234.former", ".x.ABCD1234.partial"):
        make_file(home() / "offsets" / name)
    assert sorted(going()) == sorted(str(path.relative_to(home())) for path in cut)
    with locked("other work"):
        found = survey()
        assert [one for one in found.waste if one.kind == "leftover"] == []
        assert "3 × leftover of a write: of the last hour, and processes are at work" in found.stays
        for path in cut:
            aged(path, 1 / 24)
        assert len(going()) == 3
    for one in survey().waste:
        assert remove(one)
    assert not any(path.exists() for path in cut)
    assert len(list((home() / "offsets").iterdir())) == 4


def test_a_fresh_leftover_stays_if_a_process_has_come() -> None:
    path = make_file(home() / "offsets" / ".x.abcd1234.partial", days=0)
    (found,) = survey().waste
    with locked("work"):
        assert not remove(found)
    assert path.exists()


def test_leftovers_in_a_run_are_the_run_s_own() -> None:
    make_file(make_run("old") / ".stage.abcd1234.partial")
    make_file(make_run("held") / ".stage.abcd1234.partial")
    with open_run("held"):
        assert going() == ["runs/old"]


def test_leftovers_of_the_store() -> None:
    stored = make_set()
    place = stored.path.parent
    partial = make_file(place / f".{stored.id}.abcd1234.partial" / "tensors.safetensors").parent
    former = make_file(place / f".{stored.id}.abcd1234.former" / "tensors.safetensors").parent
    only_copy = make_file(place / ".feedfeedfeed.abcd1234.former" / "tensors.safetensors").parent
    for path in (partial, former, only_copy):
        aged(path, 1)
    found = [one for one in survey().waste if one.kind == "leftover"]
    assert [one.path for one in found] == [former, partial]
    with locked(f"set {stored.path.resolve()}"):
        assert [remove(one) for one in found] == [False, False], "a writer is at that set"
    assert [remove(one) for one in found] == [True, True]
    assert only_copy.exists(), "the store will put it back"
    assert Store().list() == (stored,)


# --- networks ---------------------------------------------------------------------------------------------------------


def test_networks_that_no_set_names() -> None:
    for name in ("named", "idle", "young"):
        make_network(name, days=1 if name == "young" else 30)
    unfinished = make_file(home() / "teachers" / "unfinished" / "weights.safetensors").parent
    make_set("named", "not-here")
    found = survey()
    assert [one.path.name for one in found.waste if one.kind == "network"] == ["idle", "unfinished"]
    assert found.stays == ("1 × network that no set names: written to within 7 days",)
    for one in found.waste:
        assert remove(one)
    assert sorted(path.name for path in (home() / "teachers").iterdir()) == ["named", "young"]
    assert not unfinished.exists()


def spoil(stored: StoredSet) -> Iterator[None]:
    (stored.path / "manifest.json").write_text("{}")
    yield


def run_young(_: StoredSet) -> Iterator[None]:
    make_run("young", days=1)
    yield


def run_before_its_first_stage(_: StoredSet) -> Iterator[None]:
    with other_process_at("no folder yet"):
        yield


def some_work(_: StoredSet) -> Iterator[None]:
    with locked("set 0123"):
        yield


@pytest.mark.parametrize(
    ("surroundings", "reason"),
    [
        (spoil, "a damaged set may name it"),
        (run_young, "an unfinished run may want it"),
        (run_before_its_first_stage, "processes are at work"),
        (some_work, "processes are at work"),
    ],
)
def test_networks_stay(surroundings: Callable[[StoredSet], Iterator[None]], reason: str) -> None:
    path = make_network("idle")
    stored = make_set("named")
    for _ in surroundings(stored):
        found = survey()
        assert [one for one in found.waste if one.kind == "network"] == []
        assert f"1 × network that no set names: {reason}" in found.stays
    assert path.exists()


def test_a_network_stays_if_a_process_has_come() -> None:
    make_network("idle")
    (found,) = survey().waste
    with locked("set 0123"):
        assert not remove(found)
    assert remove(found)


# --- caches, locks ----------------------------------------------------------------------------------------------------


def test_caches() -> None:
    path = make_cache()
    assert going() == [], "only what the caller calls a cache"
    assert going(caches=(path,)) == ["offsets/0123456789abcdef.safetensors"]
    (found,) = survey(caches=(path,)).waste
    with locked("set 0123"):
        assert going(caches=(path,)) == []
        assert survey(caches=(path,)).stays == ("1 × cached file: processes are at work",)
        assert not remove(found)
    assert remove(found)
    assert not path.exists()


def test_locks() -> None:
    with locked("idle"):
        pass
    make_file(home() / "locks" / "notes.txt")
    with locked("held"):
        (found,) = survey().waste
        assert (found.kind, found.path) == ("lock", lock_file("idle"))
        with locked("idle"):
            assert not remove(found)
        assert remove(found)
        assert not remove(found), "it is gone"
    assert {path.name for path in (home() / "locks").iterdir()} == {lock_file("held").name, "notes.txt"}


def test_a_lock_holds_though_its_file_is_removed_while_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, the file goes: who asks must not end with a lock on nothing."""
    with locked("work"):
        pass
    acquire, once = os.open, [True]

    def opening(path: str, *rest: int) -> int:
        handle = acquire(path, *rest)
        if once and str(path).endswith(".lock"):
            once.clear()
            assert files.remove_lock(lock_file("work"))
        return handle

    monkeypatch.setattr(os, "open", opening)
    with locked("work", wait_seconds=5):
        assert not once
        assert lock_file("work").exists()
        assert files.is_held(lock_file("work"))


# --- links and vanishing ----------------------------------------------------------------------------------------------


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    make_file(outside / "run" / "stage.f16")
    make_file(outside / ".x.abcd1234.partial")
    make_file(outside / "network" / "weights.safetensors")
    make_file(outside / "0123456789abcdef.safetensors")
    for folder in ("runs", "teachers", "offsets", "locks"):
        (home() / folder).mkdir(parents=True)
    (home() / "runs" / "linked").symlink_to(outside / "run")
    (home() / "teachers" / "linked").symlink_to(outside / "network")
    (home() / "deep").symlink_to(outside)
    (home() / "offsets" / ".x.abcd1234.partial").symlink_to(outside / ".x.abcd1234.partial")
    (home() / "runs" / ".y.abcd1234.partial").symlink_to(outside)
    (home() / "locks" / "x.lock").symlink_to(outside / ".x.abcd1234.partial")
    (home() / "offsets" / "0123456789abcdef.safetensors").symlink_to(outside / "0123456789abcdef.safetensors")
    aged(outside, 30)
    before = everything()
    found = survey(
        0, (home() / "offsets" / "0123456789abcdef.safetensors", home() / "deep" / "0123456789abcdef.safetensors")
    )
    assert found == Survey((), ("1 × unfinished run: it lies elsewhere",))
    assert everything() == before


@pytest.mark.parametrize("linked", ["runs", "teachers", "locks"])
def test_a_linked_folder_is_left_alone(tmp_path: Path, linked: str) -> None:
    with locked("idle"):
        pass
    make_run("run")
    make_network("net")
    (home() / linked).rename(tmp_path / "outside")
    (home() / linked).symlink_to(tmp_path / "outside")
    kinds = {"runs": "run", "teachers": "network", "locks": "lock"}
    assert kinds[linked] not in [one.kind for one in survey(0).waste]


def test_a_linked_home_is_home(tmp_path: Path) -> None:
    make_run("run")
    home().rename(tmp_path / "outside")
    home().symlink_to(tmp_path / "outside")
    (found,) = survey().waste
    assert remove(found)
    assert not list((tmp_path / "outside" / "runs").iterdir())


def test_a_link_in_a_run_goes_and_not_what_it_leads_to(tmp_path: Path) -> None:
    kept = make_file(tmp_path / "outside" / "precious")
    (make_run("run") / "link").symlink_to(kept.parent)
    aged(home() / "runs" / "run", 30)
    (found,) = survey().waste
    assert found.size_bytes < kept.stat().st_size + (found.path / "stage.safetensors").stat().st_size
    assert remove(found)
    assert kept.exists()


def test_a_link_put_in_its_place_meanwhile(tmp_path: Path) -> None:
    run = make_run("run")
    (found,) = survey().waste
    run.rename(tmp_path / "outside")
    run.symlink_to(tmp_path / "outside")
    assert not remove(found)
    assert (tmp_path / "outside" / "stage.safetensors").exists()


def test_a_folder_that_became_a_link_meanwhile(tmp_path: Path) -> None:
    make_run("run")
    (found,) = survey().waste
    (home() / "runs").rename(tmp_path / "outside")
    (home() / "runs").symlink_to(tmp_path / "outside")
    assert not remove(found)
    assert (tmp_path / "outside" / "run" / "stage.safetensors").exists()


def test_what_vanished_is_no_error() -> None:
    gone = [
        Waste(kind, home() / "x" / ".x.abcd1234.partial", 1, NOW) for kind in ("run", "leftover", "network", "cache")
    ]  # type: ignore[arg-type]
    gone.append(Waste("lock", home() / "locks" / "x.lock", 0, NOW))
    assert not any(map(remove, gone))


def test_what_vanishes_while_it_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    make_file(home() / "offsets" / ".x.abcd1234.partial")
    make_file(home() / "offsets" / ".y.abcd1234.partial")
    measure = files.measure

    def vanishing(path: Path) -> tuple[int, float]:
        if path.name.startswith(".x"):
            path.unlink()
        return measure(path)

    monkeypatch.setattr(housekeeping, "measure", vanishing)
    assert going() == ["offsets/.y.abcd1234.partial"]


def test_exactly_what_was_found_is_removed() -> None:
    make_network("named")
    make_network("idle")
    make_set("named")
    make_run("old")
    cache = make_cache()
    make_file(home() / "offsets" / ".x.abcd1234.partial")
    found = survey(caches=(cache,)).waste
    assert [one.kind for one in found].count("lock") == 1
    inside = {path for one in found if one.path.is_dir() for path in one.path.rglob("*")}
    before = everything()
    assert all(map(remove, found))
    assert everything() == before - {one.path for one in found} - inside
