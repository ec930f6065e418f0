# Ends a test host and removes all that it left: processes, cgroups, nspawn's notes, its scratch directory.
# Arguments: ID SCRATCH CGROUP KEEP. Idempotent, and the only place that removes a host. Where KEEP is "wait" it first waits for
# its standard input to end: that is a host's keeper, which outlives a killed test process and cleans up after it.
id=$1 scratch=$2 cgroup=$3
if [ "$4" = wait ]; then cat >/dev/null; fi

# Killing nspawn alone leaves the host running, and killing its init leaves nspawn: the cgroup has them all.
# A host that is just starting may fork past the first blow, so look again until it is empty.
for _ in $(seq 200); do
  [ -e "$cgroup/cgroup.kill" ] || break
  echo 1 >"$cgroup/cgroup.kill" 2>/dev/null
  grep -q '^populated 0' "$cgroup/cgroup.events" 2>/dev/null && break
  sleep 0.05
done
# The second path is what nspawn mirrors where the machine mounts a cgroup v1 hierarchy for systemd.
for tree in "$cgroup" "/sys/fs/cgroup/systemd/$id"; do
  [ -d "$tree" ] && find "$tree" -depth -type d -exec rmdir {} + 2>/dev/null
done
rm -rf "/run/systemd/nspawn/propagate/$id" "/run/systemd/nspawn/unix-export/$id"
# The overlay lived in the host's own mount namespace and is gone with it.
rm -rf --one-file-system "$scratch"
if [ -d "$scratch" ]; then sleep 0.5; rm -rf --one-file-system "$scratch"; fi
rm -f "$scratch.lock"
[ ! -e "$scratch" ] && [ ! -e "$cgroup" ]
