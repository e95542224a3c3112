#!/bin/sh
# Starts nothing without the role: what has joined active.target gets one condition more, that the agent asked for
# a start and nothing has stopped it since. So neither a package that is upgraded on a passive node, nor a
# restart that systemd still owes, nor a hand runs a second one. systemd runs this at each boot and at each
# daemon-reload, which `systemctl enable` is one of (systemd.generator(7)).
# shellcheck shell=dash
set -eu
umask 022
for link in /etc/systemd/system/active.target.wants/* /etc/systemd/system/active.target.requires/*; do
    [ -L "$link" ] || continue
    mkdir -p "$1/${link##*/}.d"
    printf '[Unit]\nConditionPathExists=/run/bootstrap/starts\n' > "$1/${link##*/}.d/role.conf"
done
