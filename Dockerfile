# An image of the static binary and nothing else. The binary is built outside, so that no registry is needed:
#
#   rustup target add x86_64-unknown-linux-musl
#   cargo build --locked --release --target x86_64-unknown-linux-musl --bin prefork
#   docker build -t prefork -f Dockerfile target/x86_64-unknown-linux-musl/release
#   docker run --rm --network host --read-only --cap-drop ALL prefork
#
# As it is, the image serves the demonstration on all addresses, so that it shows something at once, and warns of that in
# its log. In production serve files (PREFORK_ROOT=/srv, from a volume), or nothing but the health paths (PREFORK_DEMO=false).
#
# Everything is set by variables (PREFORK_WORKERS=4, PREFORK_DRAIN_DELAY=5s) or by arguments after `serve`.
FROM scratch
COPY prefork /prefork
ENV PREFORK_BIND=0.0.0.0:8080 PREFORK_CONTROL=off
# A number, as there is no /etc/passwd; it owns nothing here.
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
# By the binary itself: GET /readyz over the port of PREFORK_BIND.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/prefork", "health"]
# No shell in between: the primary is process 1, and hears SIGTERM.
ENTRYPOINT ["/prefork"]
CMD ["serve"]
