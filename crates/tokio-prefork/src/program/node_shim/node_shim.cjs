'use strict';
// Lets an unmodified Node program serve on the listening sockets that prefork passes to it. Node loads this file before the
// program, because of `--require` in NODE_OPTIONS. The worker process of prefork that started the program ("guard" below)
// writes this file, and removes it when the program has ended: worker threads load it too.
//
// What to do is in the variable PREFORK_NODE_SHIM, as JSON:
//   sockets     [{ fd, inode, host, port } or { fd, inode, path }], in the order of the addresses
//   channel     { fd, inode } of a connected Unix stream socket: one word per line, see below
//   backlog     of the listening sockets
//   stop        name of the stop signal
//   node_option what was appended to NODE_OPTIONS
//
// The program writes to the channel: `listening`, `ready` (it called process.send('ready')), `stopping`.
// The guard writes: `drain` (end each connection with its next response), `stop` (as if the stop signal had arrived).
(() => {
  const threads = require('worker_threads');
  // A worker thread shares the process: the main thread has done everything. In a child of node:cluster, the process that
  // started it listens.
  if (!threads.isMainThread || !process.env.PREFORK_NODE_SHIM) return;

  const { ChildProcess } = require('child_process');
  const cluster = require('cluster');
  const fs = require('fs');
  const http = require('http');
  const https = require('https');
  const net = require('net');
  const os = require('os');
  const path = require('path');

  const VARIABLE = 'PREFORK_NODE_SHIM';
  // How long a socket stays open after its server was closed, so that a program which tries a port first can listen again.
  const RELISTEN_MS = 1000;
  // How long to go on accepting after the stop, for connections that wait in the queue of the socket.
  const ACCEPT_MS = 100;
  // How long an idle connection may wait for a further request, which ends it politely, before it is closed. The same for one
  // without any request.
  const IDLE_GRACE_MS = 1000;
  // How often idle connections are looked for after that.
  const CLOSE_IDLE_MS = 50;
  // How long a program that listens to the message 'shutdown' may live after its connections have ended.
  const SHUTDOWN_MESSAGE_MS = 5000;

  const config = JSON.parse(process.env[VARIABLE]);
  // A variable may reach a process that did not inherit the descriptors: numbers alone prove nothing.
  const isOurs = ({ fd, inode }) => {
    try {
      return fs.fstatSync(fd).ino === inode;
    } catch {
      return false;
    }
  };
  const sockets = config.sockets.filter(isOurs);
  const channelFd = config.channel && isOurs(config.channel) ? config.channel.fd : undefined;
  // Node's realpathSync may take the type of the file that was looked at last for that of a directory. After a socket, it would not
  // follow the link that a program in node_modules/.bin is.
  fs.statSync('/');
  const say = (text) => process.stderr.write(`prefork: ${text}\n`);

  // Programs that start the program: they pass the sockets on, and take none.
  const LAUNCHERS = new Set([
    'npm', 'npm-cli', 'npx', 'npx-cli', 'yarn', 'yarnpkg', 'yarn-berry', 'pnpm', 'pnpx', 'corepack', 'tsx', 'nodemon', 'nest',
    'cross-env', 'cross-env-shell', 'dotenv', 'env-cmd', 'ts-node-dev', 'tsnd', 'npm-run-all', 'run-s', 'run-p', 'concurrently',
  ]);
  // Their packages, for those whose file has another name (`tsx/dist/cli.mjs`).
  const LAUNCHER_PACKAGE =
    /\/node_modules\/(npm|yarn|pnpm|corepack|tsx|nodemon|@nestjs\/cli|cross-env|dotenv-cli|env-cmd|ts-node-dev|npm-run-all|concurrently)\//;
  const isLauncher = () => {
    const name = process.argv[1];
    if (!name) return false;
    if (LAUNCHERS.has(path.basename(name).replace(/\.[cm]?js$/, ''))) return true;
    try {
      return LAUNCHER_PACKAGE.test(fs.realpathSync(name));
    } catch {
      return false;
    }
  };

  const setVariable = (pairs, name, value) => {
    const kept = pairs.filter((pair) => !pair.startsWith(`${name}=`));
    if (value !== undefined) kept.push(`${name}=${value}`);
    return kept;
  };

  // Calls `change` with the options of each child process before it starts. Covers spawn, exec, fork and node:cluster, as
  // all of them call this method; not spawnSync and execSync.
  const onSpawn = (change) => {
    const { spawn } = ChildProcess.prototype;
    ChildProcess.prototype.spawn = function (options) {
      try {
        change(options);
      } catch (error) {
        say(`cannot prepare a child process: ${error.message}`);
      }
      return spawn.call(this, options);
    };
  };

  // Node marks all descriptors above 2 close-on-exec when it starts: only `stdio` passes them to a child.
  const passOn = (options) => {
    let { stdio } = options;
    if (!Array.isArray(stdio)) stdio = Array(3).fill(stdio ?? 'pipe');
    stdio = [...stdio];
    while (stdio.length < 3) stdio.push('pipe');
    const pass = (entry) => ({ ...entry, fd: stdio.push(entry.fd) - 1 });
    const passed = { ...config, sockets: sockets.map(pass) };
    if (channelFd !== undefined) passed.channel = pass(config.channel);
    options.stdio = stdio;
    options.envPairs = setVariable(options.envPairs ?? [], VARIABLE, JSON.stringify(passed));
  };

  if (isLauncher()) {
    delete process.env[VARIABLE];
    onSpawn(passOn);
    return;
  }

  // Children of the program must not take its sockets.
  const nodeOptions = (process.env.NODE_OPTIONS ?? '').replace(config.node_option, '').trim();
  if (nodeOptions) process.env.NODE_OPTIONS = nodeOptions;
  else delete process.env.NODE_OPTIONS;
  delete process.env[VARIABLE];
  onSpawn((options) => {
    for (const name of ['LISTEN_FDS', 'LISTEN_PID', 'LISTEN_FDNAMES']) {
      options.envPairs = setVariable(options.envPairs ?? [], name);
    }
  });

  // --- Sockets ---------------------------------------------------------------------------------------------------------

  // All servers that listen, also those on sockets of their own.
  const servers = new Set();
  // Handles of closed servers, by socket: see RELISTEN_MS.
  const kept = new Map();
  const taken = new Set();
  let isStopping = false;

  const ANY = new Set([undefined, null, '', '::', '0.0.0.0', 'localhost']);
  const [major, minor] = process.versions.node.split('.').map(Number);
  const hasReusePort = major > 23 || (major === 23 && minor >= 1) || (major === 22 && minor >= 12);

  // What a call of listen asks for: { fd }, { path }, { port, host } or { handle }, with the remaining options.
  const readArguments = (args) => {
    const callback = typeof args[args.length - 1] === 'function' ? args[args.length - 1] : undefined;
    const [first, second] = args;
    if (first === null || first === undefined || typeof first === 'function') return { options: { port: 0 }, callback };
    if (typeof first === 'object') return { options: first, callback };
    if (typeof first === 'number' || /^\s*\d+\s*$/.test(first)) {
      const options = { port: Number(first) };
      if (typeof second === 'string') options.host = second;
      const backlog = args.slice(1).find((arg) => typeof arg === 'number');
      if (backlog !== undefined) options.backlog = backlog;
      return { options, callback };
    }
    return { options: { path: first }, callback };
  };

  const describe = ({ port, host, path }) => (path !== undefined ? path : `${host ?? ''}${host ? ':' : ''}${port ?? 0}`);

  // The socket for a call of listen: the one with the same port or path; else the first, for the first server.
  const choose = (options) => {
    const free = sockets.filter((socket) => !taken.has(socket));
    if (options.path !== undefined) return free.find((socket) => socket.path === options.path);
    const port = Number(options.port ?? 0);
    const same = free.filter((socket) => socket.port === port);
    if (same.length) return same.find((socket) => socket.host === options.host) ?? same[0];
    return taken.size === 0 ? free[0] : undefined;
  };

  const { listen } = net.Server.prototype;

  // Keeps the handle of a server when it is closed, for a moment, with the connections that arrive meanwhile.
  const keepHandle = (server, socket, options) => {
    const handle = server._handle;
    // A child of node:cluster compares the port with what it asked for.
    if (hasClusterWorkers() && socket.port !== undefined) {
      const { getsockname } = handle;
      handle.getsockname = function (out) {
        const status = getsockname.call(this, out);
        if (options.port) out.port = Number(options.port);
        return status;
      };
    }
    const close = handle.close;
    handle.close = function (callback) {
      delete handle.close;
      taken.delete(socket);
      if (isStopping) return close.call(handle, callback);
      const waiting = [];
      handle.onconnection = (status, client) => client && waiting.push(client);
      const forget = () => {
        kept.delete(socket);
        taken.add(socket);
        for (const client of waiting) client.close();
        close.call(handle);
      };
      const timer = setTimeout(forget, RELISTEN_MS).unref();
      handle.unref();
      kept.set(socket, { handle, waiting, timer, forget });
      // A closed handle calls back in a later turn of the event loop, too.
      if (callback) setImmediate(() => callback.call(handle));
    };
  };

  const listenAgain = (server, socket) => {
    const { handle, waiting, timer } = kept.get(socket);
    kept.delete(socket);
    clearTimeout(timer);
    handle.ref();
    listen.call(server, handle, config.backlog);
    const { onconnection } = handle;
    for (const client of waiting) onconnection.call(handle, 0, client);
  };

  // The server that has the first socket although it asked for another port.
  let substitute;

  const takeSocket = (server, socket, options, callback) => {
    taken.add(socket);
    if (callback) server.once('listening', callback);
    if (kept.has(socket)) listenAgain(server, socket);
    // Node ignores a backlog among the options of a descriptor.
    else listen.call(server, { fd: socket.fd, signal: options.signal }, config.backlog);
    // Listening to a descriptor is not deferred; errors are events.
    if (server._handle) keepHandle(server, socket, options);
    server.once('listening', announce);
    return server;
  };

  // The program now listens to the port of the socket that `substitute` has: each gets what it asked for.
  const takeBack = (server, options, callback) => {
    const { server: first, socket, options: wanted } = substitute;
    const handle = first._handle;
    substitute = undefined;
    first._handle = null;
    delete handle.close;
    if (callback) server.once('listening', callback);
    listen.call(server, handle, config.backlog);
    keepHandle(server, socket, options);
    say(`listen(${describe(options)}) takes ${describe(socket)} instead of listen(${describe(wanted)})`);
    listenAsWritten(first, [wanted], wanted);
    return server;
  };

  const hasClusterWorkers = () => cluster.isPrimary && Object.keys(cluster.workers ?? {}).length > 0;

  // Listens as the program wrote it. Several workers can have the port where Node knows SO_REUSEPORT. Never for an address of
  // ours, as such a socket would receive connections that are meant for others.
  const listenAsWritten = (server, args, options, callback) => {
    const port = Number(options.port ?? 0);
    const isPort = options.port !== undefined && port > 0 && options.fd === undefined;
    if (!isPort) return listen.apply(server, args);
    server.once('error', (error) => {
      if (error.code !== 'EADDRINUSE') return;
      say(`${describe(options)} is in use, perhaps by another worker: give it to prefork as a further --bind, or listen to a ` +
        'port that depends on NODE_APP_INSTANCE');
    });
    const isOurPort = sockets.some((socket) => socket.port === port && (!net.isIP(options.host) || socket.host === options.host));
    if (!hasReusePort || isOurPort) return listen.apply(server, args);
    const changed = { ...options, reusePort: true };
    return callback ? listen.call(server, changed, callback) : listen.call(server, changed);
  };

  net.Server.prototype.listen = function (...args) {
    const { options, callback } = readArguments(args);
    watch(this);
    const given = sockets.find((socket) => socket.fd === options.fd && !taken.has(socket));
    if (given) return takeSocket(this, given, options, callback);
    const isAddress = options.fd === undefined && (options.port !== undefined || options.path !== undefined);
    if (!isAddress || isStopping) return listenAsWritten(this, args, options, callback);
    if (substitute?.server._handle && substitute.socket.port === Number(options.port)) return takeBack(this, options, callback);
    const socket = choose(options);
    if (!socket) return listenAsWritten(this, args, options, callback);
    const isSame = socket.path !== undefined ? socket.path === options.path : socket.port === Number(options.port ?? 0);
    if (!isSame) substitute = { server: this, socket, options };
    if (!isSame || !(ANY.has(options.host) || socket.host === options.host || options.path !== undefined)) {
      say(`listen(${describe(options)}) takes ${describe(socket)}, the address given to prefork`);
    }
    return takeSocket(this, socket, options, callback);
  };

  // What the primary of node:cluster calls for SCHED_NONE.
  const createServerHandle = net._createServerHandle;
  if (createServerHandle) {
    net._createServerHandle = function (address, port, addressType, fd, ...rest) {
      const socket = sockets.find((socket) => socket.port === port && !taken.has(socket));
      if (!socket || fd >= 0) return createServerHandle.call(this, address, port, addressType, fd, ...rest);
      taken.add(socket);
      setImmediate(announce);
      return createServerHandle.call(this, null, -1, -1, socket.fd, ...rest);
    };
  }

  // --- Messages --------------------------------------------------------------------------------------------------------

  const announce = () => {
    openChannel();
    tell('listening');
  };

  let channel;
  const told = new Set();
  // Each word once: a program may call process.send('ready') all the time, and a full channel would make it wait.
  const tell = (word) => {
    if (channelFd === undefined || told.has(word)) return;
    told.add(word);
    try {
      fs.writeSync(channelFd, `${word}\n`);
    } catch {
      // The guard has ended, or reads nothing: what it would do, it does without.
    }
  };

  // Only a process that listens reads the channel: others share it.
  function openChannel() {
    if (channel || channelFd === undefined) return;
    channel = new net.Socket({ fd: channelFd, readable: true, writable: true });
    let text = '';
    channel.setEncoding('latin1');
    channel.on('data', (data) => {
      const lines = (text + data).split('\n');
      text = lines.pop().slice(-64);
      for (const line of lines) {
        if (line === 'drain') drain();
        else if (line === 'stop') stop(config.stop);
      }
    });
    // The guard has been killed.
    channel.on('end', () => stop(config.stop));
    channel.on('error', () => stop(config.stop));
    channel.unref();
  }

  // PM2's processes have an IPC channel, and call process.send('ready').
  const { send } = process;
  process.send = function (message, ...rest) {
    if (message === 'ready') tell('ready');
    if (send) return send.call(process, message, ...rest);
    const callback = rest.find((argument) => typeof argument === 'function');
    if (callback) process.nextTick(callback, null);
    return true;
  };
  if (!send) {
    process.connected = true;
    process.disconnect = () => {};
  }

  // --- Draining and stopping -------------------------------------------------------------------------------------------

  let isDraining = false;

  const watch = (server) => {
    if (servers.has(server)) return;
    server.once('listening', () => servers.add(server));
    server.once('close', () => servers.delete(server));
    // HTTP/2: the sessions are needed to end them with GOAWAY.
    if (typeof server.updateSettings === 'function' && !server.preforkSessions) {
      const sessions = new Set();
      Object.defineProperty(server, 'preforkSessions', { value: sessions });
      server.on('session', (session) => {
        sessions.add(session);
        session.once('close', () => sessions.delete(session));
        // Not before its first stream, which GOAWAY would refuse.
        if (isDraining) session.once('stream', () => session.close());
      });
    }
  };

  // From now on, each response ends its connection.
  function drain() {
    if (isDraining) return;
    isDraining = true;
    const { writeHead } = http.ServerResponse.prototype;
    http.ServerResponse.prototype.writeHead = function (...args) {
      if (!this.headersSent && this.statusCode !== 101 && args[0] !== 101) {
        this.shouldKeepAlive = false;
        const connection = this.getHeader('connection');
        if (connection !== undefined && !/upgrade/i.test(String(connection))) this.setHeader('connection', 'close');
      }
      return writeHead.apply(this, args);
    };
    // http.Server's close calls it at once, which would destroy a connection whose next request is on its way.
    for (const { Server } of [http, https]) {
      const { closeIdleConnections } = Server.prototype;
      if (!closeIdleConnections) continue;
      Server.prototype.closeIdleConnections = function () {
        setTimeout(() => closeIdleConnections.call(this), IDLE_GRACE_MS);
      };
    }
    for (const server of servers) {
      // A request in progress is answered, although its connection was half-closed.
      if ('httpAllowHalfOpen' in server) server.httpAllowHalfOpen = true;
      for (const session of server.preforkSessions ?? []) session.close();
    }
  }

  const ownListeners = new Set();
  // Packages such as signal-exit kill the process if no listener but theirs exists. listenerCount stays as it is: Node itself
  // asks it whether a signal still has a listener.
  const { listeners } = process;
  process.listeners = function (event) {
    return listeners.call(this, event).filter((listener) => !ownListeners.has(listener));
  };
  const isHandled = (signal) => process.listeners(signal).length > 0;

  function stop(signal) {
    isStopping = true;
    tell('stopping');
    drain();
    for (const { timer, forget } of [...kept.values()]) {
      clearTimeout(timer);
      forget();
    }
    // PM2's stop signal is SIGINT: many programs have a handler for that one only.
    const handled = [signal, 'SIGTERM', 'SIGINT'].find(isHandled);
    if (handled) {
      process.emit(handled, handled, os.constants.signals[handled]);
      return;
    }
    closeAndExit(signal);
  }

  const onSignal = (signal) => {
    // The program's own listeners are called besides this one.
    if (isHandled(signal)) {
      isStopping = true;
      drain();
    } else if (isStopping) {
      closeAndExit(signal);
    } else {
      stop(signal);
    }
  };

  let isClosing = false;
  function closeAndExit(signal) {
    if (isClosing) return;
    isClosing = true;
    if (servers.size === 0) {
      process.removeListener(signal, onSignal);
      process.kill(process.pid, signal);
      return;
    }
    const hasShutdown = process.listenerCount('message') > 0;
    if (hasShutdown) process.emit('message', 'shutdown', undefined);
    const exit = () => {
      if (hasShutdown) setTimeout(() => process.exit(), SHUTDOWN_MESSAGE_MS);
      else process.exit();
    };
    let remaining = 0;
    const closed = () => {
      remaining -= 1;
      if (remaining === 0) exit();
    };
    const hasWorkers = hasClusterWorkers();
    if (hasWorkers) {
      remaining += 1;
      cluster.disconnect(closed);
    }
    for (const server of [...servers]) {
      // Without a handle, it is closing, or its connections are in the workers of node:cluster.
      if (!server._handle && hasWorkers) continue;
      remaining += 1;
      // Not the method of http.Server, which destroys idle connections at once.
      if (server._handle) setTimeout(() => net.Server.prototype.close.call(server, closed), ACCEPT_MS);
      else server.once('close', closed);
    }
    setInterval(closeIdle, CLOSE_IDLE_MS);
  }

  const closeSilent = (socket) => {
    if (socket.bytesRead === 0) socket.end();
  };

  function closeIdle() {
    // Deferred: see drain.
    for (const server of servers) server.closeIdleConnections?.();
    // Those without any request do not count as idle.
    for (const socket of process._getActiveHandles?.() ?? []) {
      const isSilent = socket instanceof net.Socket && servers.has(socket.server) && socket.bytesRead === 0;
      if (isSilent) setTimeout(closeSilent, IDLE_GRACE_MS, socket);
    }
  }

  for (const signal of new Set([config.stop, 'SIGTERM', 'SIGINT'])) {
    if (signal === 'SIGKILL' || signal === 'SIGSTOP') continue;
    ownListeners.add(onSignal);
    process.on(signal, onSignal);
  }
})();
