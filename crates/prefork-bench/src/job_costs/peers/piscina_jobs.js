// The jobs of piscina.js, which run in its threads.
'use strict';
const { move } = require('piscina');

exports.empty = () => {};
exports.echo = (bytes) => bytes;
exports.echoMoved = (buffer) => move(buffer);
exports.pause = (milliseconds) => {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
};
// As a fault in native code does: `process.abort()` does not exist in threads.
exports.abort = () => {
  process.kill(process.pid, 'SIGABRT');
};
