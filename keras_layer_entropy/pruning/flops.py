import dataclasses
import math

from keras_layer_entropy.pruning.graph import flat_graph


@dataclasses.dataclass(frozen=True)
class Flops:
    per_call: tuple
    unknown: tuple = ()

    @property
    def total(self):
        return sum(x or 0 for x in self.per_call)


def count_flops(model, x=None):
    g = flat_graph(model)
    out = []
    for c in g.calls:
        k = getattr(c.operation, "kernel", None)
        o = g.shapes[c.outputs[0]]
        out.append(
            2 * math.prod(k.shape) * math.prod(o[1:-1]) if k is not None else math.prod(o[1:])
        )
    return Flops(tuple(out))
