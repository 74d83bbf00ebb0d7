// A server on Bun.serve, as Bun's guide for clusters has it: `bun bun_server.js WORKERS` starts processes that share a port with
// SO_REUSEPORT, which is PORT.
import { answer } from './fetch_handler.js';

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
const { TLS_CERT, TLS_KEY } = process.env;
Bun.serve({
  port: Number(process.env.PORT),
  hostname: '127.0.0.1',
  reusePort: true,
  idleTimeout: 255,
  tls: TLS_CERT ? { cert: Bun.file(TLS_CERT), key: Bun.file(TLS_KEY) } : undefined,
  fetch: answer,
});
