"""Places as people write them: one form, or one sentence before any work begins."""

import os
import stat

import pytest

from diffmm_dist import storage
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.launch.submit import job_command
from diffmm_dist.places import is_shared, settle
from diffmm_dist.runs.config import load_config
from tests.support.builders import published_folder, synthetic_dataset, write_config


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("written", "settled"),
    [
        ("a/b/", "a/b"),
        ("/", "/"),
        ("./~", "./~"),
        ("C:/x", "C:/x"),
        ("s3://bucket/a/", "s3://bucket/a"),
        ("s3://bucket/a///", "s3://bucket/a"),
        ("s3://bucket//a//b", "s3://bucket/a/b"),
        ("S3://bucket/a", "s3://bucket/a"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("GCS://bucket//a", "gs://bucket/a"),
        ("abfs://container/a/", "az://container/a"),
        ("hf://datasets/owner/name@v1.0/a", "hf://datasets/owner/name@v1.0/a"),
        ("hf://datasets/owner/name", "hf://datasets/owner/name"),
        ("https://host.example:8443/a/", "https://host.example:8443/a"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("memory://name/a", "memory://name/a"),
    ],
)
def test_places_have_one_form(written, settled):
    assert settle(written) == settled
    assert settle(settled) == settled


def test_home_folders_are_written_out(home):
    assert settle("~") == str(home)
    assert settle("~/data/") == f"{home}/data"
    assert settle("~root/x") == os.path.expanduser("~root/x") != "~root/x"


REFUSED = {
    "": "must not be empty",
    "  \t": "must not be empty",
    "a\0b": "holds characters that no name has",
    "a\udc80": "holds characters that no name has",
    "~nobody-of-this-name/x": "there is no user 'nobody-of-this-name' here",
    "a" * 5000: "must be at most 4,096 bytes long",
    "s3://bucket/" + "a/" * 3000: "must be at most 4,096 bytes long",
    "s3://bucket/a\x01b": "has no line breaks or other control characters",
    "s3://bucket/a\nb": "has no line breaks or other control characters",
    "s3://bucket/a\x9bb": "has no line breaks or other control characters",
    "s3://../x": "names no bucket",
    "s3://./x": "names no bucket",
    "s3://": "names no bucket",
    "s3:///x": "names no bucket",
    "s3://b u/x": "names no bucket",
    "s3:/bucket/x": "write it as s3://bucket/x",
    "s3a://bucket/x": "write it as s3://bucket/x",
    "gs:/bucket/x": "write it as gs://bucket/x",
    "s3:bucket/x": "write it as s3://bucket/x",
    "AZ:container/x": "write it as az://container/x",
    "gs:": "write it as gs://BUCKET/PREFIX",
    "memory://": "names no name; write memory://NAME/PATH",
    "file:///tmp/x": "write the local path alone, /tmp/x",
    "ftp://host/x": "ftp:// is no store that is known; give a local path or one of s3://, gs://, az://, hf://, http://",
    "gs:///x": "names no bucket; write gs://BUCKET/PREFIX",
    "hf://owner/name/x": "names no data set; write hf://datasets/OWNER/NAME/PATH",
    "hf://datasets/name": "names no data set; write hf://datasets/OWNER/NAME/PATH",
    "http:///x": "names no host; write http://HOST/PATH",
    "https://host/x?token": "must not hold ?",
    "s3://bucket/a?b": "must not hold ?",
    "s3://bucket/a#b": "must not hold #",
    "s3://bucket/a*b": "must not hold *",
    "s3://bucket/a/../b": "has no . or .. in it",
    "s3://bucket/./b": "has no . or .. in it",
}


@pytest.mark.parametrize("written", REFUSED)
def test_what_is_no_place_is_one_sentence(written):
    with pytest.raises(UserError, match=f"^[^\0\n]*: .*{REFUSED[written].replace('?', '[?]').replace('*', '[*]')}"):
        settle(written)


def test_patterns_are_taken_where_they_are_meant():
    assert settle("s3://bucket/a/*.parquet", pattern=True) == "s3://bucket/a/*.parquet"


@pytest.mark.parametrize("written", ["s3://bucket", "s3://bucket/", "S3://bucket//"])
def test_a_whole_bucket_is_read_and_never_written(written):
    assert settle(written) == "s3://bucket"
    with pytest.raises(UserError, match="is a whole bucket; name a place in it, such as s3://bucket/data"):
        settle(written, to_write=True)


WHOLE = {
    "gs://bucket": "is a whole bucket; name a place in it, such as gs://bucket/data",
    "az://container": "is a whole container; name a place in it, such as az://container/data",
    "hf://datasets/owner/name/x": "hf:// can only be read; write to a local path or to s3://, gs:// or az://",
    "https://host/x": "https:// can only be read; write to a local path or to s3://, gs:// or az://",
}


@pytest.mark.parametrize("place", WHOLE)
def test_what_cannot_be_written_is_one_sentence(place):
    assert settle(place) == place
    with pytest.raises(UserError, match=f"^{place}: .*{WHOLE[place]}$"):
        settle(place, to_write=True)


def test_a_place_is_shared_if_other_machines_see_it():
    shared = [is_shared(place) for place in ("s3://b/x", "https://host/x", "memory://n/x", "/x")]
    assert shared == [True, True, False, False]


@pytest.mark.parametrize("key", ["data.path", "run.path", "data.cache"])
def test_places_of_a_configuration_are_settled_with_all_other_mistakes(home, key):
    section, name = key.split(".")
    needed = ["data.path=d", "run.path=r"]
    config = load_config(None, [*needed, f"{key}=~/x/"])
    assert getattr(getattr(config, section), name) == f"{home}/x"
    with pytest.raises(UserError) as error:
        load_config(None, [*needed, f"{key}=file:///x", "train.epochs=0"])
    assert f"'{key}' is file:///x: write the local path alone, /x" in str(error.value)
    assert "'train.epochs' is 0" in str(error.value)


def test_a_cache_is_on_a_disk_and_a_run_is_in_a_bucket():
    with pytest.raises(UserError) as error:
        load_config(None, ["data.path=s3://bucket", "run.path=s3://bucket", "data.cache=s3://bucket/x"])
    assert "'data.cache' is s3://bucket/x: it must be on a local disk" in str(error.value)
    assert "'run.path' is s3://bucket: it is a whole bucket" in str(error.value)
    assert "data.path" not in str(error.value)


def test_a_configuration_extends_one_in_the_home_folder(home, tmp_path):
    (home / "base.yaml").write_text("data: {path: d}\nrun: {path: r}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.yaml").write_text("extends: ~/base.yaml\n")
    assert load_config(tmp_path / "sub" / "c.yaml").run.path == "r"


def test_a_job_gets_the_paths_that_were_checked_here(home, tmp_path):
    (tmp_path / "launch.py").write_text("")
    (tmp_path / "diffmm_dist").mkdir()
    (tmp_path / "diffmm_dist" / "start.py").write_text("")
    write_config(tmp_path / "c.yaml", data={"path": "~/d"}, run={"path": "s3://bucket/r/"}, cluster={"num_workers": 2})
    command = job_command(tmp_path, str(tmp_path / "c.yaml"), ["train.epochs=1"])
    assert command.endswith(f"train --config c.yaml train.epochs=1 data.path={home}/d")


def one_sentence(outcome, *parts):
    status, _, err = outcome
    assert status == 1, err
    assert len(err.splitlines()) == 1, err
    for part in parts:
        assert part in err


# Each command with a place {} that is read, or written.
READS = [
    "inspect {}", "prepare published {} --out o", "prepare mmrec {} --out o", "partition {} --num-parts 2 --out o",
    "evaluate {}", "export {} --out o", "compare {}", "recommend {} --all --out o.parquet", "bench report {}",
    "report {} --out o.html", "bench stream {} --out o.json", "bench compare {} {}", "bench propagate {} --out o.json",
    "train {}.yaml",
]  # fmt: skip
WRITES = [
    "prepare synthetic --out {}", "prepare published raw --out {}", "prepare mmrec raw --out {}", "export run --out {}",
    "prepare tables in.csv --user user --item item --out {}", "partition d --num-parts 2 --out {}",
    "recommend b --all --out {}.parquet", "bench epoch c.yaml --out {}", "bench stream d --out {}",
    "report run --out {}", "bench growth c.yaml --out o.json --plot {}", "train c.yaml run.path={}",
]  # fmt: skip


@pytest.fixture
def nothing_happens(tmp_path, monkeypatch):
    """An empty working folder, which stays empty."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert sorted(path.name for path in folder.rglob("*")) == []


@pytest.mark.parametrize("command", READS + WRITES)
def test_every_command_refuses_what_is_no_place_before_any_work(run_cli, nothing_happens, command):
    for place in ("file:///x", "s3:///x", "ftp://b/x", "s3://bucket/a/../b", "~nobody-of-this-name/x"):
        if "c.yaml" in command and command.startswith("train"):
            continue
        one_sentence(run_cli(*(word.format(place) for word in command.split())), ": ")


@pytest.mark.parametrize("command", [command for command in WRITES if not command.startswith("train")])
def test_every_command_refuses_a_whole_bucket_before_any_work(run_cli, nothing_happens, command):
    if "{}.parquet" in command:
        command = command.replace("{}.parquet", "{}")
    one_sentence(run_cli(*(word.format("s3://bucket") for word in command.split())), "whole bucket", "s3://bucket/data")


def test_places_in_the_home_folder_are_read_and_written(run_cli, home):
    synthetic_dataset(home / "d")
    config = write_config(home / "c.yaml", data={"path": "~/d"}, run={"path": "~/run"}, model={"name": "popularity"})
    for command in (
        "inspect ~/d/", "partition ~/d --num-parts 2 --out ~/parts", f"train {config}", "train ~/c.yaml",
        "evaluate ~/run", "compare ~/run/", "export ~/run --out ~/bundle",
        "recommend ~/bundle --all --out ~/r.parquet", "bench stream ~/d --out ~/o.json --repeats 1",
    ):  # fmt: skip
        status, _, err = run_cli(*command.split())
        assert status == 0, err
    assert {"parts", "run", "bundle", "r.parquet", "o.json"} <= {path.name for path in home.iterdir()}
    assert not (home / "~").exists()


def test_sources_of_an_import_in_the_home_folder_are_read(run_cli, home):
    (home / "in.csv").write_text("user,item\n" + "".join(f"{u},{i}\n" for u in range(6) for i in range(6)))
    (home / "f.csv").write_text("item,e0,e1\n" + "".join(f"{i},1.5,{i}\n" for i in range(6)))
    status, _, err = run_cli("prepare", "tables", "~/in.csv", "--user", "user", "--item", "item", "--out", "~/d",
                             "--features", "visual=~/f.csv")  # fmt: skip
    assert status == 0, err
    assert Dataset.open("~/d").num_users == 6
    published_folder(home / "raw")
    assert run_cli("prepare", "diffmm", "~/raw", "--out", "~/d2")[0] == 0


def prepared(run_cli, out, *more):
    return run_cli("prepare", "synthetic", "--users", 30, "--items", 20, "--interactions", 200, "--out", out, *more)


def test_a_link_stays_and_what_it_points_at_is_replaced(run_cli, tmp_path):
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    synthetic_dataset(real)
    link.symlink_to(real)
    one_sentence(prepared(run_cli, link), "already exists")
    assert prepared(run_cli, link, "--force")[0] == 0
    assert link.is_symlink()
    assert Dataset.open(str(real)).num_users == 30
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["real"]


def test_a_folder_under_a_link_is_written_where_the_link_leads(run_cli, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    assert prepared(run_cli, tmp_path / "link" / "d")[0] == 0
    assert Dataset.open(str(tmp_path / "disk" / "d")).num_users == 30


def test_a_link_to_what_is_not_there_yet_is_filled(run_cli, tmp_path):
    (tmp_path / "link").symlink_to("disk/new")
    assert prepared(run_cli, tmp_path / "link")[0] == 0
    assert Dataset.open(str(tmp_path / "disk" / "new")).num_users == 30
    (tmp_path / "run").symlink_to("disk/run")
    config = write_config(tmp_path / "c.yaml", data={"path": str(tmp_path / "link")},
                          run={"path": str(tmp_path / "run")}, model={"name": "popularity"})  # fmt: skip
    assert run_cli("train", config)[0] == 0
    assert (tmp_path / "disk" / "run" / "result.json").exists()


def test_a_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    storage.write_bytes(str(tmp_path / "link"), b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_links_that_cannot_be_followed_are_one_sentence(run_cli, tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "file").write_text("years of work")
    (tmp_path / "to-file").symlink_to("file")
    one_sentence(prepared(run_cli, tmp_path / "a", "--force"), "is a file")
    one_sentence(prepared(run_cli, tmp_path / "to-file", "--force"), "is a file")
    with pytest.raises(UserError, match="leads back to itself"):
        storage.check_file(str(tmp_path / "a"))
    assert (tmp_path / "file").read_text() == "years of work"


@pytest.mark.parametrize("command", [
    "prepare published raw --out {}", "prepare tables in.csv --user user --item item --out {}",
    "export nowhere --out {}", "partition d --num-parts 2 --out {}", "bench stream d --out {}",
    "recommend nowhere --all --out {}.parquet",
])  # fmt: skip
def test_what_cannot_be_written_is_said_before_any_work(run_cli, tmp_path, monkeypatch, command):
    """The sources do not exist, so any work would say so first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for place, part in {
        "file/below": "cannot write file/below", "file/a/b": "cannot write file/a/b",
        "/proc/new": "cannot write /proc/new", "x" * 250: "name too long",
    }.items():  # fmt: skip
        outcome = run_cli(*(word.format(place) for word in command.split()))
        one_sentence(outcome, *([] if part == "name too long" else [part]))
        assert part != "name too long" or "ame too long" in outcome[2]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_places_in_use_are_not_replaced_as_a_whole(run_cli, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in (".", tmp_path / "here", "../here/"):
        one_sentence(prepared(run_cli, place), "is in use; choose a folder inside it")
    one_sentence(prepared(run_cli, "/"), "holds other files")


def test_files_that_are_not_files_are_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place, part in (
        (tmp_path / "pipe", "no ordinary file"),
        (tmp_path, "is a folder"),
        ("/dev/null", "no ordinary"),
    ):
        with pytest.raises(UserError, match=part):
            storage.check_file(str(place))
        with pytest.raises(UserError, match=part):
            storage.write_bytes(str(place), b"")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize(
    ("out", "part"),
    [("d", "is what is read"), ("d/", "is what is read"), ("d/sub", "lies inside d"), ("link", "is what is read"),
     ("link/x/y", "lies inside d"), (".", "has inside it what is read")],
)  # fmt: skip
def test_sources_and_results_stay_apart(run_cli, tmp_path, monkeypatch, out, part):
    synthetic_dataset(tmp_path / "d")
    (tmp_path / "link").symlink_to("d")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    one_sentence(run_cli("partition", "d", "--num-parts", 2, "--out", out, "--force"), part)
    (tmp_path / "raw").mkdir()
    for command in (["export", "d"], ["prepare", "diffmm", "d"], ["prepare", "mmrec", "d"]):
        one_sentence(run_cli(*command, "--out", out, "--force"), part)
    (tmp_path / "raw").rmdir()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_source_table_is_not_replaced_by_its_dataset(run_cli, tmp_path):
    (tmp_path / "in.csv").write_text("user,item\n1,2\n")
    columns = ["--user", "user", "--item", "item", "--force"]
    one_sentence(
        run_cli("prepare", "tables", tmp_path / "in.csv", *columns, "--out", tmp_path / "in.csv"), "is what is"
    )
    one_sentence(run_cli("prepare", "tables", tmp_path, *columns, "--out", tmp_path / "d"), "lies inside")
    features = ["--features", f"visual={tmp_path / 'd' / 'f.parquet'}"]
    outcome = run_cli("prepare", "tables", tmp_path / "in.csv", *columns, *features, "--out", tmp_path / "d")
    one_sentence(outcome, "has inside it what is read")


@pytest.mark.parametrize(
    "words",
    [["prepare", "synthetic", "--out", "memory://n/d"], ["train", "configs/demo.yaml", "run.path=memory://n/r"]],
)
def test_no_command_writes_into_its_own_memory(run_cli, words):
    status, out, err = run_cli(*words)
    assert (status, out) == (1, "")
    assert "is in the memory of this command, which ends; give a local path or s3://, gs:// or az://" in err
