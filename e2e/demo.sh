#!/usr/bin/env bash
# The guided tour behind `make demo`: starts a cluster, runs a web application, scales it, rolls it to a new version
# under continuous requests, rolls it back, and leaves everything running.
set -euo pipefail

GANTRY=${GANTRY:?the gantry binary}
DEMO=${DEMO:?the directory of the gantry-demo binary}
cd "$(dirname "$0")/.."
GANTRY=$(realpath "$GANTRY")
work=$(mktemp -d)
load=
trap '[[ -z $load ]] || kill "$load" 2>/dev/null || true; rm -rf "$work"' EXIT

bold=$'\e[1m' plain=$'\e[0m'
[[ -t 1 ]] || bold='' plain=''
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
run() { printf '$ %s\n' "gantry $*"; "$GANTRY" "$@"; }
now() { date +%s%N; }
took() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.1f s", (to - from) / 1e9 }'; }

say "A cluster on this machine"
run up

say "Two versions of a small web server, imported from tarballs"
"$DEMO/gantry-demo" "$work" >/dev/null
run image import "$work/web-v1.tar"
run image import "$work/web-v2.tar"

say "Apply the application: three replicas behind a Service"
run apply -f deploy/examples/web.yaml
start=$(now)
run rollout status deploy/web --timeout 60
deployed=$(took "$start")
run get deploy,rs,pods,svc -o wide

node=$("$GANTRY" get nodes -o json | sed -n 's/.*"address": "\([0-9.]*\)".*/\1/p' | head -n 1)
cluster_ip=$("$GANTRY" get svc web -o json | sed -n 's/.*"clusterIP": "\([0-9.]*\)".*/\1/p' | head -n 1)
say "Reach it through its ClusterIP $cluster_ip and through port 30080 of the node"
for _ in 1 2 3; do curl -fsS "http://$cluster_ip/"; done
curl -fsS "http://$node:30080/"

say "Scale to six"
start=$(now)
run scale deploy/web --replicas 6
run rollout status deploy/web --timeout 60
scaled=$(took "$start")

# Every request is a new connection; each answer's version is counted, each failure too.
load_loop() {
  while :; do
    if answer=$(curl -fsS --max-time 5 "http://$cluster_ip/" 2>>"$work/errors"); then
      echo "${answer%% from*}" >>"$work/answers"
    else
      echo failed >>"$work/answers"
    fi
  done
}

say "Roll to v2 while requests keep coming"
load_loop & load=$!
start=$(now)
run set image deploy/web web=gantry.local/web:v2
run rollout status deploy/web --timeout 120
rolled=$(took "$start")

say "And back"
start=$(now)
run rollout undo deploy/web
run rollout status deploy/web --timeout 120
undone=$(took "$start")
kill "$load" 2>/dev/null || true
wait "$load" 2>/dev/null || true
load=
run rollout history deploy/web

total=$(wc -l <"$work/answers")
failed=$(grep -c '^failed$' "$work/answers" || true)
say "What happened"
printf '%-44s %s\n' "three replicas ready" "$deployed" "scaled from three to six" "$scaled" \
  "rolled six replicas to v2" "$rolled" "rolled back to v1" "$undone" \
  "requests answered meanwhile" "$((total - failed)) (web v1: $(grep -c '^web v1$' "$work/answers" || true), web v2: $(grep -c '^web v2$' "$work/answers" || true))" \
  "requests failed" "$failed"
if ((failed > 0)); then
  sort "$work/errors" | uniq -c | head -n 5
fi
cat <<TEXT

The cluster keeps running. Try:

  export PATH=$(dirname "$GANTRY"):\$PATH
  gantry get pods -w
  gantry logs -f deploy/web
  gantry exec -it deploy/web -- /web     (the image holds nothing else)
  curl http://$node:30080/info
  gantry down --purge                    when you have seen enough
TEXT
((failed == 0))
