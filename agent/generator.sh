#!/bin/sh
# Starts nothing without the role: what has joined active.target, and the service of its name that a timer, a path or a
# socket starts, gets one condition more: that the agent asked for a start and nothing has stopped it since. So neither
# a package that is upgraded on a passive node, nor a restart that systemd still owes, nor a hand runs a second one.
# systemd runs this at each boot and each daemon-reload, as of `systemctl enable` (systemd.generator(7)).
# shellcheck shell=dash
set -eu
umask 022

condition() {
    mkdir -p "$1.d"
    printf '[Unit]\nConditionPathExists=/run/bootstrap/starts\n' > "$1.d/role.conf"
}

for link in /etc/systemd/system/active.target.[wr]*/*; do
    [ -L "$link" ] || continue
    unit=${link##*/}
    condition "$1/$unit"
    case $unit in
        *.timer | *.path | *.socket)
            condition "$1/${unit%.*}.service"
            condition "$1/${unit%.*}@.service"
            ;;
    esac
done
