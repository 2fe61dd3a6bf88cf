"""A CUDA graph's capture and replay on a CPU, for what the emulator launches and what torch computes between.

    graph = Recording(module)
    with graph:
        y = network(x)
    x.copy_(other)
    graph.replay()  # y now holds what the network makes of `other`

As in a graph, memory stays where it was, Python has no part in a replay, and what waits for the device (`.item()`,
shapes that depend on values) is refused. Unlike in a graph, torch's own operations are also computed while recording.
"""

import sys

import torch
from cpu_cases import inputs, ours
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dblr_fast.ops  # noqa: F401


def tensors_of(results):
    return [t for t in tree_leaves(results) if isinstance(t, torch.Tensor)]


def memory_of(values):
    return {t.untyped_storage().data_ptr() for t in tensors_of(values)}


def implementation(function):
    """What an op of ours runs, to be recorded part by part."""
    name = function.name().split("::")[1]
    op = sys.modules["dblr_fast.ops." + name.removesuffix("_backward")]
    return op._run_backward if name.endswith("_backward") else op._run


class Recording(TorchDispatchMode):
    """module: the emulated CUDA library, whose launches are kept meanwhile."""

    def __init__(self, module):
        super().__init__()
        self.module, self.depth, self.launches = module, 0, 0
        self.work = []  # (what computes again, where to)
        self.alive = []  # all that was made, so that no address is given out twice

    def __enter__(self):
        if self.depth == 0:
            self.module.capture_begin()
        self.depth += 1
        return super().__enter__()

    def __exit__(self, *failure):
        self.depth -= 1
        super().__exit__(*failure)
        if self.depth == 0:
            self._take_launches()
            self.module.capture_end()

    def _take_launches(self):
        first, self.launches = self.launches, self.module.captured()
        if self.launches > first:
            self.work.append((lambda last=self.launches: self.module.replay(first, last), []))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "dblr_fast":
            with self:
                return implementation(function)(*args, **kwargs)
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags):
            raise RuntimeError(f"{function} waits for the device")
        self._take_launches()
        results = function(*args, **kwargs)
        made = tensors_of(results)
        self.alive += made
        if "empty" in function.name():
            for t in made:
                if t.is_floating_point():
                    t.fill_(torch.nan)
        elif function._schema.is_mutable:
            self.work.append((lambda: function(*args, **kwargs), []))
        elif not memory_of(results) & memory_of((args, kwargs)):  # a view needs no computing
            self.work.append((lambda: function(*args, **kwargs), made))
        return results

    def replay(self):
        for compute, places in self.work:
            for place, value in zip(places, tensors_of(compute())):
                place.copy_(value)


def check_graph(backend, module, case):
    """An op and its gradients, recorded on other inputs, replay to the bits of the case's own."""
    given = [t.detach() for part in inputs(*case) for t in (part if isinstance(part, tuple) else (part,))]
    expected = ours(backend, case)
    right = [t.clone() for t in given]
    graph = Recording(module)
    try:
        for t in given:
            t.fill_(0.25)
        with graph:
            results = ours(backend, case)
    finally:  # other tests draw the same inputs
        for t, value in zip(given, right):
            t.copy_(value)
    assert graph.launches > 3
    graph.replay()
    assert results.keys() == expected.keys()
    for name, value in results.items():
        assert torch.equal(value, expected[name]), name
