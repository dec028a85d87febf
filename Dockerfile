# Attaché alone on an empty file system: no shell, no library; the public certificate authorities, for servers outside
# the mesh such as the issuer of a JWT provider's keys.
#
#   docker build -t attache .
#
# In a Nomad job, in Envoy's place:   meta { connect.sidecar_image = "attache" }   on the clients, or
#   image = "attache"   in the config of the job's sidecar_task.
# It runs as any user and with a read-only root. The build needs the network and nothing of the host.

FROM rust:1.95-bookworm AS build
# musl-gcc compiles the C of the cryptography and of the allocator against musl, and links the binary.
RUN apt-get update && apt-get install -y --no-install-recommends make musl-tools && rm -rf /var/lib/apt/lists/*
RUN rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /src
COPY . .
RUN target="$(uname -m)-unknown-linux-musl" \
 && cargo build --release --locked --package attache --no-default-features --target "$target" \
 && install -D -s -m 755 "target/$target/release/attache" /image/attache \
 && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt

FROM scratch
COPY --from=build /image/ /
# Envoy's user in its own image: the one that Nomad's transparent proxy lets through by default.
USER 101:101
ENTRYPOINT ["/attache"]
