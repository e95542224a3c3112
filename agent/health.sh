# One round of the checks in health.d, in the order of their names: the first one that fails counts, with
# the last line that it said. /run/bootstrap/health tells the agent: a line with the boot clock at the end of
# the round, failures and successes in a row, and 1 for unhealthy; and a line with why.
# shellcheck shell=dash
set -u
umask 022
cd /etc/bootstrap || exit 1
told=/run/bootstrap/health

setting() {
    number=$(sed -n "s/^\s*$1\s*[=:]\s*\([1-9][0-9]\{0,2\}\)\s*\$/\1/I;T;p;q" loader.conf 2> /dev/null)
    echo "${number:-$2}"
}

fails() {
    said=$(exec 2>&1; timeout -k 1 "$limit" "$1"; exit $?)
    code=$?
    [ "$code" -ne 0 ] || return 1
    last=$(printf '%s\n' "$said" | grep . | tail -n 1 | tr -cd ' -~' | cut -c 1-200)
    case $code in 124 | 137) last="no end in $limit s" ;; esac
    why="${1##*/} says: ${last:-exit code $code}"
}

limit=$(setting health_seconds 5) failed=
for check in health.d/*; do
    # Set aside: systemd's conditions do not count these either.
    case $check in *~ | *.bak | *.old | *.new | *.swp | *.dpkg* | *.ucf* | *.rpm*) continue ;; esac
    if [ -f "$check" ] && [ -x "$check" ] && fails "$check"; then
        failed=yes
        break
    fi
done

failures=0 successes=0 unhealthy=0 before=
{ read -r _ failures successes unhealthy && IFS= read -r before; } 2> /dev/null < "$told"
if [ "$failed" ]; then
    failures=$((failures + 1)) successes=0
    [ "$failures" -lt "$(setting unhealthy_after 3)" ] || unhealthy=1
else
    failures=0 successes=$((successes + 1)) why=$before
    [ "$successes" -lt "$(setting healthy_after 2)" ] || unhealthy=0
fi
read -r now _ < /proc/uptime
printf '%s %s %s %s\n%s\n' "$now" "$failures" "$successes" "$unhealthy" "$why" > "$told.tmp" && mv -f "$told.tmp" "$told"
