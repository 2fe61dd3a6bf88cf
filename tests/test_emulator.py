"""The emulator of csrc/emulator by itself: every instruction against its definition, planted faults caught.

The tests are C++ (csrc/emulator/selftest); here they are built, plainly and with AddressSanitizer, and run.
"""

import re
import subprocess

import emulator
import pytest

SELFTEST = emulator.SOURCES / "emulator" / "selftest"
NAMES = sorted(name for path in SELFTEST.glob("*.cpp")
               for name in re.findall(r"^TEST\((\w+)\)", path.read_text(), re.MULTILINE))
UNSANITIZED = {"store_beside_shared_memory"}  # AddressSanitizer ends the process there: test_out_of_bounds_...


def outcomes(sanitize):
    program = emulator.build("emulator_selftest", sanitize)
    done = subprocess.run([program], capture_output=True, text=True)
    found = {}
    for line in done.stdout.splitlines():
        verdict, name, *_ = line.replace(":", " ").split()
        found[name] = (verdict, line)
    return found, done


@pytest.fixture(scope="module")
def plain():
    return outcomes(None)


@pytest.fixture(scope="module")
def sanitized():
    return outcomes("address")


@pytest.mark.parametrize("name", NAMES)
def test_plain(plain, name):
    found, done = plain
    verdict, line = found.get(name, ("", f"it did not run: {done.stderr[-3000:]}"))
    assert verdict == "ok", line


def test_under_address_sanitizer(sanitized):
    found, done = sanitized
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert set(found) == set(NAMES) - UNSANITIZED


@pytest.mark.parametrize("case", ["read", "write", "global"])
def test_out_of_bounds_is_caught_by_address_sanitizer(case):
    program = emulator.build("emulator_selftest", "address")
    done = subprocess.run([program, "--out-of-bounds", case], capture_output=True, text=True)
    assert done.returncode != 0
    assert "ERROR: AddressSanitizer" in done.stderr, done.stderr[-3000:]
    assert "out_of_bounds_kernel" in done.stderr, "the report names no place in the kernel"
