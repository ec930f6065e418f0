# Boots a host: mounts its overlay in a mount namespace of its own, in a cgroup of its own, and becomes systemd-nspawn.
# Arguments: ID ROOT SCRATCH CGROUP [nspawn options ...]
set -e
id=$1 root=$2 scratch=$3 cgroup=$4
shift 4
# Two hosts in one cgroup would kill each other's payload.
echo $$ >"$cgroup/cgroup.procs"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
# --keep-unit: outside the machine's own service manager, which need not exist. All capabilities and the machine's own user ids:
# a real host has them, and rootless podman makes user namespaces below them. "@keyring bpf": crun makes session
# keyrings, systemd loads device and address filters. The clock must not be changed in there: it is the machine's own.
exec systemd-nspawn --quiet --boot --machine="$id" --directory="$scratch/root" \
  --register=no --keep-unit --kill-signal=SIGRTMIN+3 --console=pipe \
  --capability=all --private-users=no --private-network --system-call-filter="@keyring bpf" \
  --link-journal=no --resolv-conf=off --timezone=off \
  --bind="$scratch/dev/fuse:/dev/fuse" --bind="$scratch/dev/tun:/dev/net/tun" \
  --bind="$scratch/data:/var/lib/hostler" "$@"
