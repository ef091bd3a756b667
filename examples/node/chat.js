// A client of chatsvc in Node: prints what is said and says each line of its input, until that ends.
// Node 18.3 or newer:
//
//   npm install && node chat.js --server localhost:8081 --user noddy
//
// When its server is lost, or sends it away, it goes on where it was, and sends again with the same id.
'use strict';
const { randomUUID } = require('node:crypto');
const { createInterface } = require('node:readline');
const { setTimeout: sleep } = require('node:timers/promises');
const { parseArgs } = require('node:util');
const grpc = require('@grpc/grpc-js');
const { loadSync } = require('@grpc/proto-loader');

const text = (value) => ({ type: 'string', default: value });
const options = { server: text('localhost:8081'), user: text('noddy'), room: text('') };
const { server, user, room } = parseArgs({ options }).values;
const proto = loadSync(`${__dirname}/../../protos/chat.proto`, { defaults: true, longs: Number });
const { Chat, Broadcast } = grpc.loadPackageDefinition(proto).chat;
const channel = [server, grpc.credentials.createInsecure(), { 'grpc.max_reconnect_backoff_ms': 5_000 }];
const chat = new Chat(...channel);
const broadcast = new Broadcast(...channel);
const SILENCE = 30_000; // two of a server's heartbeats

// Prints what comes, by one stream after the other.
async function follow() {
  const from = { user: { id: user }, rooms: [room], last: 20 };
  for (;;) {
    const stream = chat.Subscribe();
    const leave = () => stream.cancel();
    const watchdog = setTimeout(leave, SILENCE);
    let error = { details: 'the stream has ended' };
    stream.end(from);
    try {
      for await (const { messages, cursor, gaps, goingAway } of stream) {
        watchdog.refresh();
        for (const { start, end } of gaps) console.error(`up to ${end - start} messages are lost`);
        for (const { id, content } of messages) console.log(`${id}: ${content.replace(/\p{Cc}/gu, ' ')}`);
        if (cursor.length) Object.assign(from, { cursor, last: 0 }); // only now that all before it is printed
        if (goingAway) setTimeout(leave, goingAway.delayMs);
      }
    } catch (thrown) {
      error = thrown;
    }
    clearTimeout(watchdog);
    if (!await again(error)) process.exit(1);
  }
}

// Resolves when all in-sync replicas have the message, or when they never will.
async function send(message) {
  let error;
  do {
    const deadline = Date.now() + SILENCE;
    error = await new Promise((done) => broadcast.BroadcastMessage(message, { deadline }, done));
  } while (error && await again(error));
}

// Waits until another attempt is due, and tells whether it can help.
async function again({ code, details }) {
  console.error(details);
  await sleep(1_000 * Math.random());
  return code !== grpc.status.INVALID_ARGUMENT;
}

follow();
(async () => {
  for await (const content of createInterface({ input: process.stdin })) {
    await send({ id: user, room, content, messageId: randomUUID() });
  }
  process.exit();
})();
