"""Paths, and files written whole."""

import inspect
import os
import pathlib
import stat

import models
import numpy as np
import pytest

from keras_layer_entropy import EntropyProfile, files, model_files, report
from keras_layer_entropy.files import check_writable, replacing
from keras_layer_entropy.pruning.checkpoint import Checkpoint, fingerprint

pytestmark = pytest.mark.tensorflow  # files are the same on every backend

PROFILE = EntropyProfile(
    layers=("dense", "logits"),
    widths=(8, 2),
    is_output=(False, True),
    classes=("a", "b"),
    count=[5, 5],
    results={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]},
)

# Everything that takes a path.
TAKE_PATHS = {
    "files.local_path": files.local_path,
    "files.replacing": lambda path: files.replacing(path).__enter__(),
    "files.claimed": lambda path: files.claimed(path).__enter__(),
    "files.recover": files.recover,
    "model_files.save_model": lambda path: model_files.save_model(
        models.sequential().model, path, overwrite=True
    ),
    "model_files.load_model": model_files.load_model,
    "model_files.model_format": model_files.model_format,
    "model_files.dataset_record": model_files.dataset_record,
    "EntropyProfile.save": PROFILE.save,
    "EntropyProfile.to_csv": PROFILE.to_csv,
    "EntropyProfile.report": lambda path: PROFILE.report(path, overwrite=True),
    "EntropyProfile.load": EntropyProfile.load,
    "report.save_profile": lambda path: report.save_profile(PROFILE, path, overwrite=True),
    "report.write_report": lambda path: report.write_report(path, PROFILE, overwrite=True),
    "report.check_new": report.check_new,
    "report.check_new_file": report.check_new_file,
    "Checkpoint": lambda path: Checkpoint(path, {}).exists(),
    "files.check_writable": files.check_writable,
    "files.remove": lambda path: files.remove(path, ()),
    "model_files.model_parts": model_files.model_parts,
    "model_files.weights_of": model_files.weights_of,
    "fingerprint": fingerprint,
}

NO_PATHS = [
    *("gs://bucket/model.keras", "s3://bucket/model", "hdfs://node/m.h5", "hf://user/repo"),
    *("https://example.org/m.keras", "abfss://box@account/m", "file:///tmp/m.keras"),
    *(pathlib.PurePosixPath("gs://bucket/m.keras"), "dbfs:/mnt/m.keras"),
    *("", " ", "a\0b", None, 3, b"model.keras", ["model.keras"]),
]


@pytest.mark.parametrize("name", TAKE_PATHS)
def test_what_is_no_local_path_is_refused_everywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in NO_PATHS:
        with pytest.raises(ValueError, match="expected (a|the)|NUL character"):
            TAKE_PATHS[name](given)
    assert list(tmp_path.iterdir()) == []


def test_a_url_is_met_with_what_to_do():
    for given, words in {
        "s3://bucket/model": "'s3://bucket/model' is a URL.*copy .* local folder, or mount it",
        "file:///tmp/m": "leave out 'file://'",
        "": "path is empty",
        3: "3 is a int; expected a path",
    }.items():
        with pytest.raises(ValueError, match=words):
            files.local_path(given)


def test_ordinary_names_stay_as_they_are(monkeypatch, tmp_path):
    ordinary = ["model", "./a/b", "/tmp/x", "C:\\models\\m.keras", "C:/models", "epoch:10", "a b"]
    ordinary += ["ünï", "model 1.0:final/m.h5", "~model", ".", "..", "x~", np.str_("a")]
    for given in ordinary:
        assert files.local_path(given) == pathlib.Path(given)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.local_path("~/m.keras") == tmp_path / "m.keras"


PROC = pathlib.Path("/proc")  # of Linux; nobody can write there, not even root
MODULES = (files, model_files, report)


def test_none_that_takes_a_path_is_forgotten():
    """Every function with such an argument in the modules about files, by introspection."""
    for module in MODULES:
        short = module.__name__.removeprefix("keras_layer_entropy.")
        for name, function in vars(module).items():
            own = inspect.isfunction(function) and function.__module__.startswith(module.__name__)
            if own and not name.startswith("_"):
                arguments = set(inspect.signature(function).parameters)
                if arguments & {"path", "folder", "directory"}:
                    assert f"{short}.{name}" in TAKE_PATHS


def folder_with(tmp_path, **contents):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in contents.items():
        (folder / name).write_text(text)
    return folder


