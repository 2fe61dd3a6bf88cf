"""Do the tests of the CUDA kernels notice small faults? Run it by hand: `python tests/mutants.py [word...]`.

Each mutant is one small fault in a kernel: a barrier, a wait or an arrival left out, a bit of a swizzle turned over, a
halo shifted by one. All are written into one copy of csrc, which is built once; DBLR_MUTANT in the environment says
which of them is alive. The tests named beside a mutant must pass with none alive, and fail with it. Exit status 1 if
one lives on. The files in the checkout are not touched.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import emulator

TESTS = Path(__file__).resolve().parent

CONV = "test_cuda_conv.py::test_convolution", "f16 and 37x53"
EXTRAS = "test_cuda_conv.py::test_prologue_and_epilogue", "f16 and not bf16"
STATISTICS = "test_cuda_conv.py::test_statistics_of_many_tiles", "f16"
NORM = "test_cuda_norm.py::test_norm_backward", ""
MERGE = "test_cuda_norm.py::test_merge_statistics", ""
WEIGHT = "test_cuda_gradients.py::test_weight_gradient", "f16 and not bf16"
WALK = "test_cuda_gradients.py::test_blocks_that_walk_over_many_tiles", "f32"  # more tiles a block than of f16
STEM = "test_cuda_gradients.py::test_stem", "f16 and not bf16"
TAPS = "test_cuda_gradients.py::test_backward_of_taps", ""
SUMS = "test_cuda_gradients.py::test_channel_sums_and_relu", ""
ROWS = "test_cuda_sm90.py::test_long_walk", "f16 and not bf16"
ADDED = "test_cuda_sm90.py::test_epilogue", "f16 and not bf16"
WIDE = "test_cuda_sm90.py::test_clusters", "f16 and not bf16"
DEEP = "test_cuda_sm90.py::test_deep_with_taps", "f16 and not bf16"
MASK = "test_cuda_sm90.py::test_deep_mask_and_sums", "f16 and not bf16"
FEW = "test_cuda_sm90_gradient.py::test_weight_gradient_in_few_blocks", "f16 and not bf16"


@dataclass
class Mutant:
    name: str
    file: str  # of csrc/cuda
    before: str  # unique text of the file, `what` in it is mutated
    what: str
    becomes: str  # "" drops a statement
    tests: tuple


MUTANTS = [
    Mutant("conv3x3: no barrier before pixels are replaced", "conv3x3.cuh",
           "if (half > 0) sync_threads();  // everyone has read the pixels before", "sync_threads();", "",
           CONV),
    Mutant("conv3x3: no wait for weights", "conv3x3.cuh", "copy_async_wait<0>();\n      sync_threads();  // this",
           "copy_async_wait<0>();", "", CONV),
    Mutant("conv3x3: no barrier after the wait", "conv3x3.cuh", "sync_threads();  // this step's weights",
           "sync_threads();", "", CONV),
    Mutant("conv3x3: no barrier before sums are staged", "conv3x3.cuh",
           "sync_threads();  // everyone has read pixels and weights", "sync_threads();", "", CONV),
    Mutant("conv3x3: no barrier after sums are staged", "conv3x3.cuh", "sums.stage(staged);\n  sync_threads();",
           "sync_threads();", "", CONV),
    Mutant("conv3x3: halo shifted by one", "conv3x3.cuh", "x = tile.x0 - 1 + q % kHaloColumns", "tile.x0 - 1",
           "tile.x0",
           CONV),
    Mutant("conv3x3: another bit in the pixels' swizzle", "conv3x3_multiply.cuh",
           "(pixel_offset(q, lane / 16) ^ (half << 6))",
           "(half << 6)", "((half << 6) ^ 16)", CONV),
    Mutant("conv3x3: another bit in the weights' swizzle", "conv3x3_multiply.cuh", "weight_offset(row, lane / 8 % 2);",
           "lane / 8 % 2", "(lane / 8 % 2 ^ 1)", CONV),
    Mutant("conv3x3: no barrier before sums of groups are added", "conv3x3_epilogue.cuh",
           "sync_threads();\n    if (threadIdx.x < kChunk) {", "sync_threads();", "", STATISTICS),
    Mutant("conv3x3: no barrier before tap planes", "conv3x3_epilogue.cuh",
           "sync_threads();\n    const int pixel = threadIdx.x;", "sync_threads();", "", EXTRAS),
    Mutant("norm: no barrier before sums are added", "norm.cuh", "sync_threads();\n  const int column",
           "sync_threads();", "",
           NORM),
    Mutant("merge: no barrier before sums of warps are added", "by_pixel.cuh",
           "sync_threads();\n  if (warp > 0) return;", "sync_threads();", "", MERGE),
    Mutant("merge: a batch of rows is left out", "by_pixel.cuh", "row += kMergeBatch * kMergeSlots",
           "kMergeBatch * kMergeSlots", "(kMergeBatch + 1) * kMergeSlots", MERGE),
    Mutant("merge: the last row of tiles taken for a whole one", "norm.cuh", "row % p.tiles_y == p.tiles_y - 1",
           "p.tiles_y - 1", "p.tiles_y", MERGE),
    Mutant("merge: the last column of tiles taken for a whole one", "norm.cuh",
           "tile - row * p.tiles_x == p.tiles_x - 1", "p.tiles_x - 1", "p.tiles_x", MERGE),
    Mutant("weight gradient: no wait for the tile", "weight_gradient.cuh",
           "copy_async_wait<1>();  // this tile is here", "copy_async_wait<1>();", "", WEIGHT),
    Mutant("weight gradient: no barrier before the tile is read", "weight_gradient.cuh",
           "sync_threads();\n    sums.add(buffer);", "sync_threads();", "", WEIGHT),
    Mutant("weight gradient: no barrier after the tile is read", "weight_gradient.cuh",
           "sync_threads();  // everyone has read it", "sync_threads();", "", WALK),
    Mutant("stem: no barrier after the picture is loaded", "stem.cuh", "sync_threads();", "sync_threads();", "", STEM),
    Mutant("stem: planes shifted by one", "stem.cuh", "x = tile.x0 - 1 + q % kPlaneColumns", "tile.x0 - 1", "tile.x0",
           STEM),
    Mutant("stem: the picture's edge is not made zero", "stem.cuh", "inside[i] ? packed : 0", "inside[i] ? packed : 0",
           "packed", STEM),
    Mutant("stem: pixels 8 to 15 taken for 0 to 7", "stem.cuh", "operand(low[8])", "operand(low[8])",
           "operand(low[0])", STEM),
    Mutant("stem: weights of the other half of a chunk", "stem.cuh", "(first / kChunk * p.steps * 4 + half * 2) * 32",
           "half * 2", "(1 - half) * 2", STEM),
    Mutant("stem: channels of a vector in another order", "stem.cuh", "tile % (V / 2) * 2 + column % 2;",
           "tile % (V / 2) * 2 + column % 2", "column % 2 * (V / 2) + tile % (V / 2)", STEM),
    Mutant("stem: another row for the last taps", "stem.cuh", "tap / 3 * kPlaneColumns + tap % 3 : 0", "tap / 3",
           "(tap > 5 ? 1 : tap / 3)", STEM),
    Mutant("taps: no barrier before sums are added", "reconstruct.cuh", "sync_threads();\n    if (column < width) {",
           "sync_threads();", "", TAPS),
    Mutant("taps: no barrier after sums are added", "reconstruct.cuh", "sync_threads();\n  }\n  if (blockIdx.y > 0)",
           "sync_threads();", "", TAPS),
    Mutant("channel sums: no barrier before sums are added", "reconstruct.cuh", "sync_threads();\n  const int column",
           "sync_threads();", "", SUMS),
    Mutant("sm90: no wait for a row", "conv3x3_sm90.cuh", "ring.wait(start + i + ky);", "ring.wait(start + i + ky);",
           "",
           ROWS),
    Mutant("sm90: no wait for products", "conv3x3_sm90.cuh", "products_wait<0>();", "products_wait<0>();", "", ROWS),
    Mutant("sm90: no fence before products", "conv3x3_sm90.cuh", "products_fence();", "products_fence();", "", ROWS),
    Mutant("sm90: no arrival for the other's turn", "conv3x3_sm90.cuh",
           "barrier_arrive(turns + 8 * (1 - me));", "barrier_arrive(turns + 8 * (1 - me));", "", ROWS),
    Mutant("sm90: no arrival for a row that was read", "conv3x3_sm90_ring.cuh",
           "barrier_arrive(empty + 8 * (s % slots));", "barrier_arrive(empty + 8 * (s % slots));", "", ROWS),
    Mutant("sm90: a row is fetched before its slot is empty", "conv3x3_sm90_ring.cuh",
           "if (round > 0) barrier_wait(empty + 8 * slot, (round - 1) & 1);\n      barrier_arrive_expect",
           "barrier_wait(empty + 8 * slot, (round - 1) & 1);", "", ROWS),
    Mutant("sm90: rows fetched one pixel to the right", "conv3x3_sm90_ring.cuh",
           "load_box(to, map, c, x - halo, y, n, ready);",
           "x - halo", "x", ROWS),
    Mutant("sm90: rows fetched one row too low", "conv3x3_sm90.cuh", "ring.load(s++, p.x, 0, walk.x, y,", "y",
           "y + 1", ROWS),
    Mutant("sm90: another bit in the results' swizzle", "conv3x3_sm90_ring.cuh", "(vector ^ lane % 8) * 16",
           "vector ^ lane % 8", "vector ^ lane % 8 ^ 1", ROWS),
    Mutant("sm90: a tap's descriptor starts one pixel late", "conv3x3_sm90.cuh", "row + (kx * kPixel + k * 32) / 16",
           "kx * kPixel", "(kx + 1) * kPixel", ROWS),
    Mutant("sm90: results leave before they are staged", "conv3x3_sm90.cuh",
           "fence_proxy_async();\n        sync_some(1 + me, 128);", "sync_some(1 + me, 128);", "", ROWS),
    Mutant("sm90: no fence before results leave", "conv3x3_sm90.cuh", "fence_proxy_async();", "fence_proxy_async();",
           "",
           ROWS),
    Mutant("sm90: results overwritten before they have left", "conv3x3_sm90.cuh", "store_wait_read<0>();",
           "store_wait_read<0>();", "", ROWS),
    Mutant("sm90: no wait for the residual", "conv3x3_sm90.cuh", "barrier_wait(added + 8 * me, turn & 1);",
           "barrier_wait(added + 8 * me, turn & 1);", "", ADDED),
    Mutant("sm90: the residual's bytes are not awaited", "conv3x3_sm90.cuh", "p.adds * kTileBytes);",
           "p.adds * kTileBytes",
           "kTileBytes / 2", ADDED),
    Mutant("deep: no wait for weights", "conv3x3_sm90_deep.cuh", "barrier_wait(full + 8 * slot, parity);\n#pragma",
           "barrier_wait(full + 8 * slot, parity);", "", DEEP),
    Mutant("deep: a row more is not waited for", "conv3x3_sm90_deep.cuh", "ring.wait(first + ky + 1);",
           "ring.wait(first + ky + 1);", "", DEEP),
    Mutant("deep: weights freed before the other warpgroup has read", "conv3x3_sm90_deep.cuh",
           "release_stage();\n", "release_stage();", "release_stage(); release_stage();", DEEP),
    Mutant("deep: weights freed without a fence behind their loads", "conv3x3_sm90_deep.cuh",
           "fence_proxy_async();\n      sync_warp();", "fence_proxy_async();", "", DEEP),
    Mutant("deep: the lower row's mask overwritten without a fence", "conv3x3_sm90_deep.cuh",
           "fence_proxy_async();\n                sync_some(1 + me, 128);  // the lower", "fence_proxy_async();", "", MASK),
    Mutant("deep: no arrival for weights that were read", "conv3x3_sm90_deep.cuh",
           "if (lane == 0) barrier_arrive(empty +", "lane == 0", "false", DEEP),
    Mutant("deep: no arrival for warpgroup 2's turn", "conv3x3_sm90_deep.cuh", "barrier_arrive(turn);",
           "barrier_arrive(turn);",
           "", DEEP),
    Mutant("deep: no barrier before tap planes are contracted", "conv3x3_sm90_deep.cuh",
           "sync_some(1 + me, 128);  // all is staged", "sync_some(1 + me, 128);", "", DEEP),
    Mutant("deep: no barrier after tap planes are contracted", "conv3x3_sm90_deep.cuh",
           "sync_some(1 + me, 128);  // the tile is free", "sync_some(1 + me, 128);", "", DEEP),
    Mutant("deep: no fence before results leave", "conv3x3_sm90_deep.cuh", "if (p.stored) fence_proxy_async();",
           "if (p.stored) fence_proxy_async();", "", DEEP),
    Mutant("deep: results overwritten before they have left", "conv3x3_sm90_deep.cuh", "store_wait_read<0>();",
           "store_wait_read<0>();", "", DEEP),
    Mutant("deep: the last tap left out", "conv3x3_sm90_deep.cuh",
           "to[word] = tap < 9", "tap < 9", "tap < 8", DEEP),
    Mutant("deep: another bit in the swizzle of tap planes' pixels", "conv3x3_sm90_deep.cuh",
           "(lane / 16 ^ lane % 8) * 16", "lane / 16 ^ lane % 8", "lane / 16 ^ lane % 8 ^ 1", DEEP),
    # Nine taps and more lie between the lower row's mask and the wait for it, in which every copy lands here.
    Mutant("deep: the lower row takes the upper's mask", "conv3x3_sm90_deep.cuh", "fetch_mask(y + 1);", "y + 1", "y",
           MASK),
    Mutant("deep: no wait for the upper row's mask", "conv3x3_sm90_deep.cuh", "barrier_wait(masks + 8 * me, 1);",
           "barrier_wait(masks + 8 * me, 1);", "", MASK),
    Mutant("deep: the upper row's mask overwrites the lower's", "conv3x3_sm90_deep.cuh",
           "sync_some(1 + me, 128);  // the lower row's mask is read", "sync_some(1 + me, 128);", "", MASK),
    Mutant("deep: sums of rows below the picture", "conv3x3_sm90_deep.cuh", "lane % 4 == 0 && row < p.h", "row < p.h",
           "row <= p.h", MASK),
    Mutant("deep: no wait for products", "conv3x3_sm90_deep.cuh", "products_wait<0>();", "products_wait<0>();", "",
           DEEP),
    Mutant("cluster: arrivals at the wrong block", "conv3x3_sm90_ring.cuh",
           "barrier_arrive_in(empty + 8 * (s % slots), s % cluster);", "s % cluster", "(s + 1) % cluster", DEEP),
    Mutant("cluster: rows sent to one block alone", "conv3x3_sm90_ring.cuh", "ready, (1 << cluster) - 1);",
           "(1 << cluster) - 1", "1 << rank", DEEP),
    Mutant("cluster: a row is overwritten once one block has read it (64 in)", "conv3x3_sm90_ring.cuh",
           "barrier_init(empty + 8 * i, warps * cluster);", "warps * cluster", "warps", WIDE),
    Mutant("cluster: a row is fetched twice (64 in)", "conv3x3_sm90_ring.cuh", "if (s % cluster == rank) {",
           "s % cluster == rank", "s % cluster == rank || s == 9 && rank == 0", WIDE),
    Mutant("cluster: blocks start before barriers are made (64 in)", "conv3x3_sm90.cuh",
           "sync_blocks<cluster>();\n  Walk walk", "sync_blocks<cluster>();", "", WIDE),
    Mutant("cluster: a block leaves while others need it (64 in)", "conv3x3_sm90.cuh",
           "sync_blocks<cluster>();  // none leaves", "sync_blocks<cluster>();", "", WIDE),
    Mutant("cluster: a block leaves while others need it", "conv3x3_sm90_deep.cuh",
           "sync_blocks<cluster>();  // none leaves", "sync_blocks<cluster>();", "", DEEP),
    Mutant("cluster: blocks start before barriers are made", "conv3x3_sm90_deep.cuh",
           "sync_blocks<cluster>();\n\n  if (warp < 4)",
           "sync_blocks<cluster>();", "", DEEP),
    Mutant("gradient90: no wait for a row of x", "weight_gradient_sm90.cuh", "xs.wait(start + i + ky);",
           "xs.wait(start + i + ky);", "", FEW),
    Mutant("gradient90: no wait for a row of dy", "weight_gradient_sm90.cuh", "dys.wait(rows + i);",
           "dys.wait(rows + i);", "", FEW),
    Mutant("gradient90: no fence before products", "weight_gradient_sm90.cuh", "products_fence();",
           "products_fence();", "", FEW),
    Mutant("gradient90: a row is freed while its products are under way", "weight_gradient_sm90.cuh",
           "products_wait<1>();", "products_wait<1>();", "products_wait<2>();", FEW),
    Mutant("gradient90: sums are stored before the last products are done", "weight_gradient_sm90.cuh",
           "products_wait<0>();", "products_wait<0>();", "products_wait<1>();", FEW),
    Mutant("gradient90: rows that one reads alone are not freed by the others", "weight_gradient_sm90.cuh",
           "for (int s = 0; s < ky; s++) xs.release", "s < ky", "s + 1 < ky", FEW),
    Mutant("gradient90: the next tap's columns start two pixels on", "weight_gradient_sm90.cuh",
           "b = depths_descriptor(x, kPixel)", "kPixel", "2 * kPixel", FEW),
    Mutant("gradient90: taps' descriptor starts one pixel late", "weight_gradient_sm90.cuh",
           "b + k * kPixel / 16", "k", "(k + 1)", FEW),
    Mutant("gradient90: rows of dy come one too low", "weight_gradient_sm90.cuh", "out, walk.x, y + 1, walk.n, 0);",
           "y + 1", "y + 2", FEW),
    Mutant("gradient90: sums of two rows of taps change places", "weight_gradient_sm90.cuh",
           "+ ky * 3 * kChunk * kChunk", "ky", "(ky ^ (ky < 2))", FEW),
]


def planted(text, mutant, number):
    """`text` with the mutant beside what it replaces, chosen when it runs."""
    if text.count(mutant.before) != 1:
        sys.exit(f"{mutant.name}: {text.count(mutant.before)} places in {mutant.file} read {mutant.before!r}")
    at = text.index(mutant.what, text.index(mutant.before))
    if mutant.what.endswith(";"):
        new = f"if (emulated::mutant() != {number}) {{ {mutant.what} }} else {{ {mutant.becomes} }}"
    else:
        new = f"(emulated::mutant() == {number} ? ({mutant.becomes}) : ({mutant.what}))"
    return text[:at] + new + text[at + len(mutant.what):]


def plant_all(csrc):
    for number, mutant in enumerate(MUTANTS):
        path = csrc / "cuda" / mutant.file
        path.write_text(planted(path.read_text(), mutant, number))
    path = csrc / "emulator" / "cuda_language.h"
    path.write_text(path.read_text() + """
