"""Runs the cases in cases/*.py on a directory: each function case_NAME(dir) in a fresh directory, its docstring the claim.

    runner.py [--oracle] [--skip FILE] DIR [CALL..]
"""
import argparse
import importlib.util
import os
import shutil
import signal
import sys
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
CASE_SECONDS = 60


def load(path):
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def skips(path):
    """Returns name -> reason. Each line is `CALL.case # reason`."""
    listed = {}
    for line in open(path) if path else []:
        if line.strip() and not line.startswith("#"):
            name, reason = (part.strip() for part in line.split("#", 1))
            listed[name] = reason
    return listed


def timeout(*_):
    raise TimeoutError(f"not done after {CASE_SECONDS} s")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--oracle", action="store_true")
    parser.add_argument("--skip")
    parser.add_argument("dir")
    parser.add_argument("calls", nargs="*")
    options = parser.parse_args()
    sys.path.insert(0, HERE)
    signal.signal(signal.SIGALRM, timeout)
    listed = skips(options.skip)
    passed, failed, skipped = 0, [], []
    files = sorted(name for name in os.listdir(os.path.join(HERE, "cases")) if name.endswith(".py"))
    for file in files:
        call = file[:-3]
        if options.calls and call not in options.calls:
            continue
        module = load(os.path.join(HERE, "cases", file))
        for attribute, case in vars(module).items():
            if not attribute.startswith("case_"):
                continue
            name = f"{call}.{attribute[5:]}"
            place = os.path.join(options.dir, name)
            os.mkdir(place)
            signal.alarm(CASE_SECONDS)
            try:
                case(place)
                error = None
            except Exception:
                error = traceback.format_exc(limit=-2)
            finally:
                signal.alarm(0)
            shutil.rmtree(place, ignore_errors=True)
            if name in listed:
                skipped.append(name)
                if error is None:
                    failed.append(name)
                    print(f"PASSES, so take it off the skip list: {name}")
            elif error:
                failed.append(name)
                print(f"FAILED {name}: {(case.__doc__ or '').strip()}\n{error}")
            else:
                passed += 1
    where = "the oracle" if options.oracle else options.dir
    print(f"fstests on {where}: {passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    sys.exit(bool(failed) or not passed)


main()