def test_what_is_not_ones_own_stays(tmp_path):
    folder = folder_with(tmp_path, old="old", rewritten="old", notes="mine")
    (folder / "logs" / "deep").mkdir(parents=True)
    (folder / "logs" / "deep" / "a.csv").write_text("1,2")
    (folder / "empty").mkdir()
    (folder / "parts").mkdir()
    for name in ("theirs", "mine"):
        (folder / "parts" / name).write_text(name)
    os.symlink("notes", folder / "link")
    os.symlink("nowhere", folder / "dangling")
    with open(folder / "logs" / "deep" / "a.csv", "a") as log:
        with replacing(folder, ["old", "parts/theirs"]) as temporary:
            temporary.mkdir()
            (temporary / "rewritten").write_text("new")
        log.write("\n3,4")  # who writes to it goes on writing to the same file
    there = sorted(str(item.relative_to(folder)) for item in folder.rglob("*"))
    assert there == [
        *("dangling", "empty", "link", "logs", "logs/deep", "logs/deep/a.csv", "notes"),
        *("parts", "parts/mine", "rewritten"),
    ]
    assert (folder / "rewritten").read_text() == "new"
    assert (folder / "logs" / "deep" / "a.csv").read_text() == "1,2\n3,4"
    assert os.readlink(folder / "link") == "notes"
    assert os.listdir(tmp_path) == ["folder"]


def test_nothing_of_others_is_missing_at_any_moment(tmp_path, monkeypatch):
    """It is in the new folder before that takes its place, and so is what comes meanwhile."""
    folder, swap = folder_with(tmp_path, notes="mine"), files._swap

    def watched(path, temporary, aside):
        assert (temporary / "notes").read_text() == "mine"
        (path / "late").write_text("late")
        swap(path, temporary, aside)

    monkeypatch.setattr(files, "_swap", watched)
    with replacing(folder) as temporary:
        temporary.mkdir()
    assert sorted(os.listdir(folder)) == ["late", "notes"]


def test_permissions_and_group_stay(tmp_path):
    folder = folder_with(tmp_path, a="old", mine="mine")
    file = tmp_path / "file"
    file.write_text("old")
    group = next((g for g in os.getgroups() if g != os.getegid()), os.getegid())
    modes = {folder: 0o2750, folder / "a": 0o640, folder / "mine": 0o604, file: 0o660}
    for path, mode in modes.items():
        os.chown(path, -1, 1234 if os.getuid() == 0 else group)
        path.chmod(mode)
    owners = {path: (path.stat().st_uid, path.stat().st_gid) for path in modes}
    with replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("new")
    with replacing(file) as temporary:
        temporary.write_text("new")
    for path, mode in modes.items():
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert (path.stat().st_uid, path.stat().st_gid) == owners[path]


def test_new_files_have_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_link_is_followed(tmp_path):
    (tmp_path / "target.json").write_text("old")
    os.symlink("target.json", tmp_path / "link.json")
    PROFILE.save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert EntropyProfile.load(tmp_path / "target.json").layers == PROFILE.layers


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    folder = folder_with(tmp_path, thesis="years")
    for write in (PROFILE.save, PROFILE.to_csv, lambda path: PROFILE.report(path, overwrite=True)):
        with pytest.raises(IsADirectoryError, match="is a folder; expected the name of a file"):
            write(folder)
    assert (folder / "thesis").read_text() == "years"
    assert os.listdir(tmp_path) == ["folder"]


def test_where_nothing_can_be_written_is_said_first(tmp_path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    os.symlink("loop", tmp_path / "loop")
    for path, words in {
        tmp_path / "file" / "deep" / "model.keras": "file is no folder",
        tmp_path / "fifo": "neither a file nor a folder",
        tmp_path / "loop": "neither a file nor a folder",
        **({PROC / "no" / "m.keras": "nothing can be written to /proc"} if PROC.is_dir() else {}),
    }.items():
        with pytest.raises(OSError, match=words):
            check_writable(path)
        with pytest.raises(OSError, match=words), replacing(path):
            raise AssertionError("the block was entered")
        with pytest.raises(OSError, match=words):
            model_files.save_model(models.sequential().model, path, overwrite=True)


def test_a_checkpoint_removes_its_own(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", {})
    model = models.sequential().model
    checkpoint.save(model, [])
    (tmp_path / "run" / "step-000" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "step-by-step").mkdir()
    (tmp_path / "run" / ".step-001.0123abcd").mkdir()
    assert checkpoint.exists()
    checkpoint.remove()
    there = sorted(str(item.relative_to(tmp_path)) for item in tmp_path.rglob("*"))
    assert there == ["run", "run/step-000", "run/step-000/notes.txt", "run/step-by-step"]
    assert not Checkpoint(tmp_path / "other", {}).exists()
