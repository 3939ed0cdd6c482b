"""Raw graph sets: read as they are, split as published, refused in one line where they are not sound."""

import io
import pickle
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dd_bench.data.graph_reading import read_graphs
from dd_bench.data.graph_sources import _OGB_URL, _TU_URL, make_graphs
from dd_bench.data.graphs import load
from dd_bench.data.prepare import find
from dd_bench.errors import DataError
from tests.data.graph_files import Toy, assert_is, mutag, toys, write_ogb, write_tu

ATOMS, BONDS = (119, 5, 12, 12, 10, 6, 6, 2, 2), (5, 6, 2)


def tenths(count: int) -> tuple[list[int], list[int], list[int]]:
    """The published split of TU sets, from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        order = torch.randperm(count).tolist()
    tenth = -(-count // 10)
    return sorted(order[2 * tenth :]), sorted(order[tenth : 2 * tenth]), sorted(order[:tenth])


def assert_splits(name: str, data: Path, graphs: list[Toy], split: tuple[list[int], ...], classes: list[int]) -> None:
    for rows, part in zip(read_graphs(name, ("train", "validation", "test"), data), split, strict=True):
        assert_is(rows.graphs, rows.labels, [graphs[i] for i in part], classes)


@pytest.mark.parametrize(("twice", "least"), [(False, 0), (True, 1)])
def test_tu_matches_reference(twice: bool, least: int, tmp_path: Path) -> None:
    graphs = mutag(63)
    write_tu(tmp_path, "MUTAG", graphs, twice=twice, least=least)
    assert_splits("mutag", tmp_path, graphs, tenths(63), [-1, 1])
    assert any(not graph.edges for graph in graphs), "graphs of isolated nodes are among them"


def test_tu_agrees_with_pytorch_geometric(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    raw = write_tu(tmp_path, "MUTAG", mutag(40))
    tensors = make_graphs("mutag", [tmp_path])
    from torch_geometric.datasets import TUDataset
    from torch_geometric.io import read_tu_data

    data, slices, _ = read_tu_data(str(raw), "MUTAG")
    recwarn.clear()
    assert torch.equal(data.x.argmax(1), tensors["nodes"][:, 0].long())
    order = (data.edge_index + slices["x"][:-1].repeat_interleave(slices["edge_index"].diff()))[[1, 0]]
    order = (order[0] * 1000 + order[1]).argsort()
    assert torch.equal(data.edge_index[:, order], tensors["arcs"].long())
    assert torch.equal(data.edge_attr.argmax(1)[order], tensors["edges"][:, 0].long())
    assert torch.equal(slices["x"].diff(), tensors["sizes"].long())
    assert torch.equal(data.y, tensors["labels"])
    assert f"{TUDataset.url}/MUTAG.zip" == _TU_URL.format("MUTAG")


def test_gaps_between_labels_are_kept(tmp_path: Path) -> None:
    """DD's raw labels run from 1 to 89 and leave seven out; Mirage's published labels go by the raw values."""
    graphs = toys(40, (89,), (), (1, 2))
    graphs[0].nodes[0], graphs[1].nodes[0] = (0,), (88,)
    graphs = [Toy([(n[0] // 2 * 2,) for n in graph.nodes], graph.edges, graph.label) for graph in graphs]
    graphs[0].edges = {(0, 1): ()}
    graphs[0].nodes = [(0,), (88,)]
    write_tu(tmp_path, "DD", graphs, least=1)
    order = np.random.RandomState(0).permutation(40).tolist()
    split = (sorted(order[:32]), sorted(order[32:36]), sorted(order[36:]))
    assert_splits("dd", tmp_path, graphs, split, [1, 2])


def test_degrees_stand_in_for_labels(tmp_path: Path) -> None:
    graphs = toys(40, (), (), (0, 1))
    graphs[0] = Toy([()] * 3, {(0, 1): ()}, 0)
    write_tu(tmp_path, "IMDB-BINARY", graphs, twice=True)
    for graph in graphs:  # a neighbour counts once, however often its line stands there
        graph.nodes = [(sum(v == target for target, _, _ in graph.arcs()),) for v in range(len(graph.nodes))]
    assert_splits("imdb-binary", tmp_path, graphs, tenths(40), [0, 1])


def test_loops_are_dropped(tmp_path: Path) -> None:
    graphs = mutag()
    raw = write_tu(tmp_path, "MUTAG", graphs)
    for part, line in (("A", "3, 3"), ("edge_labels", "2")):
        path = raw / f"MUTAG_{part}.txt"
        path.write_text(f"{line}\n{path.read_text()}")
    assert_splits("mutag", tmp_path, graphs, tenths(60), [-1, 1])


def molecules() -> tuple[list[Toy], tuple[list[int], list[int], list[int]]]:
    graphs = toys(30, ATOMS, BONDS, (0, 1))
    return graphs, (list(range(29, 9, -1)), [0, 1, 2, 3, 4], [9, 8, 7, 6, 5])


def test_ogb_matches_reference(tmp_path: Path) -> None:
    graphs, split = molecules()
    write_ogb(tmp_path, "bace", graphs, split)
    assert_splits("ogbg-molbace", tmp_path, graphs, tuple(map(sorted, split)), [0, 1])


def test_digits_match_reference(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    tensors = load_file(find("digits-graph", tmp_path))
    bunch = load_digits()
    ends = tensors["sizes"].cumsum(0).tolist()
    arc_ends = tensors["arc_counts"].cumsum(0).tolist()
    for number in (0, 1, 700, 1796):
        image = bunch.images[number]
        pixels = [(r, c) for r in range(8) for c in range(8) if image[r, c] > 0]
        start, arc_start = ends[number] - len(pixels), arc_ends[number] - int(tensors["arc_counts"][number])
        assert tensors["nodes"][start : ends[number], 0].tolist() == [int(image[p] > 8) for p in pixels]
        found = tensors["arcs"][:, arc_start : arc_ends[number]].T.tolist()
        assert [(pixels[t], pixels[s]) for s, t in found] == [
            (p, q) for p in pixels for q in pixels if abs(p[0] - q[0]) + abs(p[1] - q[1]) == 1
        ]
        down = [int(pixels[s][0] != pixels[t][0]) for s, t in found]
        assert tensors["edges"][arc_start : arc_ends[number], 0].tolist() == down
    assert tensors["labels"].tolist() == bunch.target.tolist()
    images = load_file(find("digits", tmp_path))
    test = tensors["split"] == 2
    grey = torch.from_numpy(np.rint(bunch.images * 255 / 16)).byte()[:, None]
    assert torch.equal(grey[test], images["test_images"])
    assert [int((tensors["split"] == s).sum()) for s in range(3)] == [1298, 139, 360]
    for k in range(10):
        rest = tensors["split"][(tensors["labels"] == k) & ~test].tolist()
        assert rest == [int(i % 10 == 9) for i in range(len(rest))]


def replace(part: str, old: str, new: str) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        path = raw / f"MUTAG_{part}.txt"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def append(part: str, line: str) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        path = raw / f"MUTAG_{part}.txt"
        path.write_text(path.read_text() + line)

    return change


def whole(part: str, text: str) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        (raw / f"MUTAG_{part}.txt").write_bytes(text.encode("latin1"))

    return change


def first_line(part: str, line: str) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        path = raw / f"MUTAG_{part}.txt"
        path.write_text("\n".join([line, *path.read_text().split("\n")[1:]]))

    return change


BAD_TU: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda raw: (raw / "MUTAG_node_labels.txt").unlink(), r"MUTAG_node_labels\.txt is missing"),
    "ragged": (first_line("A", "1, 2, 3"), r"MUTAG_A\.txt: line 1 is '1, 2, 3'; expected 2 whole numbers with commas"),
    "three columns": (first_line("graph_labels", "1, 2"), r"line 1 is '1, 2'; expected 1 whole number in every line"),
    "letters": (first_line("node_labels", "carbon"), r"MUTAG_node_labels\.txt: line 1 is 'carbon'; expected 1 whole"),
    "fractions": (first_line("edge_labels", "1.5"), r"MUTAG_edge_labels\.txt: line 1 is '1\.5'"),
    "bytes": (whole("A", "\xff\xfe"), r"MUTAG_A\.txt cannot be read"),
    "empty": (whole("graph_indicator", ""), "line 1 does not go on"),
    "one column": (whole("A", "1\n2\n"), r"has 1 columns; expected 2 whole"),
    "node 0": (first_line("A", "0, 2"), r"MUTAG_A\.txt: line 1 is 0, 2; expected nodes from 1 to \d+:"),
    "node 999": (append("A", "5, 999\n"), r"line \d+ is 5, 999; expected nodes from 1 to \d+:"),
    "too few labels": (replace("node_labels", "0\n", ""), r"has \d+ lines; expected \d+, one for each node: replace"),
    "too many classes": (append("graph_labels", "1\n"), "has 61 lines; expected 60, one for each graph"),
    "too few edge labels": (replace("edge_labels", "0\n", ""), r"expected \d+, one for each line of MUTAG_A\.txt"),
    "unordered graphs": (replace("graph_indicator", "2\n", "3\n2\n"), r"graph_indicator\.txt: line 8 does not go on"),
    "graph without nodes": (
        replace("graph_indicator", "60\n", "61\n"),
        r"line \d+ does not go on from the graph before",
    ),
    "between graphs": (append("A", "1, 8\n"), r"line \d+ joins node 1 of graph 1 and node 8 of graph 2; expected both"),
    "one class": (
        whole("graph_labels", "1\n" * 60),
        r"has 1 different labels \(1\); expected 2",
    ),
    "unknown label": (
        replace("node_labels", "6\n", "9\n"),
        "a node of graph 0 .counted from 0. has category 9 in label column 0; expected 0 to 6",
    ),
    "unknown edge label": (replace("edge_labels", "3\n", "4\n"), r"an arc of graph \d+ .* has category 4 .* 0 to 3"),
}


@pytest.mark.parametrize("fault", BAD_TU)
def test_rejects_malformed_tu(fault: str, tmp_path: Path) -> None:
    change, message = BAD_TU[fault]
    raw = write_tu(tmp_path, "MUTAG", mutag())
    change(raw)
    with pytest.raises(DataError, match=message) as caught:
        load("mutag", tmp_path)
    assert "\n" not in str(caught.value)
    assert str(raw) in str(caught.value)
    assert not list(tmp_path.rglob("*.safetensors"))


def arcs_of(raw: Path) -> list[tuple[str, str]]:
    arcs, labels = ((raw / f"MUTAG_{part}.txt").read_text().splitlines() for part in ("A", "edge_labels"))
    return list(zip(arcs, labels, strict=True))


def write_arcs(raw: Path, rows: list[tuple[str, str]]) -> None:
    for part, column in (("A", 0), ("edge_labels", 1)):
        (raw / f"MUTAG_{part}.txt").write_text("".join(f"{row[column]}\n" for row in rows))


def test_rejects_directed_arcs(tmp_path: Path) -> None:
    raw = write_tu(tmp_path, "MUTAG", mutag())
    write_arcs(raw, [row for row in arcs_of(raw) if row[0] != "2, 3"])
    with pytest.raises(
        DataError, match=r"the arc from node 2 to node 1 of graph 0 .* has no reverse; expected undirec"
    ):
        load("mutag", tmp_path)


def test_rejects_directed_labels(tmp_path: Path) -> None:
    raw = write_tu(tmp_path, "MUTAG", mutag())
    write_arcs(raw, [(arc, "3" if arc == "2, 3" else label) for arc, label in arcs_of(raw)])
    with pytest.raises(
        DataError, match=r"the arc from node 2 to node 1 of graph 0 .* has other labels than its reverse"
    ):
        load("mutag", tmp_path)


def test_rejects_repeated_arcs_that_disagree(tmp_path: Path) -> None:
    raw = write_tu(tmp_path, "MUTAG", mutag())
    write_arcs(raw, [*arcs_of(raw), ("2, 3", "0")])
    with pytest.raises(DataError, match=r"the arc from node 1 to node 2 .* stands there twice with different labels"):
        load("mutag", tmp_path)


def test_rejects_a_split_without_a_class(tmp_path: Path) -> None:
    graphs = mutag()
    held = tenths(60)[2]
    for i, graph in enumerate(graphs):
        graph.label = -1 if i in held else i % 2 * 2 - 1
    write_tu(tmp_path, "MUTAG", graphs)
    with pytest.raises(
        DataError, match=r"class 1 \(mutagenic\) has no graphs in the test split; expected at least one"
    ):
        load("mutag", tmp_path)


def test_rejects_a_giant(tmp_path: Path) -> None:
    graphs = mutag()
    graphs[1].nodes = [(0,)] * 32769
    write_tu(tmp_path, "MUTAG", graphs)
    with pytest.raises(DataError, match=r"graph 1 \(counted from 0\) has 32,769 nodes; expected at most 32,768"):
        load("mutag", tmp_path)


BAD_OGB = {
    "bond": ("raw/edge", 0, "0,9", r"raw/edge\.csv\.gz: line 1 is 0, 9; expected nodes from 0 to \d:"),
    "size": ("raw/num-node-list", 3, "0", r"num-node-list\.csv\.gz: line 4 is 0; expected 1 or more"),
    "negative": ("raw/num-edge-list", 3, "-1", r"num-edge-list\.csv\.gz: line 4 is -1; expected 0 or more"),
    "nodes": ("raw/num-node-list", 3, "20", r"node-feat\.csv\.gz has \d+ lines; expected \d+, one for each node"),
    "edges": ("raw/num-edge-list", 3, "90", r"edge\.csv\.gz has \d+ lines; expected \d+, one for each edge"),
    "columns": ("raw/node-feat", 0, "1,2,3", r"node-feat\.csv\.gz: line 1 is '1,2,3'; expected 9 whole numbers"),
    "atom": ("raw/node-feat", 0, "119,0,0,0,0,0,0,0,0", r"graph 0 .* has category 119 in label column 0; .* 118"),
    "class": ("raw/graph-label", 2, "2", r"graph 2 \(counted from 0\) has label 2; expected 0 to 1"),
    "split": ("split/scaffold/valid", 0, "7", r"valid and test are 20, 5, 5 numbers; .* from 0 to 29 once"),
    "outside": ("split/scaffold/valid", 0, "-1", "expected each from 0 to 29 once in all"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD_OGB)
def test_rejects_malformed_ogb(fault: str, tmp_path: Path) -> None:
    import gzip

    part, row, line, message = BAD_OGB[fault]
    path = write_ogb(tmp_path, "bace", *molecules()) / f"{part}.csv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    lines[row] = line
    path.write_bytes(gzip.compress("".join(f"{text}\n" for text in lines).encode()))
    with pytest.raises(DataError, match=message) as caught:
        load("ogbg-molbace", tmp_path)
    assert "\n" not in str(caught.value)


def test_rejects_a_torn_gzip_file(tmp_path: Path) -> None:
    path = write_ogb(tmp_path, "bace", *molecules()) / "raw/edge.csv.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"raw/edge\.csv\.gz cannot be read"):
        load("ogbg-molbace", tmp_path)


def archive(source: Path, stem: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            file.write(path, f"{stem}/{path.relative_to(source)}")
    return content.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What the network holds; all else is out of reach."""
    pages: dict[str, bytes] = {}

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        if url not in pages:
            raise URLError("no route to host")
        return io.BytesIO(pages[url])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return pages


