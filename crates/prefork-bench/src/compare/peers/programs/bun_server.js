// A server on Bun.serve, as Bun's guide for clusters has it: `bun bun_server.js WORKERS` starts processes that share a port with
// SO_REUSEPORT. It answers the paths of `prefork serve` that workloads use, on PORT.
const workers = Number(process.argv[2] ?? 0);
if (workers > 0) {
  const children = Array.from({ length: workers }, () =>
    Bun.spawn({ cmd: [process.execPath, import.meta.path], stdio: ['ignore', 'ignore', 'inherit'], env: process.env }));
  process.on('SIGTERM', () => {
    for (const child of children) child.kill('SIGKILL');
    process.exit(0);
  });
  await Promise.race(children.map((child) => child.exited));
  process.exit(1);
}
const pid = `Handled by PID ${process.pid}\n`;
const head = { headers: { 'content-type': 'text/plain; charset=utf-8' } };
const fib = (n) => (n < 2 ? n : fib(n - 1) + fib(n - 2));
const { TLS_CERT, TLS_KEY } = process.env;
Bun.serve({
  port: Number(process.env.PORT),
  hostname: '127.0.0.1',
  reusePort: true,
  idleTimeout: 255,
  tls: TLS_CERT ? { cert: Bun.file(TLS_CERT), key: Bun.file(TLS_KEY) } : undefined,
  async fetch(request) {
    const { pathname } = new URL(request.url);
    if (pathname === '/') return new Response(pid, head);
    const [, name, number] = /^\/(bytes|fib|sleep)\/(\d{1,8})$/.exec(pathname) ?? [];
    const n = Number(number);
    if (name === 'bytes') return new Response(new Uint8Array(n));
    if (name === 'fib' && n <= 50) return new Response(`fib(${n}) = ${fib(n)}\n`, head);
    if (name === 'sleep') {
      await Bun.sleep(n);
      return new Response(`slept for ${n} ms\n`, head);
    }
    return new Response(null, { status: 404 });
  },
});
