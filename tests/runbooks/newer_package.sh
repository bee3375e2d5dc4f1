# Makes a repository on this host with PgBouncer's package under a higher version, and prints that version.
repository=/var/local/poolkit-test-repository
version=$(dpkg-query -W -f '${Version}' pgbouncer)+test
mkdir -p $repository
cd $repository
apt-get download -qq pgbouncer >/dev/null 2>&1
dpkg-deb -R pgbouncer_*.deb content
rm pgbouncer_*.deb
sed -i "s/^Version: .*/Version: $version/" content/DEBIAN/control
dpkg-deb -b content pgbouncer.deb >/dev/null
{
    grep -v '^ ' content/DEBIAN/control | grep -v '^Description'
    echo "Filename: ./pgbouncer.deb"
    echo "Size: $(stat -c %s pgbouncer.deb)"
    echo "SHA256: $(sha256sum pgbouncer.deb | cut -d ' ' -f 1)"
    echo "Description: the same program"
} > Packages
rm -r content
echo "deb [trusted=yes] file:$repository ./" > /etc/apt/sources.list.d/poolkit-test.list
echo "$version"
