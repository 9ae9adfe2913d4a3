"""A Ray cluster makes what this machine makes, loses nothing with a node, and says which node lacks what."""

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

import letters
from ray_nodes import Nodes
from schemas.errors import Exit, ResourceError, UserError

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.xdist_group("ray"),
]
#: Seconds until anything here is taken for hung.
PATIENCE = 180
NODES = ("second", "third")


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A cluster of one node."""
    nodes = Nodes(tmp_path_factory.mktemp("cluster"))
    yield nodes
    nodes.end()


@pytest.fixture(scope="module")
def nodes(head):
    """A cluster of three."""
    for name in NODES:
        head.add(name, **{letters.NODE: name})
    return head


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


def _driven(outcome, *arguments, **options):
    try:
        letters.write(*arguments, **options)
        outcome.put(None)
    except BaseException as error:
        outcome.put(error)


class Driver:
    """`letters.write` in a process of its own."""

    def __init__(self, *arguments, **options):
        spawn = multiprocessing.get_context("spawn")
        self._outcome = spawn.Queue()
        self.process = spawn.Process(target=_driven, args=(self._outcome, *arguments), kwargs=options)
        self.process.start()

    def error(self):
        """What it raised, once it has ended."""
        error = self._outcome.get(timeout=PATIENCE)
        self.process.join(timeout=PATIENCE)
        return error


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def plain(tmp_path, notes, contents):
    """What one process writes of some letters."""

    def write(text):
        (tmp_path / "plain notes").mkdir()
        letters.write(text, tmp_path / "plain", tmp_path / "plain notes")
        return contents(tmp_path / "plain")

    return write


def test_an_actor_writes_what_one_process_writes(head, notes, plain, contents, tmp_path):
    assert Driver("abc", tmp_path / "out", notes, address=head.address).error() is None
    assert contents(tmp_path / "out") == plain("abc")
    assert [letter for letter, _ in letters.begun(notes)] == ["a", "b", "c"]


@pytest.mark.slow
def test_a_lost_node_costs_the_shards_that_it_had_in_work(nodes, notes, plain, contents, tmp_path):
    text = "abcdefgh"
    nodes.add("lost", **{letters.NODE: "lost"})
    driver = Driver(text, tmp_path / "out", notes, held=text, address=nodes.address, workers=4)
    until(lambda: "lost" in {node for _, node in letters.begun(notes)})
    (victim,) = {letter for letter, node in letters.begun(notes) if node == "lost"}
    nodes.kill("lost")
    (notes / "gate").touch()
    assert driver.error() is None
    assert contents(tmp_path / "out") == plain(text)
    again = [letter for letter, _ in letters.begun(notes)]
    assert sorted(again) == sorted(text + victim), "the others are made once"


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(nodes, notes, plain, contents, tmp_path):
    text = "abcdef"
    driver = Driver(text, tmp_path / "out", notes, held="def", address=nodes.address, workers=3)
    until(lambda: {"d", "e", "f"} <= {letter for letter, _ in letters.begun(notes)})
    os.kill(driver.process.pid, signal.SIGKILL)
    driver.process.join()
    before = letters.begun(notes)
    (notes / "gate").touch()
    assert Driver(text, tmp_path / "out", notes, address=nodes.address, workers=3).error() is None
    assert contents(tmp_path / "out") == plain(text)
    assert {letter for letter, _ in letters.begun(notes)[len(before) :]} <= set("def"), "finished shards are kept"


@pytest.mark.slow
def test_what_a_stage_says_is_told_and_a_shard_that_kills_is_given_up(nodes, notes, tmp_path):
    error = Driver("ab?", tmp_path / "asked", notes, address=nodes.address, workers=2).error()
    assert (type(error), str(error)) == (UserError, "A question is no letter; leave it out.")
    error = Driver("ab!", tmp_path / "killed", notes, address=nodes.address, workers=2).error()
    assert isinstance(error, ResourceError)
    assert "Shard 2 was lost 3 times" in str(error)
    begun = [letter for letter, _ in letters.begun(notes)]
    assert begun.count("!") == 3
    assert (tmp_path / "killed" / "00000.letters").read_text() == "A"


def typed(address, *arguments):
    """A command on the cluster."""
    return [sys.executable, "-m", "pipeline", *map(str, arguments), "--engine", "ray", "--address", address, "--json"]


def mta_prep(address, *arguments, home=None):
    """The same, to its end: its exit code, and what it said on stderr."""
    ended = subprocess.run(
        typed(address, *arguments),
        env=os.environ | ({"HOME": str(home)} if home else {}),
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.slow
def test_every_command_writes_what_it_writes_here(nodes, prepared, same, make_cache, contents, tmp_path):
    from pipeline.shards.workspace import CONFIG

    code, out, err = mta_prep(nodes.address, "parse", "--config", prepared / CONFIG, "-o", tmp_path / "parsed")
    assert (code, out.count("\n"), contents(tmp_path / "parsed")) == (0, 1, contents(prepared)), err
    code, _, err = mta_prep(
        nodes.address, "align", prepared, "--student", "embedded:sentencepiece-bpe", "-o", tmp_path / "same"
    )
    assert (code, contents(tmp_path / "same")) == (0, contents(same)), err
    cache = make_cache(signals=["relations", "final"])
    code, _, err = mta_prep(nodes.address, "cache-teacher", "--config", cache / CONFIG, "-o", tmp_path / "cache")
    assert (code, contents(tmp_path / "cache")) == (0, contents(cache)), err


@pytest.mark.slow
def test_generate_answers_what_it_answers_here(nodes, contents, tmp_path, command):
    arguments = ["generate", "embedded:sample", "--model", "embedded:teacher", "--limit", 8, "--max-new-tokens", 8]
    arguments += ["--unfinished", "keep", "--set", "shard_rows=3"]
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    code, _, err = command(*arguments, "-o", tmp_path / "here" / "out.jsonl")
    assert code in (Exit.OK, Exit.REJECTED), err
    there, _, err = mta_prep(nodes.address, *arguments, "-o", tmp_path / "there" / "out.jsonl")
    assert (there, contents(tmp_path / "there")) == (code, contents(tmp_path / "here")), err


def interrupted(begun, log, command):
    """A command that gets Ctrl-C, with all that it has started, as soon as it has begun so far: its exit code."""
    with log.open("wb") as said:
        running = subprocess.Popen(command, start_new_session=True, stdout=said, stderr=said)
    until(lambda: begun() or running.poll() is not None)
    os.killpg(running.pid, signal.SIGINT)
    return running.wait(timeout=PATIENCE)


@pytest.mark.slow
def test_ctrl_c_ends_with_a_sentence_and_the_same_command_goes_on(nodes, prepared, contents, tmp_path, command):
    """While actors start, then between two shards, of which there are enough for one to be left."""
    from pipeline.shards.workspace import CONFIG, WORK
    from schemas.manifest import MANIFEST

    out, log = tmp_path / "out", tmp_path / "said.txt"
    parse = ["parse", "--config", prepared / CONFIG, "--set", "shard_rows=1", "-o"]
    arguments = [*parse, out, "--workers", 1]
    for begun in ("cluster-*", "0*.json"):
        code = interrupted(lambda begun=begun: any((out / WORK).glob(begun)), log, typed(nodes.address, *arguments))
        said = log.read_text(encoding="utf-8")
        assert (code, "run the same command again" in said) == (Exit.INTERRUPTED, True), said
        assert "Traceback" not in said
        assert not (out / MANIFEST).exists()
    receipts = {path.stem for path in (out / WORK).glob("0*.json")}
    finished = {path: path.stat().st_mtime_ns for path in out.glob("data-*.arrow") if path.name[5:10] in receipts}
    assert 0 < len(finished) < 24
    code, _, err = mta_prep(nodes.address, *arguments)
    assert code == Exit.OK, err
    assert command(*parse, tmp_path / "here")[0] == Exit.OK
    assert contents(out) == contents(tmp_path / "here")
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a shard was made again"


@pytest.mark.slow
def test_a_node_without_the_model_is_named(nodes, prepared, tiny_teacher, tmp_path):
    (nodes.home / "llama").symlink_to(tiny_teacher)
    nodes.add("bare", HOME=tmp_path / "bare")
    arguments = ["cache-teacher", prepared, "--teacher", "~/llama", "-o", tmp_path / "cache"]
    try:
        code, _, err = mta_prep(nodes.address, *arguments, home=nodes.home)
    finally:
        nodes.kill("bare")
    assert code == Exit.INPUT
    assert "The node bare (" in err
    assert f"of the Ray cluster has no {tmp_path / 'bare' / 'llama'}, where the teacher is." in err
