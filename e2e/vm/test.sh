#!/usr/bin/env bash
# test.sh SUITE...: boots stock Debians in software emulation and runs the checks beside this file in them, with a reboot in
# between; prints a line for each check and fails when one does. No network is needed once the bases are made.
#
#   GANTRY, DEMO     the binaries to try (those of target/debug)
#   RUNTIME_TESTS=1  run the runtime's own tests there too, which are built for that
set -euo pipefail
cd "$(dirname "$0")/../.."

GANTRY=${GANTRY:-target/debug/gantry}
cache=target/vm
deadline=1200
failed=0

for suite in "$@"; do e2e/vm/base.sh "$suite" "$cache"; done
work=$(mktemp -d)
machines=()
trap 'for pid in "${machines[@]}"; do kill "$pid" 2>/dev/null || true; done; rm -rf "$work"' EXIT

# What the machines find on their second disk: the checks, the program, images and the runtime's tests.
payload=$work/payload
mkdir "$payload"
cp -r e2e/vm/checks/. "$payload/"
chmod +x "$payload/main"
strip -o "$payload/gantry" "$GANTRY"
cp deploy/gantry.service deploy/examples/web.yaml "$payload/"
"${DEMO:-target/debug/gantry-demo}" "$payload" /bin/busybox >/dev/null
if [[ -n ${RUNTIME_TESTS:-} ]]; then e2e/vm/runtime-tests.sh "$payload/runtime"; fi
truncate -s 1G "$work/payload.img"
mkfs.ext4 -q -d "$payload" "$work/payload.img"

boot() {
  local suite=$1
  exec qemu-system-x86_64 -accel tcg,thread=multi -smp 2 -m 2048 -display none \
    -kernel "$cache/$suite/kernel" -initrd "$cache/$suite/initrd" -append "console=ttyS0 quiet" \
    -drive file="$cache/$suite/disk.img",format=raw,if=virtio,snapshot=on \
    -drive file="$work/payload.img",format=raw,if=virtio,readonly=on \
    -nic user,model=virtio-net-pci,restrict=on \
    -serial file:"$work/$suite.console" -serial file:"$work/$suite.report"
}

for suite in "$@"; do
  : >"$work/$suite.report"
  (boot "$suite") &
  machines+=($!)
done

index=0
for suite in "$@"; do
  began=$SECONDS
  machine=${machines[index]}
  index=$((index + 1))
  echo "== $suite"
  # The report as it grows, until the machine turns itself off.
  timeout "$deadline" tail -n +1 -f --pid="$machine" "$work/$suite.report" || true
  if kill -0 "$machine" 2>/dev/null; then
    echo "FAIL $suite was not done after $((SECONDS - began)) s"
    tail -n 20 "$work/$suite.console"
    failed=1
  fi
  if grep -q '^FAIL' "$work/$suite.report" || ! grep -q '^end' "$work/$suite.report"; then failed=1; fi
done
exit "$failed"
