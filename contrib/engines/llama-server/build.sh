#!/bin/bash
# The real llama-server as an image archive for `podman load`: localhost/hostler/llama-server:latest, FROM scratch, with exactly
# the libraries that it needs. Prints the archive's path.
#
# Debian's llama.cpp packages, unpacked: no compiler, no root, no podman. Their suite rolls; LLAMA_SUITE names another.
# EXTRA_DEBS adds packages, for instance a Vulkan backend (see ../README.md).
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

suite=${LLAMA_SUITE:-forky}
arch=$(dpkg --print-architecture)
[ "$arch" = amd64 ] || die "this recipe is for amd64, not $arch"
KEY_EXTRA="$suite ${EXTRA_DEBS:-}"
out=$cache/llama-server-$(key_of "${BASH_SOURCE[0]}" "$here/oci-archive.py").tar
cached "$out"

mirror=$(debian_mirror)
say "unpacking llama-server from Debian $suite ..."
apt=$work/apt
mkdir -p "$apt"/{lists/partial,cache/archives/partial}
: >"$apt/status"
# An apt of its own: the machine's sources, lists and installed packages are neither used nor changed.
echo "deb [arch=$arch signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/sources.list"
cat >"$apt/apt.conf" <<C
Dir::Etc::sourcelist "$apt/sources.list"; Dir::Etc::sourceparts "-"; Dir::Etc::PreferencesParts "/dev/null";
Dir::State::lists "$apt/lists"; Dir::State::status "$apt/status"; Dir::Cache "$apt/cache";
APT::Architecture "$arch"; APT::Install-Recommends "false"; APT::Sandbox::User "";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false"; Acquire::Languages "none";
C
export APT_CONFIG=$apt/apt.conf
apt-get -qq update >&2
cd "$apt/cache/archives"
# shellcheck disable=SC2086 # EXTRA_DEBS is a list
apt-get -qq download llama.cpp-tools libllama0 libggml0 libc6 libgcc-s1 libstdc++6 libgomp1 libssl3t64 libzstd1 \
  zlib1g ${EXTRA_DEBS:-} >&2

root=$work/rootfs
mkdir -p "$root"
versions=
for deb in *.deb; do
  dpkg-deb -x "$deb" "$root"
  versions+="$(dpkg-deb -f "$deb" Package)=$(dpkg-deb -f "$deb" Version) "
done
cd "$root"
[ -e lib ] || ln -s usr/lib lib
[ -e lib64 ] || ln -s usr/lib64 lib64
[ -e bin ] || ln -s usr/bin bin
mkdir -p tmp models proc sys dev run etc
chmod 1777 tmp
echo 'root:x:0:0::/:/bin/false' >etc/passwd
echo 'root:x:0:' >etc/group

# The licences of all that stays, then less of everything else.
mkdir -p usr/share/licenses
for file in usr/share/doc/*/copyright; do
  cp "$file" "usr/share/licenses/$(basename "$(dirname "$file")")"
done
rm -rf usr/share/{doc,lintian,bash-completion,locale,man,bug} usr/sbin usr/libexec var \
  etc/{ld.so.conf.d,default,bindresvport.blacklist} usr/bin/llama-{bench,cli,completion,quantize} \
  usr/lib/x86_64-linux-gnu/llama/libllama-{bench,cli,completion,quantize}-impl.so \
  usr/lib/x86_64-linux-gnu/{gconv,engines-3,ossl-modules,audit,libmvec*,libthread_db*,libnss_compat*,libnss_hesiod*} \
  usr/lib/x86_64-linux-gnu/{libc_malloc_debug*,libmemusage*,libpcprofile*,libnsl*,libBrokenLocale*,libresolv*,libanl*} \
  usr/lib/x86_64-linux-gnu/{librt.so*,libutil.so*}
find . -name '*.a' -delete

version=$(tr ' ' '\n' <<<"$versions" | sed -n 's/^llama.cpp-tools=//p')
python3 "$here/oci-archive.py" "$root" "$work/image.tar" --name localhost/hostler/llama-server:latest \
  --entrypoint /usr/bin/llama-server \
  --label "org.opencontainers.image.title=llama-server" \
  --label "org.opencontainers.image.version=$version" \
  --label "org.opencontainers.image.licenses=MIT" \
  --label "org.hostler.debian-packages=${versions% }"
finish "$work/image.tar" "$out"
