#!/usr/bin/env bash
# base.sh SUITE DIRECTORY: makes a stock Debian that emulators start from, once: DIRECTORY/SUITE gets kernel, initrd and
# disk.img (ext4, 4 GiB, sparse). Packages are those of a minimal installation with systemd, and nothing that Gantry could
# want beside nftables and iproute2: not netbase, so there is no /etc/protocols.
#
# Needs root, debootstrap, e2fsprogs and busybox-static; about a minute and a half, most of it downloads.
set -euo pipefail

suite=$1 target=$2/$1
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
packages=systemd,systemd-sysv,iproute2,nftables,kmod,udev,procps,e2fsprogs,linux-image-cloud-amd64

# What is made anew when this file changes.
version=$(sha256sum <"$0" | cut -c1-16)
[[ $(cat "$target/version" 2>/dev/null) != "$version" ]] || exit 0

mkdir -p "$2"
work=$(mktemp -d "$2/$suite.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
echo "making a minimal Debian ($suite)"
debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror" >"$work/log" 2>&1 ||
  { tail -n 20 "$work/log"; exit 1; }

# The tests' part: a unit that runs what comes on the second disk and reports over the second serial line.
cat >"$root/etc/systemd/system/checks.service" <<'UNIT'
[Unit]
After=multi-user.target

[Service]
ExecStart=/bin/bash -c 'mount -o ro /dev/vdb /opt/checks && exec /opt/checks/main >/dev/ttyS1 2>&1 </dev/null'
TimeoutStartSec=infinity
# What a check starts, as gantry up does, outlives it.
KillMode=process
UNIT
mkdir -p "$root/opt/checks" "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../checks.service "$root/etc/systemd/system/multi-user.target.wants/"
# An address by DHCP, as most machines have.
printf '[Match]\nType=ether\nDriver=virtio_net\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/wired.network"
chroot "$root" systemctl enable systemd-networkd >>"$work/log" 2>&1
# For machines that start nothing but the tests' own program.
cat >"$root/usr/local/sbin/bare-init" <<'INIT'
#!/bin/bash
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 run /run
mkdir -p /dev/pts /dev/shm /dev/mqueue
ln -s /proc/self/fd /dev/fd
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
modprobe virtio_net
mount -o ro /dev/vdb /opt/checks
exec /bin/bash /opt/checks/init
INIT
chmod +x "$root/usr/local/sbin/bare-init"
echo "/dev/vda / ext4 defaults 0 1" >"$root/etc/fstab"
echo stock >"$root/etc/hostname"

# Debian's own initrd looks for hardware of any kind; these few modules are what an emulator's disk needs.
kernel=("$root"/boot/vmlinuz-*)
release=${kernel[0]##*/vmlinuz-}
initrd=$work/initrd
mkdir -p "$initrd"/{bin,modules,proc,sys,dev,new}
cp /bin/busybox "$initrd/bin/busybox"
needed() { chroot "$root" modprobe --set-version "$release" --show-depends "$1" | sed -n 's/^insmod //p'; }
for module in $(needed virtio_pci) $(needed virtio_blk); do
  name=$(basename "$module" .xz)
  [[ ! -e $initrd/modules/$name ]] || continue
  case $module in
  *.xz) xz -dc "$root$module" >"$initrd/modules/$name" ;;
  *) cp "$root$module" "$initrd/modules/$name" ;;
  esac
  echo "$name" >>"$initrd/modules/order"
done
cat >"$initrd/init" <<'INIT'
#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t devtmpfs dev /dev
while read -r name; do $bb insmod "/modules/$name"; done </modules/order
until [ -e /dev/vda ]; do $bb usleep 20000; done
$bb mount -o rw /dev/vda /new || exec $bb sh
init=/sbin/init
for word in $($bb cat /proc/cmdline); do case $word in run=*) init=${word#run=} ;; esac; done
$bb mount --move /dev /new/dev
$bb umount /proc
exec $bb switch_root /new "$init"
INIT
chmod +x "$initrd/init"
(cd "$initrd" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd.gz"

truncate -s 4G "$work/disk.img"
mkfs.ext4 -q -E lazy_itable_init=1 -d "$root" "$work/disk.img"
rm -rf "$target"
mkdir "$target"
cp "${kernel[0]}" "$target/kernel"
mv "$work/initrd.gz" "$target/initrd"
mv "$work/disk.img" "$target/disk.img"
echo "$version" >"$target/version"
