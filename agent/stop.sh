# Stops what runs with the role, and kills what has not stopped half a second before `stop_seconds` are over:
# also what ignores SIGTERM, what was forked away from its unit, and whatever systemd has not said by then. That is
# what joined active.target, what the agent started (the file says it, and for how long the fence gives), and what
# these stop or trigger. The fence, bootup and the agent start it. What failed by being stopped counts as stopped; a
# failure of before stays.
# shellcheck shell=dash disable=SC2086,SC2254 - one word a unit, and some are patterns
set -u
now() {
    read -r up _ < /proc/uptime
    echo $((${up%.*} * 100 + 1${up#*.} - 100))
}
began=$(now) most=60 units='' run=/run/bootstrap
# Nothing is started from here on. What was is kept in mind until it has stopped: for the agent, which frees no vote
# before, and for the next stop where this one is killed.
[ ! -e $run/stops ] || [ ! -e $run/starts ] || cat $run/stops >> $run/starts
mv -f $run/starts $run/stops 2> /dev/null
while read -r seconds started; do
    units="$units $started"
    [ "$seconds" -lt $most ] && most=$seconds
done 2> /dev/null < $run/stops
for link in /etc/systemd/system/active.target.wants/* /etc/systemd/system/active.target.requires/*; do
    if [ -L "$link" ]; then units="$units ${link##*/}"; fi
done
[ "$units" ] || exit 0
units="active.target $units"
set -f
# As the agent reads it; the shorter one of that and of what it started with: a fence is armed for one of them.
seconds=$(sed -n 's/^\s*stop_seconds\s*[=:]\s*\([1-9][0-9]\?\)\s*$/\1/Ip' /etc/bootstrap/loader.conf 2> /dev/null | sort -n | head -n 1)
[ "${seconds:-10}" -le $most ] || seconds=$most
deadline=$((began + ${seconds:-10} * 100 - 50))

ask() { # no later than the kill is due
    left=$((deadline - $(now)))
    [ "$left" -le 0 ] || timeout "${left}e-2" systemctl "$@"
}

fold() { # A socket's connections (Accept=yes) come and go, and a daemon-reload forgets whose they are: a pattern is all.
    found=$(cat)
    patterns=$(printf '%s\n' "$found" | sed -n 's/\(@.*\)\{0,1\}\.socket$/@[0-9]*-*.service/p' | tr '\\' '?')
    for unit in $found; do
        for pattern in $patterns; do
            case $unit in $pattern) continue 2 ;; esac
        done
        echo "$unit"
    done
    printf '%s\n' $patterns
}

kill_left() { # by their names: of a systemd that stands still nothing is to be learnt; `_cpu.service`: cgroups(7) owns `cpu.`
    for unit in $names; do
        find /sys/fs/cgroup -mindepth 1 -type d \
            \( \( -name "$unit" -o -name "_$unit" \) -print -o ! -name '*.slice' \) -prune
    done | while read -r group; do echo 1 > "$group/cgroup.kill"; done
} 2> /dev/null

# A fence that comes late, on a machine that stood still, leaves so much less.
fence=$(sed -n 's/.*-\([0-9]*\)\.timer$/\1/p' $run/fence 2> /dev/null)
if [ "$fence" ]; then
    now_us=$(timeout 0.3 systemctl show -p ExecMainStartTimestampMonotonic --value stop-active.service | tr -cd 0-9)
    late=$((${now_us:-0} / 10000 - fence / 10))
    [ "$late" -le 0 ] || deadline=$((deadline - late))
fi
timeout 0.3 systemctl stop start-active.service
for _ in 1 2 3 4 5 6 7 8 9; do
    known=$units
    units=$({
        printf '%s\n' $known
        ask show --property=Wants,Requires --value active.target
        # Its Id: a link may have another name, and the control group has not.
        ask show --property=Id,ConsistsOf,RequiredBy,BoundBy,Triggers --value $known
        # A main process that was moved into a session (su, runuser -l: pam_systemd) is there with all that it started.
        for process in $(ask show --property=MainPID --value $known); do
            sed -n 's/^0::.*\/\([^/]*\.scope\)$/\1/p' "/proc/$process/cgroup" 2> /dev/null
        done
    } | sed 's/"//g; s/\\\\/\\/g' | tr ' ' '\n' | fold | grep . | sort -u | tr '\n' ' ')
    [ "$known" != "$units" ] || break
done
names=$(printf '%s' "$units" | tr '\\' '?') # as patterns, in which a backslash would say something
failed=" $(ask list-units --all --state=failed --plain --no-legend --full $names | cut -d ' ' -f 1 | tr '\n' ' ')"
ask stop $units
running=activating,active,reloading,deactivating,maintenance,refreshing
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do # what is killed before systemd knows that it is to stop may be started again
    kill_left
    timeout 0.2 systemctl kill --signal=KILL $units 2> /dev/null
    timeout 0.2 systemctl stop $units 2> /dev/null
    left=$(timeout 0.2 systemctl list-units --all --state=$running --plain --no-legend --full $names) || left=unknown
    [ "$left" ] || break
done
for unit in $(timeout 1 systemctl list-units --all --state=failed --plain --no-legend --full $names | cut -d ' ' -f 1); do
    case $failed in *" $unit "*) ;; *) systemctl reset-failed "$unit" 2> /dev/null ;; esac
done
[ "$left" ] || rm -f $run/stops
exit 0
