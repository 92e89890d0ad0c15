#!/usr/bin/env bash
# runtime-tests.sh DIRECTORY: puts the runtime's own tests there, for machines without a toolchain. They are the same that
# run here, on another kernel and another kind of control groups.
set -euo pipefail
cd "$(dirname "$0")/../.."

mkdir -p "$1/tests"
cargo test -p gantry-runtime --no-run --message-format json 2>/dev/null |
  sed -n 's/.*"name":"\([a-z_]*\)".*"executable":"\([^"]*\)".*/\1 \2/p' |
  while read -r name file; do
    case $name in
    gantry-shim) ;;
    *) strip -o "$1/tests/$name" "$file" ;;
    esac
  done
# The tests know their shim by the path it was built at.
shim=$(realpath target/debug/gantry-shim)
strip -o "$1/gantry-shim" "$shim"
echo "$shim" >"$1/shim-path"
cp /bin/busybox "$1/"
[[ -n $(ls "$1/tests") ]] || { echo "no tests of the runtime were built"; exit 1; }