#include <cstdlib>
namespace emulated {
inline int mutant() {
  static const int alive = std::getenv("DBLR_MUTANT") ? std::atoi(std::getenv("DBLR_MUTANT")) : -1;
  return alive;
}
}  // namespace emulated
""")


def passes(tests, built, number):
    path, words = tests
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(TESTS / path),
                           *(["-k", words] if words else [])], capture_output=True, text=True, cwd=TESTS, check=False,
                          env={**os.environ, "DBLR_EMULATOR_BUILT": str(built), "DBLR_MUTANT": str(number)})
    if done.returncode == 5:
        sys.exit(f"no test is called {path} {words}")
    why = [line for line in done.stdout.splitlines() if line.startswith("E  ")]
    return done.returncode == 0, why[0][1:].strip() if why else done.stdout[-300:] + done.stderr[-300:]


def hunt(folder, words):
    """Names of the mutants that live on, of those whose names hold one of `words` (all without words)."""
    csrc, fresh = folder / "csrc", folder / "fresh"
    shutil.copytree(emulator.SOURCES, fresh)
    plant_all(fresh)
    for path in fresh.rglob("*"):  # what has not changed keeps its date, and is not compiled again
        to = csrc / path.relative_to(fresh)
        if path.is_file() and not (to.is_file() and to.read_bytes() == path.read_bytes()):
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
    shutil.rmtree(fresh)
    built = emulator.build("_kernels_emulated", sources=csrc, folder=folder / "build").parent
    alive, healthy = [], {}
    for number, mutant in enumerate(MUTANTS):
        if words and not any(word in mutant.name for word in words):
            continue
        if mutant.tests not in healthy:
            healthy[mutant.tests] = passes(mutant.tests, built, -1)
        if not healthy[mutant.tests][0]:
            sys.exit(f"{mutant.tests} fails without a mutant: {healthy[mutant.tests][1]}")
        start = time.perf_counter()
        survived, why = passes(mutant.tests, built, number)
        alive += [mutant.name] if survived else []
        print(f"{'LIVES ON' if survived else 'caught  '} {mutant.name} ({time.perf_counter() - start:.0f} s)"
              f"{'' if survived else ': ' + why[:150]}", flush=True)
    return alive


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("words", nargs="*", help="run the mutants whose names hold one of these, e.g. sm90")
    arguments.add_argument("--folder", type=Path, help="build here and keep it, so that the next run is quick")
    given = arguments.parse_args()
    if given.folder:
        alive = hunt(given.folder.resolve(), given.words)
    else:
        with tempfile.TemporaryDirectory() as folder:
            alive = hunt(Path(folder), given.words)
    if alive:
        sys.exit(f"{len(alive)} mutants live on: {'; '.join(alive)}")


if __name__ == "__main__":
    main()
