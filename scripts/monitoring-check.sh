#!/usr/bin/env bash
# Runs every query of a Grafana dashboard against a live Prometheus. Fails if one is refused, empty, or all NaN.
#
#   scripts/monitoring-check.sh DASHBOARD.json PROMETHEUS_URL [SECONDS]
#
# Rates need a few scrapes and histograms some traffic: queries without a value are tried again for SECONDS (default 0).
# Needs python3 alone.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
exec python3 - "$@" <<'P'
import json, math, sys, time, urllib.error, urllib.parse, urllib.request

dashboard, base = sys.argv[1], sys.argv[2].rstrip("/")
deadline = time.monotonic() + float(sys.argv[3] if len(sys.argv) > 3 else 0)
VARIABLES = {"$__rate_interval": "1m", "$__interval": "15s", "$__range": "1h"}


def panels(node):
    for panel in node.get("panels", []):
        if panel.get("type") == "row":
            yield from panels(panel)
        else:
            yield panel


def trouble(expr):
    """Returns why a query has no value, or None."""
    url = f"{base}/api/v1/query?" + urllib.parse.urlencode({"query": expr})
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            body = json.load(answer)
    except urllib.error.HTTPError as error:
        return f"refused: {error.read().decode(errors='replace')[:300]}"
    except OSError as error:
        return f"Prometheus at {base} does not answer: {error}"
    result = body["data"]["result"]
    values = [result[1]] if body["data"]["resultType"] == "scalar" else [series["value"][1] for series in result]
    if not values:
        return "no series"
    return None if any(not math.isnan(float(value)) for value in values) else "every value is NaN"


queries = []
for panel in panels(json.load(open(dashboard))):
    targets = panel.get("targets", [])
    if not targets:
        sys.exit(f"panel {panel.get('title')!r} has no query")
    for target in targets:
        expr = target["expr"]
        for name, value in VARIABLES.items():
            expr = expr.replace(name, value)
        queries.append((panel["title"], expr))
if not queries:
    sys.exit(f"{dashboard}: no panels")

pending = queries
while True:
    failed = [(title, expr, why) for title, expr in pending if (why := trouble(expr))]
    if not failed or time.monotonic() > deadline:
        break
    pending = [(title, expr) for title, expr, _ in failed]
    time.sleep(1)
for title, expr, why in failed:
    print(f"panel {title!r}: {why}\n    {expr}", file=sys.stderr)
print(f"{len(queries) - len(failed)} of {len(queries)} queries have a value")
sys.exit(bool(failed))
P
