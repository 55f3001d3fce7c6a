"""All package metadata."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (HERE / "keras_layer_entropy" / "version.py").read_text()
).group(1)

setup(
    name="keras_layer_entropy",
    version=VERSION,
    description="See what the Dense layers of a Keras network do, and which ones it can lose.",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["keras_layer_entropy", "keras_layer_entropy.*"]),
    package_data={"keras_layer_entropy.report": ["*.html", "*.css"]},
    entry_points={
        "console_scripts": ["keras-layer-entropy = keras_layer_entropy.__main__:main"],
    },
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "h5py>=3.11",
        "jinja2>=3.1",
        # Several advisories on opening model files are fixed only from here on.
        "keras>=3.15.1",
        "matplotlib>=3.8",
        "ml_collections>=1.0",
        "numpy>=1.26",
        "pillow>=10",
        "rich>=13",
        "scikit-learn>=1.4",
        "scipy>=1.13",
        "tensorflow>=2.21",
        "tensorflow-datasets>=4.9.7",
        "threadpoolctl>=3.1",
    ],
    extras_require={
        "beam": ["apache-beam>=2.77"],
        "mutants": ["cosmic-ray>=8.7", "pytest-cov>=6"],
        "tensorboard": ["tensorboard>=2.19"],
        "test": [
            "ai-edge-model-explorer>=0.1.34",  # reads what is written for it
            "apache-beam[dask]>=2.77",  # Dask is a second engine to run it on
            "axe-core-python>=0.1",  # rules of accessibility, which the browser runs on the report
            "gudhi>=3.10",  # persistent homology, to compare the births of loops with
            "jax>=0.6",
            "ipykernel>=6.29",
            "keras-tuner>=1.4",
            "mlflow-skinny>=3.1",
            "mypy>=1.16",
            "nbclient>=0.10",  # runs the notebook
            "pandas>=2.2",  # tables as data
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "selenium>=4.30",  # drives the browser that tests the report
            "tensorboard>=2.19",
            "tf_keras>=2.21",  # to write the files of Keras 2 that tests read
            "wandb>=0.19",
        ],
    },
)
