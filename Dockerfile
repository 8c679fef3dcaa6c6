# The server as an image: one static binary, no shell, no root.
#
#   docker build -t tasker .
#   docker run -e TASKER_DATABASE_URL=postgres://... -e TASKER_INSECURE=true -p 127.0.0.1:7420:7420 tasker
#
# Without TASKER_INSECURE it wants TASKER_TLS_CERT and TASKER_TLS_KEY: in a container every address is one that others reach.
#
# The base images are arguments, so that a build may take them from a mirror, or from somewhere that has no registry.
ARG BUILDER=golang:1.26-bookworm
ARG BASE=gcr.io/distroless/static-debian12:nonroot

FROM ${BUILDER} AS build
WORKDIR /src
COPY . .
# The modules are fetched by the build itself: `go mod download` would fetch those of the development tools as well,
# many times as much.
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -pgo=cmd/tasker/cpu.pgo -ldflags "-s -w -X main.version=${VERSION}" -o /out/tasker ./cmd/tasker

FROM ${BASE}
COPY --from=build /out/tasker /usr/bin/tasker
# By number, so that a cluster that refuses root can tell without reading the image's passwd.
USER 65532:65532
EXPOSE 7420
# In a container the loopback is the container's own, and Postgres is always somewhere else.
ENV TASKER_LISTEN=0.0.0.0:7420
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["/usr/bin/tasker", "health"]
ENTRYPOINT ["/usr/bin/tasker"]
CMD ["serve"]
