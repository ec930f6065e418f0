#!/usr/bin/env python3
"""Writes a one-layer image archive that `podman load` and `skopeo` accept, without podman and without root.

usage: oci-archive.py ROOTFS OUT.tar --name localhost/x:tag [--entrypoint A --entrypoint B] [--env K=V] [--label K=V]

The layer is ROOTFS with every file owned by root and stamped with the epoch, in sorted order: the same tree gives the
same digest wherever and whenever it is built. The archive has the docker-archive layout (manifest.json, a config, a
layer), which carries the image's name; an OCI layout would be loaded without one.
"""
import argparse
import hashlib
import io
import json
import os
import tarfile


def layer_of(rootfs: str, path: str) -> str:
    """Packs the tree into an uncompressed layer; returns its digest."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for folder, folders, files in os.walk(rootfs):
            folders.sort()
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            for name in sorted(files + folders):
                full = os.path.join(folder, name)
                info = tar.gettarinfo(full, os.path.relpath(full, rootfs))
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                info.mtime = 0
                if info.isreg():
                    with open(full, "rb") as file:
                        tar.addfile(info, file)
                else:
                    tar.addfile(info)
            folders[:] = [name for name in folders if name not in links]
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ask.add_argument("rootfs")
    ask.add_argument("out")
    ask.add_argument("--name", required=True)
    ask.add_argument("--entrypoint", action="append", default=[])
    ask.add_argument("--env", action="append", default=[])
    ask.add_argument("--label", action="append", default=[])
    args = ask.parse_args()

    layer = args.out + ".layer"
    digest = layer_of(args.rootfs, layer)
    config = json.dumps({
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": args.entrypoint or None,
            "Env": args.env or None,
            "Labels": dict(pair.split("=", 1) for pair in args.label) or None,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "comment": "contrib/engines"}],
    }, sort_keys=True).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{
        "Config": config_name,
        "RepoTags": [args.name],
        "Layers": [f"{digest}.tar"],
    }]).encode()

    def text(tar: tarfile.TarFile, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))

    with tarfile.open(args.out, "w", format=tarfile.GNU_FORMAT) as tar:
        text(tar, "manifest.json", manifest)
        text(tar, config_name, config)
        tar.add(layer, f"{digest}.tar", filter=lambda info: (setattr(info, "mtime", 0), info)[1])
    os.unlink(layer)


if __name__ == "__main__":
    main()
