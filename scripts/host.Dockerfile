# A host for local work and tests: Debian that boots systemd, with the packages of the roles
# downloaded and not installed, so that the roles do the real work without the mirror.
ARG base
FROM ${base}
ARG suite
ARG mirror
ENV container=docker DEBIAN_FRONTEND=noninteractive
RUN rm -f /etc/apt/sources.list /etc/apt/sources.list.d/* /etc/apt/apt.conf.d/docker-* && \
    { printf 'Types: deb\nURIs: %s\nSuites: %s %s-updates\n' "$mirror" "$suite" "$suite" && \
      printf 'Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n' && \
      printf 'Types: deb\nURIs: %s\nSuites: %s-security\n' "${mirror%/debian}/debian-security" "$suite" && \
      printf 'Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n'; \
    } > /etc/apt/sources.list.d/debian.sources && \
    apt-get update -q && \
    apt-get install -y -q --no-install-recommends \
        ca-certificates dbus iproute2 procps python3 python3-apt sudo systemd systemd-sysv && \
    apt-get install -y -q --no-install-recommends --download-only \
        pgbouncer postgresql postgresql-client python3-psycopg2 python3-venv && \
    systemctl mask systemd-udevd.service systemd-logind.service getty.target && \
    rm -f /etc/machine-id /var/lib/dbus/machine-id && touch /etc/machine-id
STOPSIGNAL SIGRTMIN+3
CMD ["/sbin/init"]
