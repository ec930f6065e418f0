#!/usr/bin/env python3
"""The software bill of materials of Hostler's binaries, as CycloneDX JSON, on standard output; see docs/packages.md.

  sbom.py                      print it
  sbom.py --compare BINARY ..  check that all of it is in the lists that `cargo auditable` has put into binaries; print nothing

It names the crates that are linked for this machine's target: what `cargo tree` follows over normal dependencies, without procedural
macros and build scripts, which run in the compiler only. Checksums are those of Cargo.lock. The same tree gives the same bytes: the one
time in it is SOURCE_DATE_EPOCH, by default the commit's, and there is no serial number.
"""

import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zlib

TREE = pathlib.Path(__file__).resolve().parent.parent
SPEC = "1.6"


def run(*command):
    return subprocess.run(command, cwd=TREE, check=True, stdout=subprocess.PIPE, text=True).stdout


def linked():
    """Every linked crate, the program first: (name, version) -> its licence, its repository, what it depends on."""
    lines = run(
        "cargo", "tree", "--locked", "--package", "hostler", "--edges", "normal,no-proc-macro", "--prefix", "depth",
        "--format", "|{p}|{l}|{r}",
    )
    crates, above = {}, []
    for line in lines.splitlines():
        depth, package, licence, repository = line.split("|", 3)
        name, version = re.match(r"(\S+) v(\S+)", package).groups()
        # Its dependencies follow where it is named for the first time; "(*)" later.
        repository = repository.removesuffix(" (*)").strip()
        crates.setdefault((name, version), {"licence": licence, "repository": repository, "needs": set()})
        del above[int(depth):]
        if above:
            crates[above[-1]]["needs"].add((name, version))
        above.append((name, version))
    return crates


def purl(crate):
    return "pkg:cargo/%s@%s" % crate


def component(crate, about, checksums):
    made = {"type": "library", "bom-ref": purl(crate), "name": crate[0], "version": crate[1], "purl": purl(crate)}
    if about["licence"]:
        # An old form of "OR", which is no SPDX expression.
        made["licenses"] = [{"expression": about["licence"].replace("/", " OR ")}]
    if crate in checksums:
        made["hashes"] = [{"alg": "SHA-256", "content": checksums[crate]}]
    if about["repository"]:
        made["externalReferences"] = [{"type": "vcs", "url": about["repository"]}]
    return made


def locked(lock):
    """(name, version) -> the checksum in Cargo.lock. Its form is cargo's own, and tomllib is younger than the Python of RHEL 9."""
    package = r'\[\[package\]\]\nname = "(.+)"\nversion = "(.+)"\n(?:source = .+\n)?(?:checksum = "(.+)"\n)?'
    return {(name, version): checksum for name, version, checksum in re.findall(package, lock) if checksum}


def bill():
    crates = linked()
    checksums = locked((TREE / "Cargo.lock").read_text())
    root = next(iter(crates))
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct")
    time = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc)
    program = component(root, crates[root], checksums) | {"type": "application"}
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lifecycles": [{"phase": "build"}],
            "component": program,
        },
        "components": [component(c, crates[c], checksums) for c in sorted(crates) if c != root],
        "dependencies": [
            {"ref": purl(c), "dependsOn": [purl(n) for n in sorted(crates[c]["needs"])]} for c in sorted(crates)
        ],
    }


def embedded(binary):
    """The crates in a binary's own list that are not of the build only."""
    with tempfile.TemporaryDirectory() as work:
        dumped = pathlib.Path(work) / "list"
        subprocess.run(["objcopy", f"--dump-section=.dep-v0={dumped}", binary, f"{work}/copy"], capture_output=True)
        section = dumped.read_bytes() if dumped.exists() else b""
    if not section:
        sys.exit(f"sbom: {binary} carries no list of its crates: build it by `cargo auditable` (make deb and make rpm do)")
    packages = json.loads(zlib.decompress(section))["packages"]
    return {(p["name"], p["version"]) for p in packages if p.get("kind", "runtime") != "build"}


def compare(binaries):
    # Those lists may name more: they are made by `cargo metadata`, which counts features of the whole workspace and of tests.
    named = set(linked())
    for binary in binaries:
        if missing := named - embedded(binary):
            sys.exit(f"sbom: these crates are not in the list that {binary} carries: {sorted(missing)}")


if sys.argv[1:2] == ["--compare"]:
    compare(sys.argv[2:])
elif len(sys.argv) == 1:
    json.dump(bill(), sys.stdout, indent=1)
    print()
else:
    sys.exit(__doc__)