def test_archives_are_downloaded_once(server: dict[str, bytes], tmp_path: Path) -> None:
    graphs, molecule = mutag(), molecules()
    server[_TU_URL.format("MUTAG")] = archive(write_tu(tmp_path / "there", "MUTAG", graphs), "MUTAG")
    server[_OGB_URL.format("bace")] = archive(write_ogb(tmp_path / "there", "bace", *molecule), "bace")
    here = tmp_path / "here"
    assert_splits("mutag", here, graphs, tenths(60), [-1, 1])
    assert_splits("ogbg-molbace", here, molecule[0], tuple(map(sorted, molecule[1])), [0, 1])
    kept = {str(path.relative_to(here)) for path in here.rglob("*") if path.suffix in (".zip", ".safetensors")}
    assert sorted(kept) == [
        "mutag/MUTAG.zip", "mutag/data.safetensors", "ogbg-molbace/bace.zip", "ogbg-molbace/data.safetensors",
    ]  # fmt: skip
    server.clear()
    (here / "mutag" / "data.safetensors").unlink()
    load("mutag", here)


def test_without_network_the_message_says_what_to_put_where(server: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "ogbg_molhiv" / "split").mkdir(parents=True)  # raw files are what counts
    with pytest.raises(DataError) as caught:
        find("ogbg-molhiv", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert f"the download of {_OGB_URL.format('hiv')} failed (<urlopen error no route to host>)" in message
    assert f"put hiv.zip into {tmp_path}/ogbg-molhiv and try again" in message
    assert "DDBENCH_DATA at a folder that holds ogbg_molhiv/raw" in message
    server[_OGB_URL.format("hiv")] = b"<html>log in first</html>"
    with pytest.raises(DataError, match="what came is no zip archive"):
        find("ogbg-molhiv", tmp_path)
    assert not list(tmp_path.rglob("*.zip"))


def test_rejects_a_broken_archive(server: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "mutag").mkdir()
    place = tmp_path / "mutag" / "MUTAG.zip"
    place.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"MUTAG\.zip cannot be read .* expected a zip archive"):
        load("mutag", tmp_path)
    content = archive(write_tu(tmp_path / "there", "MUTAG", mutag()), "MUTAG")
    place.write_bytes(content.replace(b"\n1, 2\n", b"\n1, 3\n"))
    with pytest.raises(DataError, match=r"MUTAG_A\.txt cannot be read \(Bad CRC-32"):
        load("mutag", tmp_path)


def test_raw_files_of_any_data_folder_are_found(
    server: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = mutag()
    write_tu(tmp_path / "environment", "MUTAG", graphs)
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path / "environment"))
    path = find("mutag", tmp_path / "named")
    assert path == tmp_path / "named" / "mutag" / "data.safetensors"
    assert [found.name for found in (tmp_path / "environment").iterdir()] == ["MUTAG"], "it is only read"
    other = write_tu(tmp_path / "named", "MUTAG", mutag(70))
    path.unlink()
    assert len(load_file(find("mutag", tmp_path / "named"))["labels"]) == 70, other


def test_pickles_beside_raw_files_are_not_loaded(tmp_path: Path) -> None:
    class Intruder:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "loaded",))

    raw = write_tu(tmp_path, "MUTAG", mutag())
    (raw.parent / "processed").mkdir()
    (raw.parent / "processed" / "data.pt").write_bytes(pickle.dumps(Intruder()))
    load("mutag", tmp_path)
    assert not (tmp_path / "loaded").exists()
