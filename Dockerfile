# One image for every role: the binary, and the PostgreSQL server that each shard replica and each gateway runs for itself.

FROM rust:1-bookworm AS build
# PostgreSQL's grammar, which the gateway has as a library, is bound to Rust by libclang while it is built.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libclang-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p evenkeel

FROM debian:bookworm-slim
# Debian's package would create and start a server of its own.
RUN mkdir -p /etc/postgresql-common \
    && echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 \
       apt-get install -y --no-install-recommends -o Dpkg::Options::=--force-confold postgresql \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/evenkeel /usr/local/bin/evenkeel
# PostgreSQL refuses to run as root.
RUN mkdir /data && chown postgres:postgres /data
USER postgres
VOLUME /data
ENV EVENKEEL_DATA_DIR=/data
STOPSIGNAL SIGTERM
ENTRYPOINT ["evenkeel"]
CMD ["--help"]
