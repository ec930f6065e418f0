#!/bin/bash
# Ends the demo and leaves nothing running. What is installed on a machine with systemd stays (see the last line); the caches stay.
source "$(dirname "$0")/lib.sh"

if [ $native = yes ]; then
  # Without it, what runs here is no demo: it is left alone.
  if ! on_host test -e /etc/hostler/hostler.toml.d/50-demo.toml; then note "no demo runs"; exit 0; fi
  on_host systemctl stop hostler.socket hostler-unix.socket hostler.service 2>/dev/null || true
  on_host rm -f /etc/hostler/hostler.toml.d/50-demo.toml
  # Its manager ends the podman API and whatever container the daemon could not.
  on_host systemctl stop "user@$(id -u hostler).service"
  note "stopped; the units stay installed, and the service user's manager starts again at the next boot"
else
  [ -x "$testhost" ] || { note "no demo runs"; exit 0; }
  as_root "$testhost" stop $name
  note "stopped; the host and all that ran in it are gone"
fi
