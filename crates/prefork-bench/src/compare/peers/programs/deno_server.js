// A server on Deno.serve: `deno run deno_server.js WORKERS` starts processes that share a port with SO_REUSEPORT, which is PORT.
// `deno serve --parallel` has threads instead, and no TLS.
import { answer } from './fetch_handler.js';

const flags = ['run', '--unstable-net', '--allow-net', '--allow-env', '--allow-read', '--allow-run'];
const workers = Number(Deno.args[0] ?? 0);
if (workers > 0) {
  const start = { args: [...flags, import.meta.filename], stdin: 'null', stdout: 'null', stderr: 'inherit' };
  const children = Array.from({ length: workers }, () => new Deno.Command(Deno.execPath(), start).spawn());
  Deno.addSignalListener('SIGTERM', () => {
    for (const child of children) child.kill('SIGKILL');
    Deno.exit(0);
  });
  await Promise.race(children.map((child) => child.status));
  Deno.exit(1);
}
const [cert, key] = ['TLS_CERT', 'TLS_KEY'].map((name) => Deno.env.get(name)).map((file) => file && Deno.readTextFileSync(file));
Deno.serve({ port: Number(Deno.env.get('PORT')), hostname: '127.0.0.1', reusePort: true, cert, key, onListen() {} }, answer);
