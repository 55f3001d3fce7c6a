"""Which format a model file has, told from its content, never from its name."""

import zipfile

from keras_layer_entropy.files import AnyPath, local_path

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
EXPECTED = (
    "a .keras file, a directory written by model.save(path, zipped=False) or by Keras 2, a Keras "
    ".h5 file, or the .json file of a Keras 2 architecture with its weights, an .h5 file, beside it"
)


def model_format(path: AnyPath) -> str:
    """The format of a saved model: `"keras"`, `"directory"`, `"h5"`, `"json"` or
    `"saved_model"`.

    Args:
        path: file or directory.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is no saved model of these formats, or a URL.

    Example:

    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "model.bin"
    >>> _ = file.write_bytes(_HDF5_SIGNATURE + b"...")
    >>> model_format(file)
    'h5'
    """
    path = local_path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no model at {path}; expected {EXPECTED}.")
    if path.is_dir():
        if (path / "config.json").is_file():
            return "directory"
        if (path / "saved_model.pb").is_file():
            return "saved_model"
        raise ValueError(f"{path} is a directory without config.json; expected {EXPECTED}.")
    if not path.is_file():
        raise ValueError(f"{path} is neither a file nor a directory; expected {EXPECTED}.")
    with open(path, "rb") as file:
        start = file.read(len(_HDF5_SIGNATURE))
    if start == _HDF5_SIGNATURE:
        return "h5"
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is a damaged zip archive: {error}.") from error
        if "config.json" in names:
            return "keras"
        inside = next((name for name in names if name.endswith("/config.json")), None)
        if inside is not None:
            raise ValueError(
                f"{path} is a zip archive with the model's files in a folder, {inside}: unpack it "
                "and name that folder, or zip the files themselves."
            )
        raise ValueError(f"{path} is a zip archive without config.json; expected {EXPECTED}.")
    if start.lstrip().startswith(b"{"):
        return "json"
    what = "an empty file" if not start else "no zip archive and no HDF5 file"
    raise ValueError(f"{path} is {what}; expected {EXPECTED}.")
