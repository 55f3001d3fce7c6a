"""The files of a profile: JSON, CSV, pictures."""

from keras_layer_entropy import plots
from keras_layer_entropy.files import check_writable, local_path, replacing

FILES = ("profile.json", "profile.csv", "entropy.png", "heatmap.png")


def save_profile(profile, directory, overwrite=False):
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
    directory = local_path(directory)
    if not overwrite:
        check_new(directory)
    paths = [directory / name for name in FILES]
    for path in paths:
        check_writable(path)
    profile.save(paths[0])
    profile.to_csv(paths[1])
    for path, draw in zip(paths[2:], (plots.entropy_curve, plots.heatmap), strict=True):
        with replacing(path) as temporary:
            draw(profile).savefig(temporary, dpi=150)
    return paths


def check_new(directory):
    """Raises FileExistsError where `save_profile` would overwrite a file."""
    directory = local_path(directory)
    if directory.is_file():
        raise FileExistsError(f"{directory} is a file; expected a folder to write to.")
    existing = [name for name in FILES if (directory / name).exists()]
    if existing:
        raise FileExistsError(
            f"{', '.join(existing)} in {directory} would be overwritten: choose another folder, or "
            "pass --overwrite (overwrite=True)."
        )


def check_new_file(path):
    """Raises FileExistsError where `write_report` would overwrite a file."""
    path = local_path(path)
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder; expected the name of a file, report.html say.")
    if path.exists():
        raise FileExistsError(
            f"{path} exists: choose another name, or pass --overwrite (overwrite=True)."
        )
