// A client in JavaScript: prints what is said and says each line of its input, until that ends.
//
//   npm install && node chat.js --server localhost:8081 --user node
import {randomUUID} from 'node:crypto'
import {createInterface} from 'node:readline'
import {setTimeout as sleep} from 'node:timers/promises'
import {fileURLToPath} from 'node:url'
import {parseArgs} from 'node:util'
import grpc from '@grpc/grpc-js'
import {loadSync} from '@grpc/proto-loader'

const text = (value) => ({type: 'string', default: value})
const {server, user, room} = parseArgs({
  options: {server: text('localhost:8081'), user: text('node'), room: text('')},
}).values
const proto = fileURLToPath(new URL('../../protos/chat.proto', import.meta.url))
const {Chat, Broadcast} = grpc.loadPackageDefinition(loadSync(proto, {keepCase: true})).chat
const chat = new Chat(server, grpc.credentials.createInsecure())
const broadcast = new Broadcast(server, grpc.credentials.createInsecure())
const SILENCE = 30_000 // two of the server's heartbeats
const isFinal = (error) => error.code === grpc.status.INVALID_ARGUMENT
const request = {user: {id: user}, rooms: [room]}

// Prints what comes, and keeps the place in request.cursor, until the stream ends.
const listen = (joined) => new Promise((over) => {
  const stream = chat.Subscribe()
  let watchdog = setTimeout(() => stream.cancel(), SILENCE)
  stream.on('data', ({messages, cursor, gaps, going_away}) => {
    watchdog.refresh()
    for (const {start, end} of gaps ?? []) console.error(`up to ${end - start} messages are lost`)
    for (const {id, content} of messages ?? []) console.log(`${id}: ${JSON.stringify(content)}`)
    if (cursor?.length) request.cursor = cursor // now that all before it is printed; none with going_away
    if (going_away) setTimeout(() => stream.cancel(), going_away.delay_ms)
    joined()
  })
  stream.on('error', (error) => { clearTimeout(watchdog); over(error) })
  stream.on('end', () => clearTimeout(watchdog))
  stream.end(request)
})

// Sends a message, again with the same id for as long as it may not be written.
const say = async (content) => {
  const message = {id: user, room, content, message_id: randomUUID()}
  for (;;) {
    const deadline = Date.now() + SILENCE
    const error = await new Promise((done) => broadcast.BroadcastMessage(message, {deadline}, done))
    if (!error) return
    if (isFinal(error)) return console.error(`not sent: ${error.details}`)
    await sleep(1_000)
  }
}

await new Promise(async (joined) => {
  for (;;) { // a stream that is lost goes on in the next one, where it was
    const error = await listen(joined)
    if (!request.cursor || isFinal(error)) { console.error(error.details); process.exit(1) }
    await sleep(1_000)
  }
})
for await (const line of createInterface({input: process.stdin})) await say(line)
process.exit()
