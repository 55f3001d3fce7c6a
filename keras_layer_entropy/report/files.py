"""The files of a profile: JSON, CSV, pictures."""

import pathlib
from collections.abc import Iterable

from keras_layer_entropy import plots
from keras_layer_entropy.files import AnyPath, check_writable, local_path, replacing
from keras_layer_entropy.measures.measure import Profile

FILES = ("profile.json", "profile.csv", "entropy.png", "heatmap.png")


def save_profile(
    profile: Profile, directory: AnyPath, overwrite: bool = False
) -> list[pathlib.Path]:
    """Writes `profile.json`, `profile.csv`, `entropy.png` and `heatmap.png` into a folder.

    Args:
        profile: `EntropyProfile` with activation_entropy.
        directory: made where it does not exist.
        overwrite: replace files of these names.

    Returns:
        List of the paths.

    Raises:
        FileExistsError: one of the files exists and `overwrite` is False; nothing is written.
    """
    check_new(directory, overwrite)
    paths = [local_path(directory) / name for name in FILES]
    profile.save(paths[0])
    profile.to_csv(paths[1])
    for path, draw in zip(paths[2:], (plots.entropy_curve, plots.heatmap), strict=True):
        with replacing(path) as temporary:
            draw(profile).savefig(temporary, dpi=150)
    return paths


def check_new(directory: AnyPath, overwrite: bool = False, files: Iterable[str] = FILES) -> None:
    """Raises OSError where files could not be written to a folder, or one be overwritten untold."""
    directory = local_path(directory)
    if directory.is_file():
        raise FileExistsError(f"{directory} is a file; expected a folder to write to.")
    for name in files:
        _check_file(directory / name)
    if overwrite:
        return
    existing = [name for name in files if (directory / name).exists()]
    if existing:
        raise FileExistsError(
            f"{', '.join(existing)} in {directory} would be overwritten: choose another folder, or "
            "pass --overwrite (overwrite=True)."
        )


def check_new_file(path: AnyPath, overwrite: bool = False) -> None:
    """Raises OSError where `write_report` could not write, or would overwrite a file untold."""
    path = local_path(path)
    _check_file(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists: choose another name, or pass --overwrite (overwrite=True)."
        )


def _check_file(path: pathlib.Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(
            f"{path} is a folder; expected the name of a file, report.html say."
        )
    check_writable(path)
