#!/usr/bin/env bash
# The guided tour behind `make demo`: starts a cluster, runs a web application, scales it, rolls it to a new version under
# continuous requests, rolls it back, lets it follow its load, has a version that does not work take itself back, and
# leaves everything running.
set -euo pipefail

GANTRY=${GANTRY:?the gantry binary}
DEMO=${DEMO:?the directory of the gantry-demo binaries}
cd "$(dirname "$0")/.."
GANTRY=$(realpath "$GANTRY")
work=$(mktemp -d)
requests= burning=
finish() {
  for load in $requests $burning; do kill "$load" 2>/dev/null || true; done
  rm -rf "$work"
}
trap finish EXIT

bold=$'\e[1m' plain=$'\e[0m'
[[ -t 1 ]] || bold='' plain=''
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
run() { printf '$ %s\n' "gantry $*"; "$GANTRY" "$@"; }
now() { date +%s%N; }
took() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.1f s", (to - from) / 1e9 }'; }

# Waits until the Deployment is as an awk condition says: of `ready` and `wanted` pods, those that are `current` and
# `available`, and the `image`.
wait_web() {
  local program='{ split($2, of, "/"); ready = of[1]; wanted = of[2]; current = $3; available = $4; image = $7 }'
  local deadline=$((SECONDS + 60))
  until "$GANTRY" get deploy web -o wide --no-headers | awk "$program END { exit !($1) }"; do
    if ((SECONDS >= deadline)); then
      echo "error: the Deployment does not become so that $1" >&2
      run explain rollout deploy/web
      exit 1
    fi
    sleep 0.05
  done
}

# Ends a load. Every request that was due is then answered, or has failed.
end() {
  kill "$1" 2>/dev/null || true
  wait "$1" || true
}

say "A cluster on this machine"
run up

say "Versions of a small web server, imported from tarballs"
"$DEMO/gantry-demo" "$work" >/dev/null
for version in v1 v2 broken; do run image import "$work/web-$version.tar"; done

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

say "Roll to v2 while 100 requests come every second, each on a new connection, from here to the end"
"$DEMO/gantry-demo-web" load "http://$cluster_ip/" --rate 100 >"$work/requests" & requests=$!
start=$(now)
run set image deploy/web web=gantry.local/web:v2
run rollout status deploy/web --timeout 120
rolled=$(took "$start")

say "And back"
start=$(now)
run rollout undo deploy/web
run rollout status deploy/web --timeout 120
undone=$(took "$start")
run rollout history deploy/web

say "Two replicas, and an autoscaler that adds more when they are busy"
run scale deploy/web --replicas 2
run apply -f deploy/examples/web-autoscaler.yaml
wait_web 'ready == 2 && wanted == 2'
deadline=$((SECONDS + 30))
until "$GANTRY" get hpa web --no-headers | grep -v -q unknown; do
  ((SECONDS < deadline)) || { run explain hpa web; exit 1; }
  sleep 0.05
done
run get hpa web
start=$(now)
"$DEMO/gantry-demo-web" load "http://$cluster_ip/burn?ms=4" --rate 100 >"$work/burning" & burning=$!
wait_web 'ready > 2'
grown=$(took "$start")
wait_web 'ready == 6 && wanted == 6'
grown_whole=$(took "$start")
run explain hpa web
end "$burning"
burning=
start=$(now)
wait_web 'ready == 2 && wanted == 2'
shrunk=$(took "$start")
run get hpa web

say "A version that does not work takes itself back"
run rollout policy --auto-rollback true
start=$(now)
run set image deploy/web web=gantry.local/web:broken
wait_web 'image == "gantry.local/web:v1" && ready == wanted && current == wanted && available == wanted'
restored=$(took "$start")
run explain rollout deploy/web

end "$requests"
requests=
# The last line of a load's report is about all of it.
count() { tail -qn 1 "$work/requests" "$work/burning" | { grep -o "$1" || true; } | awk -F: '{ sum += $NF } END { print sum + 0 }'; }
failed=$(count '"failed":[0-9]*')
say "What happened"
printf '%-44s %s\n' "three replicas ready" "$deployed" "scaled from three to six" "$scaled" \
  "rolled six replicas to v2" "$rolled" "rolled back to v1" "$undone" \
  "load on two replicas: a third one serves" "$grown" "all six serve" "$grown_whole" "two again after the load" "$shrunk" \
  "a broken version gone, from wanting it on" "$restored" \
  "requests answered meanwhile" "$(count '"ok":[0-9]*') (web v1: $(count '"web v1 from [^"]*":[0-9]*'), web v2: $(count '"web v2 from [^"]*":[0-9]*'))" \
  "requests failed" "$failed"
if ((failed > 0)); then
  tail -qn 1 "$work/requests" "$work/burning" | grep -o '"message":"[^"]*"' | sort | uniq -c | head -n 5
fi
cat <<TEXT

The cluster keeps running. Try:

  export PATH=$(dirname "$GANTRY"):\$PATH
  gantry get pods -w
  gantry top pods --watch
  gantry explain hpa web
  gantry logs -f deploy/web
  gantry exec -it deploy/web -- /web     (the image holds nothing else)
  curl http://$node:30080/info
  gantry down --purge                    when you have seen enough
TEXT
((failed == 0))
