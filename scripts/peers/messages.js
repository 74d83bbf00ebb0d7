// Measures Node's child_process messages, for benches/messages.rs: `node messages.js MESSAGES TRIPS`. Prints messages per
// second from a child to its parent, and the median and 99th percentile of a round trip in microseconds.
'use strict';
const { fork } = require('node:child_process');

if (process.argv[2] === 'child') {
  const payload = 'x'.repeat(64);
  const [messages, trips] = [Number(process.argv[3]), Number(process.argv[4])];
  const times = [];
  let begun = 0n;
  const ask = () => {
    begun = process.hrtime.bigint();
    process.send({ kind: 'ask', payload });
  };
  process.on('message', (message) => {
    if (message.kind === 'flood') {
      // Sends until the channel is full, then waits, like `send().await`.
      let left = messages;
      const more = () => {
        while (left > 0) {
          left -= 1;
          if (left % 256 === 0) return void process.send({ kind: 'count', payload }, more);
          process.send({ kind: 'count', payload });
        }
      };
      more();
    } else {
      if (begun) times.push(Number(process.hrtime.bigint() - begun) / 1000);
      if (times.length < trips) return ask();
      times.sort((a, b) => a - b);
      process.send({ kind: 'times', p50: times[trips >> 1], p99: times[Math.floor(trips * 0.99)] });
    }
  });
  process.send({ kind: 'ready' });
} else {
  const [messages, trips] = [Number(process.argv[2]), Number(process.argv[3])];
  if (!(messages > 0 && trips > 0)) {
    console.error('usage: messages.js MESSAGES TRIPS');
    process.exit(64);
  }
  const child = fork(__filename, ['child', messages, trips]);
  let [count, begun, rate] = [0, 0n, 0];
  child.on('message', (message) => {
    if (message.kind === 'ready') {
      begun = process.hrtime.bigint();
      child.send({ kind: 'flood' });
    } else if (message.kind === 'count') {
      count += 1;
      if (count < messages) return;
      rate = messages / (Number(process.hrtime.bigint() - begun) / 1e9);
      child.send({ kind: 'begin' });
    } else if (message.kind === 'ask') {
      child.send({ kind: 'answer', payload: message.payload });
    } else {
      console.log(`${rate.toFixed(0)} ${message.p50.toFixed(1)} ${message.p99.toFixed(1)}`);
      child.kill();
    }
  });
}
