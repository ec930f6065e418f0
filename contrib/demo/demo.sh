#!/bin/bash
# A real model, in a real rootless container, answers a streaming chat completion through a socket-activated endpoint.
# The first run fetches and builds (some minutes); the next ones take seconds. `make demo-stop` ends it.
source "$(dirname "$0")/lib.sh"
started=$SECONDS

say "1/6 What this machine needs"
if [ $native = yes ]; then tests/host/prereqs.sh --native; else tests/host/prereqs.sh; fi
command -v cargo >/dev/null || die "cargo is missing: install a Rust toolchain (rust-version in Cargo.toml) and try again"
note "all there"

say "2/6 Build"
packages=(-p hostler)
[ $native = yes ] || packages+=(-p testhost)
cargo build --release --locked "${packages[@]}"

say "3/6 A real engine and a real model"
image=$(contrib/engines/llama-server/build.sh)
model=$(contrib/engines/models/smollm2.sh)
note "llama-server: $(du -h "$image" | cut -f1) image; SmolLM2-135M-Instruct: $(du -h "$model" | cut -f1)"

if [ $native = yes ]; then
  say "4/6 Install the units on this machine (systemd is PID 1)"
  conflicting=$(ls /etc/hostler/*.toml /etc/hostler/*.toml.d/*.toml 2>/dev/null | grep -v /50-demo.toml || true)
  [ -z "$conflicting" ] || die "Hostler is configured here already ($conflicting): the demo leaves that alone"
  "${sudo[@]}" make --silent install BINDIR="${CARGO_TARGET_DIR:-target}/release"
  "${sudo[@]}" packaging/postinst.sh
  "${sudo[@]}" install -D -m 0644 contrib/demo/hostler.toml /etc/hostler/hostler.toml.d/50-demo.toml
  "${sudo[@]}" install -m 0644 "$model" /var/lib/hostler/models/smollm2.gguf
else
  say "4/6 Boot a host: PID 1 of this machine is $(cat /proc/1/comm), so systemd runs in a container"
  as_root "$testhost" boot $name
  as_root "$testhost" install $name "${CARGO_TARGET_DIR:-target}/release"
  stage=$(mktemp -d)
  trap 'rm -rf "$stage"' EXIT
  cp contrib/demo/hostler.toml "$stage/50-demo.toml"
  cp "$model" "$stage/smollm2.gguf"
  as_root "$testhost" copy $name "$stage/50-demo.toml" /etc/hostler/hostler.toml.d
  as_root "$testhost" copy $name "$stage/smollm2.gguf" /var/lib/hostler/models
fi
# What `podman load` would skip anyway takes a second less when it is not asked for.
as_service podman image exists localhost/hostler/llama-server:latest || as_service podman load --quiet <"$image"
if [ -e /dev/nvidiactl ]; then
  note "this machine has an NVIDIA GPU; the demo's engine computes on the CPU, so its memory is the host's:"
else
  note "no NVIDIA GPU here:"
fi
note "[gpu] backend = \"host\" keeps account of host memory, explicitly; see contrib/demo/hostler.toml"
# A daemon of an earlier run has the earlier binary and configuration.
on_host systemctl stop hostler.service 2>/dev/null || true
on_host systemctl start hostler.socket hostler-unix.socket
note "listening on 127.0.0.1:8711; hostlerd: $(on_host systemctl is-active hostler.service || true)"

say "5/6 Ask"
question='Why do people like trains? Answer in two sentences.'
note "$question"
request='{"model":"smollm2","stream":true,"max_tokens":120,"temperature":0.3,"seed":7,"messages":[{"role":"user","content":"'$question'"}]}'
endpoint=http://127.0.0.1:8711
echo
on_host curl -sSN --max-time 300 "$endpoint/v1/chat/completions" -H 'Content-Type: application/json' -d "$request" |
  python3 contrib/demo/show_stream.py

say "6/6 What runs now"
# The daemon tells systemd its status at most once a second or so: wait for the one after the answer.
for _ in 1 2 3 4 5 6 7 8 9 10; do
  status=$(on_host systemctl show hostler.service --property=StatusText --value)
  case $status in *"1 of 1 models ready"*) break ;; esac
  sleep 0.5
done
note "hostler.service: $(on_host systemctl is-active hostler.service)"
note "$status"
note "model    smollm2, phase $(case $status in *smollm2*) echo ready ;; *) echo unknown ;; esac)"
container=$(as_service podman ps --quiet --filter name=hostler-smollm2 | head -n 1)
[ -n "$container" ] || die "no container runs for the model: see the journal of hostler.service"
cgroup=$(as_service podman inspect --format '{{.State.CgroupPath}}' "$container")
note "engine   $(as_service podman ps --filter "id=$container" --format '{{.Names}}, {{.Image}}')"
# shellcheck disable=SC2016 # expanded there, not here
on_host sh -c 'for pid in $(find "/sys/fs/cgroup$0" -name cgroup.procs -exec cat {} +); do
  awk -v name="$(cat /proc/$pid/comm)" -v uid="$(stat -c %u /proc/$pid)" \
    "/^Pss:/ { printf \"   process  %s, uid %s, %d MiB of memory\n\", name, uid, \$2 / 1024 }" /proc/$pid/smaps_rollup
done' "$cgroup"

if [ $native = yes ]; then enter="sudo"; else enter="${sudo[*]:+sudo }$testhost exec $name"; fi
say "Three things to try ($((SECONDS - started)) s in all)"
cat <<T
   $enter curl -sN $endpoint/v1/chat/completions -d '{"model":"smollm2","stream":true,"messages":[{"role":"user","content":"Count to five."}]}'
   $enter journalctl -u hostler -f
   $enter systemctl stop hostler    # then ask again: the first request starts the daemon and loads the model
   make demo-stop                          # when you are done
T
