"""Peak memory of the engine over one picture: `python benchmarks/memory.py 3840x2160`.

Prints the process's peak resident memory, of which torch and the weights take the part before the run.
"""

import argparse
import resource

import common
import torch

from dblr_fast import DBLRNet, Engine


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", help="WIDTHxHEIGHT")
    parser.add_argument("--json", help="where to write the result")
    arguments = parser.parse_args()
    width, height = (int(v) for v in arguments.size.split("x"))
    engine = Engine(DBLRNet(init="identity").eval())
    frames = torch.rand(1, 5, height, width)
    before = peak_mib()
    engine(frames)
    row = dict(size=arguments.size, backend=engine.backend, before_mib=before, peak_mib=peak_mib())
    print(row)
    if arguments.json:
        common.write_json(arguments.json, torch.device("cpu"), [row])


if __name__ == "__main__":
    main()
