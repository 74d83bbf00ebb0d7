'use strict';
// The two Node servers of the fuzzer: Node's own HTTP server, and the upstream of nginx, which reports how nginx parsed a
// request. usage: peers.js PORT UPSTREAM-SOCKET

const http = require('http');
const fs = require('fs');

function checksum(body) {
  let value = 0x811c9dc5;
  for (const byte of body) value = Math.imul(value ^ byte, 0x01000193) >>> 0;
  return value.toString(16).padStart(8, '0');
}

// Answers like the built-in application, for the paths of the corpus.
function answer(method, path, body) {
  if (path === '/echo') {
    return method === 'POST' || method === 'PUT' ? [200, body] : [405, 'use POST, PUT\n'];
  }
  if (method !== 'GET' && method !== 'HEAD') return [405, 'use GET, HEAD\n'];
  if (path === '/') return [200, 'root\n'];
  if (path === '/bytes/7') return [200, '0000000'];
  return [404, 'not found\n'];
}

function serve(request, response, method, target) {
  const send = (body) => {
    const seen = `${method} ${target} ${body.length} ${checksum(body)}`;
    const path = target.replace(/^https?:\/\/[^/?#]*/i, '').replace(/[?#].*$/s, '') || '/';
    const [status, content] = answer(method, path, body);
    try {
      response.setHeader('X-Seen', seen);
    } catch {
      response.setHeader('X-Seen', `${method} ? ${body.length} ${checksum(body)}`);
    }
    response.writeHead(status, { 'Content-Length': Buffer.byteLength(content) });
    response.end(content);
  };
  const pieces = [];
  request.on('data', (piece) => pieces.push(piece));
  request.on('end', () => send(Buffer.concat(pieces)));
  request.on('error', () => {});
}

const options = { maxHeaderSize: 64 * 1024, keepAliveTimeout: 60000, headersTimeout: 0, requestTimeout: 0 };
const [port, socket] = process.argv.slice(2);

http.createServer(options, (request, response) => {
  serve(request, response, request.method, request.url);
}).listen(Number(port), '127.0.0.1', 1024);

fs.rmSync(socket, { force: true });
http.createServer(options, (request, response) => {
  serve(request, response, request.headers['x-method'], request.headers['x-target']);
}).listen(socket, 1024, () => process.stdout.write('ready\n'));
