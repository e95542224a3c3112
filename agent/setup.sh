# Sets the application up: runs the first file of setup.sha256 until it has succeeded, with growing
# pauses. Its output is the journal's (`journalctl -u setup.service`), the last line of a failure is in
# setup.failed, and setup.done says that it has succeeded. What the first-boot document had no room
# for comes from the web site: which content it is, the document says.
# shellcheck shell=dash
set -u
umask 022
cd /etc/bootstrap || exit 1
read -r _ first < setup.sha256

is_whole() {
    echo "$1  $2" | sha256sum --check --status --strict
}

fetch() {
    timeout 300 python3 - @URL@"/setup/$1/$2" "setup/.$2" <<'END' || return 1
import http.client, sys, urllib.request
url, path = sys.argv[1:]
try:
    with urllib.request.urlopen(url, timeout=10) as answer, open(path, "wb") as file:
        file.write(answer.read(1 << 24))
except (OSError, ValueError, http.client.HTTPException) as error:
    sys.exit(f"{url}: {error}")
END
    is_whole "$1" "setup/.$2" || { echo "$2 is not what the first-boot document says"; return 1; }
    chmod 755 "setup/.$2"
    mv -f "setup/.$2" "setup/$2"
}

once() {
    mkdir -p setup
    while read -r digest name; do
        is_whole "$digest" "setup/$name" 2> /dev/null || fetch "$digest" "$name" || return 1
    done < setup.sha256
    # In a copy: a try may change them, and the next one is to find them as they came.
    rm -rf setup.run && cp -a setup setup.run && cd setup.run && "./$first"
}

keep_last() {
    last=
    while IFS= read -r line || [ -n "$line" ]; do
        printf '%s\n' "$line"
        last=$line
    done
    printf '%s\n' "$last" > setup.failed
}

pause=5
until [ -e setup.done ]; do
    { (once) 2>&1 && sync -f . && : > setup.done; } | keep_last
    [ -e setup.done ] && break
    echo "$first has not succeeded: again in $pause s"
    sleep "$pause"
    pause=$((pause * 2))
    [ "$pause" -le 600 ] || pause=600
done
rm -f setup.failed
