#!/bin/bash
# Line coverage of the pure layers by unit tests and configuration cases; fails below 90 %: `make coverage`.
#
# rustc writes profiles that only LLVM's tools of the same major version read, and rustup's are not in a registry: they are
# taken from Debian, unpacked into the cache, never installed.
source "$(dirname "${BASH_SOURCE[0]}")/../contrib/engines/lib.sh"
tree=$(cd "$here/../.." && pwd)
least=90

tools() {
  local major=$1 suite=${LLVM_SUITE:-sid} out=$cache/llvm-$1 apt
  if [ ! -x "$out/usr/lib/llvm-$major/bin/llvm-cov" ]; then
    say "unpacking llvm-$major from Debian $suite ..."
    rm -rf "$out" "$out.part"
    apt=$out.part/apt
    mkdir -p "$apt"/{lists/partial,cache/archives/partial} "$out.part/root"
    : >"$apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(debian_mirror) $suite main" >"$apt/sources.list"
    cat >"$apt/apt.conf" <<C
Dir::Etc::sourcelist "$apt/sources.list"; Dir::Etc::sourceparts "-"; Dir::Etc::PreferencesParts "/dev/null";
Dir::State::lists "$apt/lists"; Dir::State::status "$apt/status"; Dir::Cache "$apt/cache";
APT::Install-Recommends "false"; APT::Sandbox::User ""; Acquire::Languages "none";
C
    APT_CONFIG=$apt/apt.conf apt-get -qq update >&2
    APT_CONFIG=$apt/apt.conf apt-get -qq install --download-only -y "llvm-$major" >&2
    for deb in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$deb" "$out.part/root"; done
    mv -T "$out.part/root" "$out"
    rm -rf "$out.part"
  fi
  echo "$out"
}

major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
root=$(tools "$major")
# They are linked against a younger libc than this machine's.
llvm() {
  local lib=$root/usr/lib/$(uname -m)-linux-gnu
  "$lib/ld-linux-x86-64.so.2" --library-path "$lib:$root/usr/lib/llvm-$major/lib" "$root/usr/lib/llvm-$major/bin/$1" "${@:2}"
}

cd "$tree"
target=${CARGO_TARGET_DIR:-target}/coverage
rm -rf "$target/profiles"
mkdir -p "$target/profiles"
export CARGO_TARGET_DIR=$target RUSTFLAGS="-Cinstrument-coverage" LLVM_PROFILE_FILE=$PWD/$target/profiles/%p-%m.profraw
tests=(--lib --test roots)
cargo test --locked -p hostler "${tests[@]}" >&2
objects=()
while read -r binary; do objects+=(--object "$binary"); done < <(
  cargo test --locked -p hostler "${tests[@]}" --no-run --message-format json 2>/dev/null | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        print(message["executable"])')
llvm llvm-profdata merge -sparse "$target"/profiles/*.profraw -o "$target/all.profdata"
llvm llvm-cov export --summary-only --instr-profile "$target/all.profdata" "${objects[@]}" >"$target/summary.json"
python3 - "$target/summary.json" "$least" "$tree" <<'PY'
import json, re, sys
summary, least, tree = json.load(open(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
# The pure files are those that tests/tidy/rules.rs holds to be pure.
rules = open(f"{tree}/tests/tidy/rules.rs").read()
impure = set(re.findall(r'"(src/[^"]+\.rs)"', rules.split("const IMPURE")[1].split("];")[0]))
sums = {}
for file in summary["data"][0]["files"]:
    name = file["filename"].removeprefix(tree + "/")
    layer = "/".join(name.split("/")[:2])
    if layer not in ("src/types", "src/plan", "src/config", "src/supervisor") or name in impure or name.endswith("tests.rs"):
        continue
    lines = file["summary"]["lines"]
    print(f'{lines["percent"]:6.1f} %  {lines["covered"]:5} of {lines["count"]:5}  {name}')
    count = sums.setdefault(layer, [0, 0])
    count[0] += lines["covered"]
    count[1] += lines["count"]
bad = False
for layer, (covered, count) in sums.items():
    percent = 100 * covered / count
    bad |= percent < least
    print(f"{percent:6.1f} %  {layer}")
sys.exit(f"coverage: a pure layer is below {least} %" if bad or len(sums) < 4 else 0)
PY
