// Answers the paths of `prefork serve` that workloads use, for servers whose handler gets a Request and returns a Response.
const pid = `Handled by PID ${process.pid}\n`;
const head = { headers: { 'content-type': 'text/plain; charset=utf-8' } };
const fib = (n) => (n < 2 ? n : fib(n - 1) + fib(n - 2));

export async function answer(request) {
  const { pathname } = new URL(request.url);
  if (pathname === '/') return new Response(pid, head);
  const [, name, number] = /^\/(bytes|fib|sleep)\/(\d{1,8})$/.exec(pathname) ?? [];
  const n = Number(number);
  if (name === 'bytes') return new Response(new Uint8Array(n));
  if (name === 'fib' && n <= 50) return new Response(`fib(${n}) = ${fib(n)}\n`, head);
  if (name === 'sleep') {
    await new Promise((resolve) => setTimeout(resolve, n));
    return new Response(`slept for ${n} ms\n`, head);
  }
  return new Response(null, { status: 404 });
}
