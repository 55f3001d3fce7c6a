"""Train a network with too many Dense layers on CIFAR-10, then let pruning find how many it needs.

python examples/prune.py --config configs/pruning.py:full --workdir runs/pruning

With `configs/pruning.py:units` neurons and channels go, until half of the operations are left.

Leaves the trained network in saved_model/, the smaller one with the records of the search in
pruned/, and report.html, which tells of every step. What `python -m keras_layer_entropy.prune` does
with a saved model, from Python.
"""

import dataclasses

import keras
import rich
import studies

from keras_layer_entropy import PruningOptions, prune_model, report, save_model
from keras_layer_entropy.pruning.outcome import Output, compared


def run(config, workdir, overwrite=False):
    """Trains, prunes, reports; returns the `PruningResult`."""
    folder = studies.new_folder(workdir, overwrite)
    keras.utils.set_random_seed(config.seed)
    data = studies.load(config)
    model = studies.build(config, config.hidden)
    studies.train(model, data, config, config.seed)
    save_model(model, folder / "saved_model", dataset=data.test.spec, overwrite=overwrite)
    options = PruningOptions(
        remove=config.remove, target=config.target.to_dict() or None, criterion=config.criterion,
        max_drop=config.max_drop, epochs=config.epochs_after, batch_size=config.batch_size,
        seed=config.seed,
    )  # fmt: skip
    result = prune_model(model, data.train.arrays, data.validation.arrays, options)
    before, after = (p.with_classes(data.test.classes) for p in (result.before, result.after))
    result = dataclasses.replace(result, before=before, after=after)
    search = compared(model, result, data.validation.arrays, data.test.arrays)
    Output(folder / "pruned", is_file=False).write(search, dataset=data.test.spec)
    report.write_report(folder / "report.html", before, pruning=search, overwrite=overwrite)
    rich.print(search.summary())
    rich.print(report.comparison(*search.costs, result.quality, **search.qualities))
    return result


if __name__ == "__main__":
    studies.main(run, "configs/pruning.py", "runs/pruning")
